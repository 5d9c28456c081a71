//! Rank 0: waits for the others, refuses whom it must, hands out the world.

use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::roster::{Claim, Roster};
use super::{Entry, Me, Meeting, SAY_EVERY, ended_early};
use crate::control::endpoint::{Control, Event, Message};
use crate::error::{ErrorKind, Result};
use crate::report;
use crate::trust::hello::{self, Again, Answer, Greeted, Purpose};
use crate::trust::secret::fill_random;

/// Gathers the world.
pub(super) async fn gather(
    control: &Rc<Control>,
    me: &Me,
    events: &mut mpsc::UnboundedReceiver<Event>,
) -> Result<Meeting> {
    let (settings, control_port, lane_port) = match &me.hello.purpose {
        Purpose::Join { settings, control_port, lane_port } => {
            (settings.clone(), *control_port, *lane_port)
        }
        _ => (Vec::new(), 0, 0),
    };
    let own = Entry {
        rank: 0,
        host: me.hello.host.clone(),
        pid: me.hello.pid,
        incarnation: me.hello.incarnation,
        address: None,
        control_port,
        lane_port,
        leaf: control.membership.leaf_hash(),
    };
    let size = control.config.size() as u32;
    let mut gathering =
        Gathering { control, me, settings, roster: Roster::new(size, own), prepared: None };
    gathering.run(events).await
}

struct Gathering<'a> {
    control: &'a Rc<Control>,
    me: &'a Me,
    settings: Vec<(String, String)>,
    roster: Roster,
    /// The world that is being prepared.
    prepared: Option<(u64, Vec<Entry>)>,
}

impl Gathering<'_> {
    async fn run(&mut self, events: &mut mpsc::UnboundedReceiver<Event>) -> Result<Meeting> {
        let began = Instant::now();
        let deadline = began + self.control.config.connect_timeout;
        let mut said = began;
        let mut second = tokio::time::interval(TELL_EVERY);
        loop {
            tokio::select! {
                Some(event) = events.recv() => {
                    if let Some(meeting) = self.notice(event).await? {
                        return Ok(meeting);
                    }
                }
                _ = second.tick() => {
                    let missing = self.roster.missing();
                    if !missing.is_empty() {
                        self.control.post_all(&Message::Missing(missing.clone()));
                    }
                    if said.elapsed() >= SAY_EVERY && !missing.is_empty() {
                        said = Instant::now();
                        report::warn(&format!(
                            "waiting for {} at {} ({} so far)",
                            ranks(&missing),
                            self.control.config.rendezvous,
                            report::duration(began.elapsed()),
                        ));
                    }
                }
                () = tokio::time::sleep_until(deadline.into()) => return Err(self.give_up()),
            }
            if self.roster.is_complete() {
                self.prepare()?;
            }
        }
    }

    async fn notice(&mut self, event: Event) -> Result<Option<Meeting>> {
        match event {
            Event::Greeted(greeted) => self.consider(*greeted).await,
            Event::Message(rank, Message::Prepared { epoch }) => {
                if self.roster.ready(rank, epoch)
                    && let Some((epoch, table)) = self.prepared.take()
                {
                    self.control.post_all(&Message::Commit { epoch });
                    let rank_0 = self.me.address.ip();
                    return Ok(Some(Meeting { epoch, table, rank_0 }));
                }
            }
            Event::Ended { rank, link, .. } => {
                let current =
                    self.control.links.borrow().get(&rank).map(|l| l.connection.stable_id());
                if current == Some(link) {
                    self.lose(rank);
                }
            }
            // Under a launcher nobody comes back.
            Event::Obituary(obituary) => {
                if let Some(error) = ended_early(&obituary) {
                    return Err(error);
                }
            }
            Event::Message(..) | Event::Dialled(_) => {}
        }
        Ok(None)
    }

    /// Takes a newcomer in, or tells it why not.
    async fn consider(&mut self, greeted: Greeted) {
        let hello = &greeted.hello;
        let rank = hello.rank;
        let Purpose::Join { settings, control_port, lane_port } = &hello.purpose else {
            let reason = "rank 0 is not part of that world any more".to_string();
            return greeted.refuse(reason, Again::Soon).await;
        };
        if let Some(reason) = self.disagreement(rank, &hello.version, settings) {
            return refuse_loudly(greeted, reason).await;
        }
        let entry = Entry {
            rank,
            host: hello.host.clone(),
            pid: hello.pid,
            incarnation: hello.incarnation,
            address: Some(greeted.connection.remote_address().ip()),
            control_port: *control_port,
            lane_port: *lane_port,
            // A process has one leaf for control and data.
            leaf: greeted.leaf,
        };
        if let Claim::Held { host, pid } = self.roster.claim(entry.clone()) {
            if rank == 0 || self.holder_is_alive(rank).await {
                let reason = format!(
                    "rank {rank} is already held by {host}, pid {pid}: two processes have the same \
                     ALLFOLD_RANK"
                );
                return refuse_loudly(greeted, reason).await;
            }
            self.lose(rank);
            self.roster.claim(entry);
        } else if self.control.links.borrow().contains_key(&rank) {
            // The same process on a new connection: what it was told on the old one may be lost.
            self.lose(rank);
            self.roster.claim(entry);
        }
        self.welcome(greeted).await;
    }

    /// What a newcomer has set otherwise than this rank.
    fn disagreement(
        &self,
        rank: u32,
        version: &str,
        settings: &[(String, String)],
    ) -> Option<String> {
        let ours = &self.me.hello.version;
        if version != ours {
            return Some(format!("rank {rank} runs allfold {version}, rank 0 runs {ours}"));
        }
        for (name, value) in &self.settings {
            let theirs = settings.iter().find(|(other, _)| other == name).map(|(_, v)| v.as_str());
            if theirs != Some(value) {
                let theirs = theirs.unwrap_or("unknown");
                return Some(format!("{name} is {value} on rank 0, but {theirs} on rank {rank}"));
            }
        }
        let size = self.control.config.size();
        (rank as usize >= size).then(|| format!("rank {rank} in a world of {size}"))
    }

    /// Whether the holder of a rank is heard within two heartbeats.
    async fn holder_is_alive(&self, rank: u32) -> bool {
        let Some(link) = self.control.links.borrow().get(&rank).cloned() else { return false };
        let asked = Instant::now();
        let heartbeat = self.control.config.heartbeat;
        while asked.elapsed() < heartbeat * 3 {
            if link.heard.get() > asked {
                return true;
            }
            tokio::time::sleep(heartbeat / 10).await;
        }
        false
    }

    async fn welcome(&self, greeted: Greeted) {
        let Greeted { hello, connection, mut sender, receiver, .. } = greeted;
        if hello::send(&mut sender, &Answer::Welcome).await.is_ok() {
            self.control.add_link(hello.rank, connection, sender, receiver);
            let missing = self.roster.missing();
            if !missing.is_empty() {
                self.control.post(hello.rank, Message::Missing(missing));
            }
        }
    }

    fn lose(&mut self, rank: u32) {
        self.control.drop_link(rank);
        if self.roster.leave(rank) {
            self.prepared = None;
            self.control.post_all(&Message::Restart);
        }
    }

    fn prepare(&mut self) -> Result<()> {
        let mut epoch = [0; 8];
        fill_random(&mut epoch)?;
        // 0 means "no world yet" in heartbeats.
        let epoch = u64::from_le_bytes(epoch).max(1);
        let table = self.roster.prepare(epoch);
        self.control.post_all(&Message::Prepare { epoch, table: table.clone() });
        self.prepared = Some((epoch, table));
        Ok(())
    }

    fn give_up(&self) -> crate::Error {
        let missing = self.roster.missing();
        let place = &self.control.config.rendezvous;
        let problem = if missing.is_empty() {
            format!("the ranks could not connect to each other before the deadline at {place}")
        } else {
            format!("{} did not come to {place}", ranks(&missing))
        };
        self.control.post_all(&Message::Refused { reason: problem.clone(), again: Again::Later });
        let waited = report::duration(self.control.config.connect_timeout);
        ErrorKind::ConnectTimeout { problem, waited }.into()
    }
}

/// Refuses for good, and says so here too.
async fn refuse_loudly(greeted: Greeted, reason: String) {
    report::warn(&format!("refused {}: {reason}", greeted.who()));
    greeted.refuse(reason, Again::Never).await;
}

/// `rank 3`, `ranks 1, 2, 5 and 12 more`.
pub(super) fn ranks(ranks: &[u32]) -> String {
    let shown: Vec<String> = ranks.iter().take(MAX_NAMED).map(u32::to_string).collect();
    let word = if ranks.len() == 1 { "rank" } else { "ranks" };
    let rest = ranks.len().saturating_sub(MAX_NAMED);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    format!("{word} {}{more}", shown.join(", "))
}

/// How often the waiting ranks are told who is missing.
const TELL_EVERY: Duration = Duration::from_secs(1);
const MAX_NAMED: usize = 16;
