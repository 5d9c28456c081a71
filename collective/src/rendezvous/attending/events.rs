//! What happens to a rank that attends, and what it must do about it.

use std::net::SocketAddr;
use std::time::Duration;

use crate::control::endpoint::Message;
use crate::control::launched::Obituary;
use crate::error::Result;
use crate::link::shared_memory::Door;
use crate::rendezvous::diagnosis::Diagnosis;
use crate::rendezvous::neighbours::Mapped;
use crate::rendezvous::search::Unfound;
use crate::rendezvous::{Knock, Meeting};
use crate::trust::certificates::LeafHash;
use crate::trust::hello::Again;

/// Something happened to this rank.
pub(in crate::rendezvous) enum Event {
    /// The outcome of `FindRankZero`: where it was found, and the connection.
    RankZero(std::result::Result<(SocketAddr, usize), Unfound>),
    /// A look-up of rank 0's name has ended; the resolver's word where it failed.
    Named(std::result::Result<(), String>),
    /// The outcome of `Probe`.
    Probed(Diagnosis),
    /// A `Dial` was made welcome there.
    Reached { epoch: u64, rank: u32, link: usize, leaf: LeafHash, at: SocketAddr },
    /// A `Dial` was not; `again` where it may yet be.
    Unreached { epoch: u64, rank: u32, again: bool, problem: String },
    /// This rank has tried to map the memory of its neighbours.
    Mapped { epoch: u64, mapped: Mapped },
    /// A peer dialled and said hello; it waits for `Welcome` or `Refuse`.
    Knocked(Knock),
    /// A `Welcome` was sent, and the connection is the rank's link.
    Linked { rank: u32, link: usize },
    /// What a rank said on its link.
    Message(u32, Message),
    /// A link ended; `how` is for people.
    Ended { rank: u32, link: usize, how: String },
    /// The launcher saw a rank end.
    Obituary(Obituary),
    /// It is [`Attending::wake`](super::Attending::wake) or later.
    Time,
}

/// What this rank must do, in this order.
pub(in crate::rendezvous) enum Action {
    /// Look for rank 0 after a pause, and greet it.
    FindRankZero {
        after: Duration,
    },
    /// Find out why rank 0 does not answer where its name leads.
    Probe,
    /// Dial a rank to watch it, at any of these addresses.
    Dial {
        epoch: u64,
        rank: u32,
        leaf: LeafHash,
        ways: Vec<SocketAddr>,
        after: Duration,
    },
    /// Take a connection that was dialled as the rank's link.
    Take {
        rank: u32,
        link: usize,
    },
    /// Close a connection that was dialled.
    Discard {
        link: usize,
    },
    /// Tell the peer that knocked that it is welcome, and take its connection as the rank's link.
    Welcome {
        rank: u32,
        link: usize,
    },
    Refuse {
        link: usize,
        reason: String,
        again: Again,
    },
    /// Map the memory behind these doors.
    Map {
        epoch: u64,
        doors: Vec<(u32, Door)>,
    },
    /// Close the rank's link and forget it.
    Drop(u32),
    /// To rank 0.
    Post(Message),
    /// A heartbeat to all, now.
    Beat,
    /// A warning for the log.
    Say(String),
    /// The meeting is over. The messages came ahead of the commit and are for the world that
    /// begins.
    Finish(Result<Meeting>, Vec<(u32, Message)>),
}
