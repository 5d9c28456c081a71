//! Looks for data links that have gone silent while a call needs them: heartbeats go another way,
//! and may pass where a firewall has closed the port of the data.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Driver;
use crate::link::LinkState;
use crate::liveness::Judge;
use crate::liveness::inquiry::ANSWER_LIMIT;
use crate::report;
use crate::verdict::{Fault, Loss};

/// When each data link was heard last.
pub(super) struct Silences {
    judge: Judge,
    /// Of ranks whose heartbeats go to others.
    unwatched: Judge,
    /// Packets received, and since when no more.
    heard: HashMap<u32, (u64, Instant)>,
    /// When this rank was last found to have been stopped.
    woke: Instant,
}

impl Silences {
    /// `dead_after` as the control endpoint has it, which is to judge first.
    pub(super) fn new(dead_after: Option<Duration>, now: Instant) -> Self {
        let limit = dead_after.map(|limit| limit.max(SHORTEST) + HEAD_START);
        let unwatched = Judge::new(limit.map(|limit| limit + ANSWER_LIMIT), now);
        Self { judge: Judge::new(limit, now), unwatched, heard: HashMap::new(), woke: now }
    }

    /// How long nothing has come from a peer, if that is too long.
    fn note(
        &mut self,
        awake: bool,
        is_watched: bool,
        state: &LinkState<'_>,
        now: Instant,
    ) -> Option<Duration> {
        let (received, since) = match state {
            LinkState::Open { received, .. } => {
                let entry = self.heard.entry(state.peer()).or_insert((*received, now));
                if !awake || entry.0 != *received {
                    *entry = (*received, now);
                }
                *entry
            }
            LinkState::Dialling { since, .. } => {
                if !awake {
                    self.woke = now;
                }
                (0, (*since).max(self.woke))
            }
        };
        let judge = if is_watched { &self.judge } else { &self.unwatched };
        let silence = judge.silence(since, now)?;
        match state {
            LinkState::Open { .. } => self.heard.insert(state.peer(), (received, now)),
            // A handshake takes longer than an answer.
            LinkState::Dialling { .. } if silence < DIALLING => return None,
            LinkState::Dialling { .. } => None,
        };
        Some(silence)
    }
}

impl Driver {
    pub(super) fn look_for_silence(&self, silences: &mut Silences) {
        let now = Instant::now();
        let awake = silences.judge.is_awake(now);
        let mut fault = None;
        self.links.each_state(&mut |state| {
            let is_watched = self.world.counters.heartbeat_age(state.peer()).is_some();
            if let Some(silence) = silences.note(awake, is_watched, &state, now)
                && fault.is_none()
                && self.needs(state.peer())
            {
                fault = self.fault_of(&state, silence).map(|fault| (state.peer(), fault));
            }
        });
        match fault {
            Some((peer, Found::Silent(loss))) => self.world.lose(peer, loss),
            Some((peer, Found::LinkDown(problem))) => {
                self.world.raise(peer, Fault::LinkDown { problem });
            }
            None => {}
        }
    }

    /// What a silent data link means; None where another judges.
    fn fault_of(&self, state: &LinkState<'_>, silence: Duration) -> Option<Found> {
        let (peer, this) = (state.peer(), self.world.rank);
        if self.world.has_left(peer) {
            return Some(Found::Silent(Loss::Unread { by: this }));
        }
        match self.world.counters.heartbeat_age(peer) {
            // Others listen to its heartbeats: of one that is dead they have told by now.
            None => Some(Found::LinkDown(problem(state, this, silence, "others hear it"))),
            // The control endpoint is about to judge.
            Some(age) if age >= self.world.limits.dead_after.unwrap_or_default() * 3 / 4 => None,
            Some(_) => Some(Found::LinkDown(problem(state, this, silence, "its heartbeats come"))),
        }
    }

    /// Whether a call under way has anything to do with `peer`.
    fn needs(&self, peer: u32) -> bool {
        self.calls.borrow().values().filter_map(|calls| calls.active.as_ref()).any(|active| {
            let place = active.call.members.iter().position(|member| *member == peer);
            // Of one that has left, only what it sent matters.
            let has_left = self.world.has_left(peer);
            let to_send = |key| !has_left && active.call.has_to_send(key);
            place.is_some_and(|place| {
                let mut flows = active.call.flows().filter(|key| key.peer as usize == place);
                flows.any(|key| active.call.expects(key) || to_send(key))
            })
        })
    }
}

enum Found {
    Silent(Loss),
    LinkDown(String),
}

/// What rank `this` does not hear, although there is a sign of life.
fn problem(state: &LinkState<'_>, this: u32, silence: Duration, sign: &str) -> String {
    let (peer, silence) = (state.peer(), report::duration(silence));
    match state {
        LinkState::Open { .. } => format!(
            "rank {this} has received no data packet from rank {peer} for {silence}, but {sign}"
        ),
        LinkState::Dialling { problem, .. } => format!(
            "rank {this} has dialled the data port of rank {peer} in vain for {silence} \
             ({problem}), but {sign}"
        ),
    }
}

/// A lively link is heard twice a second (`link/quic/tuning.rs`): four packets are missed.
const SHORTEST: Duration = Duration::from_secs(2);
/// The control endpoint judges a dead rank first.
const HEAD_START: Duration = Duration::from_millis(500);
/// Two attempts to dial.
const DIALLING: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::ring;
    use crate::world::Limits;

    const LIMITS: Limits = Limits {
        late_after: Duration::MAX,
        timeout: None,
        dead_after: Some(Duration::from_secs(2)),
    };

    #[test]
    fn silence_between_two_that_do_not_watch_each_other_is_the_links() {
        ring::with(LIMITS, |driver| {
            let state = LinkState::Open { peer: 0, received: 7 };
            let silence = Duration::from_secs(3);
            let link_down = |words: &str| match driver.fault_of(&state, silence) {
                Some(Found::LinkDown(problem)) => assert!(problem.ends_with(words), "{problem}"),
                Some(Found::Silent(loss)) => panic!("{loss:?}"),
                None => panic!("nothing"),
            };
            link_down(" from rank 0 for 3 s, but others hear it");
            driver.world.counters.heard(0);
            link_down(" from rank 0 for 3 s, but its heartbeats come");
            driver.world.note_left(0);
            assert!(matches!(driver.fault_of(&state, silence), Some(Found::Silent(_))));
        });
    }

    #[test]
    fn who_is_not_watched_is_judged_only_after_those_who_watch_it() {
        let (start, limit) = (Instant::now(), LIMITS.dead_after.unwrap() + HEAD_START);
        let found_after = |is_watched, silence| {
            let mut silences = Silences::new(LIMITS.dead_after, start);
            let state = LinkState::Open { peer: 0, received: 7 };
            assert_eq!(silences.note(true, is_watched, &state, start), None);
            silences.note(true, is_watched, &state, start + silence)
        };
        assert_eq!(found_after(true, limit), Some(limit));
        assert_eq!(found_after(false, limit), None);
        assert_eq!(found_after(false, limit + ANSWER_LIMIT), Some(limit + ANSWER_LIMIT));
    }
}
