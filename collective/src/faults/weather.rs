//! What happens to the datagrams of this process, on their way out or in.
//!
//! It is set for the whole process, at any time, also while calls are under way:
//!
//! ```no_run
//! use std::time::Duration;
//! use allfold::faults::weather::{self, Place, Route, Weather};
//!
//! weather::seed(7);
//! // One datagram in a hundred is lost, each way, whoever the peer is.
//! weather::set(Route::all(), Weather::new().loss(0.01));
//! // What rank 2 sends arrives 50 to 60 ms later.
//! let late = Weather::new().delay(Duration::from_millis(50)).jitter(Duration::from_millis(10));
//! weather::set(Route::with(Place::Rank(2)).inwards(), late);
//! // The link to rank 1 is cut.
//! weather::set(Route::with(Place::Rank(1)), Weather::new().cut());
//! weather::clear();
//! ```
//!
//! Where both ends of a link have weather, a datagram suffers both. What is delayed on its way out
//! is lost if the process ends before; on its way in it arrives, so delay what comes in.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::peers;
use crate::simulation::Random;

/// What happens to a datagram. Shares are between 0 and 1, each drawn by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weather {
    cut: bool,
    loss: f64,
    duplicate: f64,
    reorder: f64,
    corrupt: f64,
    delay: Duration,
    jitter: Duration,
    mtu: Option<usize>,
}

/// Which datagrams: between which sockets, in which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    here: Place,
    peer: Place,
    outwards: bool,
    inwards: bool,
}

/// One or several sockets. Ranks are known by number once they have met: every rank knows rank 0
/// from its first attempt to reach it, and the others by the world table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Any socket.
    Everywhere,
    /// Both sockets of a rank.
    Rank(usize),
    /// The socket of a rank's control endpoint: heartbeats, verdicts, goodbyes.
    Control(usize),
    /// The sockets of a rank's lanes: the bytes of calls.
    Lane(usize),
    /// The socket at an address.
    Address(SocketAddr),
}

/// What has happened to datagrams of this process while there was weather.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Felt {
    /// Those that a cut stopped.
    pub cut: u64,
    /// Those that were lost by chance.
    pub lost: u64,
    /// Those that were too large for the way.
    pub too_large: u64,
    /// Those that arrived twice.
    pub duplicated: u64,
    /// Those that were held back until another one had passed.
    pub reordered: u64,
    /// Those that had a wrong byte.
    pub corrupted: u64,
    /// Those that were delayed.
    pub delayed: u64,
    /// Those that were not stopped, whatever else happened to them.
    pub passed: u64,
}

/// Sets the weather on a route, in place of what was set on the same one.
pub fn set(route: Route, weather: Weather) {
    let mut state = state();
    state.rules.retain(|(other, _)| *other != route);
    if weather != Weather::new() {
        state.rules.push((route, weather));
    }
    ACTIVE.store(!state.rules.is_empty(), Ordering::Release);
}

/// Clear skies everywhere. What is delayed still comes.
pub fn clear() {
    let mut state = state();
    state.rules.clear();
    ACTIVE.store(false, Ordering::Release);
}

/// Begins the sequence of chances anew. Which datagram a chance meets still depends on timing.
pub fn seed(seed: u64) {
    state().random = Random::new(seed);
}

/// What has happened so far.
pub fn felt() -> Felt {
    state().felt
}

impl Weather {
    /// Clear skies.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing passes.
    pub fn cut(mut self) -> Self {
        self.cut = true;
        self
    }

    /// This share is lost.
    pub fn loss(mut self, share: f64) -> Self {
        self.loss = share;
        self
    }

    /// This share arrives twice.
    pub fn duplicate(mut self, share: f64) -> Self {
        self.duplicate = share;
        self
    }

    /// This share is held back until the next datagram between the same sockets has passed, at most
    /// 20 ms.
    pub fn reorder(mut self, share: f64) -> Self {
        self.reorder = share;
        self
    }

    /// This share arrives with one wrong byte.
    pub fn corrupt(mut self, share: f64) -> Self {
        self.corrupt = share;
        self
    }

    /// All arrive so much later.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// And later by up to this, drawn for each; they keep their order.
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// Those with more than so many bytes of payload are lost, and nobody is told.
    pub fn mtu(mut self, bytes: usize) -> Self {
        self.mtu = Some(bytes);
        self
    }
}

impl Route {
    /// Everything that this process sends and receives.
    pub fn all() -> Self {
        Self::with(Place::Everywhere)
    }

    /// Between any socket of this process and `peer`, both ways.
    pub fn with(peer: Place) -> Self {
        Self { here: Place::Everywhere, peer, outwards: true, inwards: true }
    }

    /// Only at these sockets of this process: where several ranks are its threads.
    pub fn at(mut self, here: Place) -> Self {
        self.here = here;
        self
    }

    /// Only what comes in.
    pub fn inwards(mut self) -> Self {
        (self.outwards, self.inwards) = (false, true);
        self
    }

    /// Only what goes out.
    pub fn outwards(mut self) -> Self {
        (self.outwards, self.inwards) = (true, false);
        self
    }
}

impl Place {
    fn is_at(self, address: SocketAddr) -> bool {
        let is = |others: &[SocketAddr]| others.iter().any(|o| peers::is_same(*o, address));
        match self {
            Place::Everywhere => true,
            Place::Rank(rank) => {
                let sockets = peers::sockets(rank);
                is(&sockets.control) || is(&sockets.lanes)
            }
            Place::Control(rank) => is(&peers::sockets(rank).control),
            Place::Lane(rank) => is(&peers::sockets(rank).lanes),
            Place::Address(other) => is(&[other]),
        }
    }
}

/// A datagram that is to be judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passage {
    pub(super) here: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) is_outwards: bool,
    pub(super) bytes: usize,
}

/// What becomes of a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// 0: it is lost.
    pub(super) copies: u32,
    pub(super) delay: Duration,
    /// It waits until the next one has passed.
    pub(super) is_held: bool,
    /// The place of a wrong byte, and what is wrong with it; not 0.
    pub(super) wrong: Option<(usize, u8)>,
}

/// Whether there is any weather; if not, nothing needs to be judged.
pub(super) fn is_active() -> bool {
    ACTIVE.load(Ordering::Acquire)
}

/// Draws what becomes of a datagram.
pub(super) fn judge(passage: Passage) -> Fate {
    let mut state = state();
    let state = &mut *state;
    let mut fate = Fate { copies: 1, ..Fate::default() };
    let felt = &mut state.felt;
    for (route, weather) in &state.rules {
        let direction = if passage.is_outwards { route.outwards } else { route.inwards };
        if direction && route.here.is_at(passage.here) && route.peer.is_at(passage.peer) {
            weather.strike(passage.bytes, &mut fate, &mut state.random, felt);
        }
        if fate.copies == 0 {
            return fate;
        }
    }
    felt.passed += 1;
    felt.delayed += u64::from(!fate.delay.is_zero());
    fate
}

impl Weather {
    fn strike(&self, bytes: usize, fate: &mut Fate, random: &mut Random, felt: &mut Felt) {
        let mut chance = |share: f64| share > 0.0 && random.chance_of(share);
        let stopped = if self.cut {
            Some(&mut felt.cut)
        } else if self.mtu.is_some_and(|mtu| bytes > mtu) {
            Some(&mut felt.too_large)
        } else if chance(self.loss) {
            Some(&mut felt.lost)
        } else {
            None
        };
        if let Some(count) = stopped {
            *count += 1;
            fate.copies = 0;
            return;
        }
        if chance(self.duplicate) {
            felt.duplicated += 1;
            fate.copies = 2;
        }
        if chance(self.reorder) {
            felt.reordered += 1;
            fate.is_held = true;
        }
        if chance(self.corrupt) && bytes > 0 {
            felt.corrupted += 1;
            let place = random.below(bytes as u64) as usize;
            fate.wrong = Some((place, random.within(1..=255) as u8));
        }
        let most = u64::try_from(self.jitter.as_nanos()).unwrap_or(u64::MAX);
        fate.delay += self.delay + Duration::from_nanos(random.below(most));
    }
}

struct State {
    rules: Vec<(Route, Weather)>,
    random: Random,
    felt: Felt,
}

fn state() -> MutexGuard<'static, State> {
    static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
        let (rules, random, felt) = (Vec::new(), Random::new(0), Felt::default());
        Mutex::new(State { rules, random, felt })
    });
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

static ACTIVE: AtomicBool = AtomicBool::new(false);

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(weather: Weather, bytes: usize) -> (Vec<Fate>, Felt) {
        let (mut random, mut felt) = (Random::new(5), Felt::default());
        let mut fate = || {
            let mut fate = Fate { copies: 1, ..Fate::default() };
            weather.strike(bytes, &mut fate, &mut random, &mut felt);
            fate
        };
        ((0..10_000).map(|_| fate()).collect(), felt)
    }

    #[test]
    fn shares_are_kept() {
        let weather = Weather::new().loss(0.05).duplicate(0.1).reorder(0.2).corrupt(0.3);
        let (fates, felt) = fates(weather, 1_200);
        assert!((400..600).contains(&felt.lost), "{felt:?}");
        assert!((850..1_050).contains(&felt.duplicated), "{felt:?}");
        assert!((1_750..2_050).contains(&felt.reordered), "{felt:?}");
        assert!((2_650..3_050).contains(&felt.corrupted), "{felt:?}");
        let lost = fates.iter().filter(|fate| fate.copies == 0).count();
        assert_eq!(lost as u64, felt.lost);
        let wrong = fates.iter().filter_map(|fate| fate.wrong);
        assert!(wrong.clone().all(|(place, change)| place < 1_200 && change != 0));
    }

    #[test]
    fn what_is_too_large_never_passes_and_the_rest_always_does() {
        let weather = Weather::new().mtu(1_200);
        assert!(fates(weather, 1_201).0.iter().all(|fate| fate.copies == 0));
        assert!(fates(weather, 1_200).0.iter().all(|fate| fate.copies == 1));
    }

    #[test]
    fn jitter_adds_to_the_delay() {
        let (least, most) = (Duration::from_millis(50), Duration::from_millis(60));
        let weather = Weather::new().delay(least).jitter(most - least);
        let (fates, _) = fates(weather, 10);
        assert!(fates.iter().all(|fate| (least..most).contains(&fate.delay)));
        assert!(fates.iter().any(|fate| fate.delay > least + (most - least) / 2));
    }
}
