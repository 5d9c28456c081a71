//! Rank 0's side of the rendezvous, with connections and timers: feeds what happens to `gathering`,
//! and does what it says.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::control_thread::Me;
use super::gathering::{self, Action, Gathering, Terms};
use super::neighbours::map;
use super::table::Entry;
use super::{Knock, Meeting};
use crate::control::endpoint::{Control, Event, Message};
use crate::error::Result;
#[cfg(feature = "faults")]
use crate::faults;
use crate::identity::Environment;
#[cfg(feature = "faults")]
use crate::link::quic::routes;
use crate::report;
use crate::statistics::Refusal;
use crate::trust::hello::{Again, Greeted, Purpose};
use crate::trust::secret::fill_random;

/// Gathers the world.
pub(super) async fn gather(
    control: &Rc<Control>,
    me: &Me,
    events: &mut mpsc::UnboundedReceiver<Event>,
) -> Result<Meeting> {
    let (settings, (addresses, chosen), control_port, lane_ports, door) = match &me.hello.purpose {
        Purpose::Join { settings, addresses, chosen, control_port, lane_ports, door } => {
            let addresses = (addresses.clone(), *chosen);
            (settings.clone(), addresses, *control_port, lane_ports.clone(), *door)
        }
        _ => (Vec::new(), (Vec::new(), false), 0, Vec::new(), None),
    };
    let listed: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let listens = format!("on UDP {control_port} of {}", listed.join(", "));
    let own = Entry {
        rank: 0,
        host: me.hello.host.clone(),
        pid: me.hello.pid,
        habitat: me.hello.habitat,
        incarnation: me.hello.incarnation,
        addresses,
        chosen,
        control_port,
        lane_ports,
        leaf: control.membership.leaf_hash(),
        door,
    };
    let terms = Terms {
        size: control.config.size() as u32,
        lanes: control.config.lanes,
        version: me.hello.version.clone(),
        settings,
        heartbeat: control.config.heartbeat,
        connect_timeout: control.config.connect_timeout,
        place: control.config.rendezvous.to_string(),
        listens,
        is_in_kubernetes: Environment::of_process().in_kubernetes(),
    };
    let mut gathering = Gathering::new(terms, own, draw_epoch, Instant::now());
    let mut door = Door { control, waiting: BTreeMap::new() };
    let outcome = door.run(&mut gathering, events).await;
    // Whoever still waits hears from the world that begins.
    for greeted in door.waiting.into_values() {
        let _ = control.events.send(Event::Greeted(greeted));
    }
    outcome
}

/// Carries out what the gathering decides.
struct Door<'a> {
    control: &'a Rc<Control>,
    /// Who has knocked and not been answered, by connection.
    waiting: BTreeMap<usize, Box<Greeted>>,
}

impl Door<'_> {
    async fn run(
        &mut self,
        gathering: &mut Gathering<impl FnMut() -> Result<u64>>,
        events: &mut mpsc::UnboundedReceiver<Event>,
    ) -> Result<Meeting> {
        loop {
            let mut pending = Vec::new();
            tokio::select! {
                Some(event) = events.recv() => pending.extend(self.translate(event)),
                () = tokio::time::sleep_until(gathering.wake().into()) => {
                    let links = self.control.links.borrow();
                    pending.extend(gathering.asked().filter_map(|rank| {
                        let at = links.get(&rank)?.heard.get();
                        Some(gathering::Event::Heard { rank, at })
                    }));
                    pending.push(gathering::Event::Time);
                }
            }
            while !pending.is_empty() {
                for event in std::mem::take(&mut pending) {
                    for action in gathering.on(Instant::now(), event) {
                        match action {
                            Action::Finish(outcome) => return outcome,
                            action => pending.extend(self.act(action).await),
                        }
                    }
                }
            }
        }
    }

    fn translate(&mut self, event: Event) -> Option<gathering::Event> {
        match event {
            Event::Greeted(greeted) => {
                let knock = Knock::of(&greeted);
                self.waiting.insert(knock.link, greeted);
                Some(gathering::Event::Knocked(Box::new(knock)))
            }
            Event::Message(rank, Message::Prepared { epoch, maps }, _) => {
                #[cfg(feature = "faults")]
                faults::happens(|rank| faults::Moment::Prepared { rank });
                Some(gathering::Event::Prepared { rank, epoch, maps })
            }
            Event::Ended { rank, link, .. } => Some(gathering::Event::Ended { rank, link }),
            Event::Mapped { epoch, mapped } => Some(gathering::Event::Mapped { epoch, mapped }),
            Event::Obituary(obituary) => Some(gathering::Event::Obituary(obituary)),
            Event::Message(..) | Event::Dialled(_) | Event::Gone(_) | Event::Asked(_) => None,
        }
    }

    /// Does as told; what came of it, if that is an event.
    async fn act(&mut self, action: Action) -> Option<gathering::Event> {
        match action {
            Action::Welcome { rank, link } => {
                let greeted = self.waiting.remove(&link)?;
                #[cfg(feature = "faults")]
                faults::meet(rank, routes::plain(greeted.connection.remote_address()));
                if !self.control.welcome(rank, *greeted) {
                    return Some(gathering::Event::Ended { rank, link });
                }
                #[cfg(feature = "faults")]
                faults::happens(|rank| faults::Moment::Gathering { rank });
            }
            Action::Refuse { link, reason, again } => {
                let greeted = self.waiting.remove(&link)?;
                if again != Again::Soon {
                    self.control.counters.refused(Refusal::Rendezvous);
                }
                if again == Again::Never {
                    report::warn(&format!("refused {}: {reason}", greeted.who()));
                }
                greeted.refuse(reason, again).await;
            }
            Action::Drop(rank) => self.control.drop_link(rank),
            Action::Post(rank, message) => self.control.post(rank, message),
            Action::PostAll(message) => {
                #[cfg(feature = "faults")]
                if let Message::Prepare { table, .. } = &message {
                    faults::meet_table(table, &BTreeMap::new());
                }
                self.control.post_all(&message);
            }
            Action::Map { epoch, doors } => map(self.control, epoch, doors),
            Action::Say(line) => report::warn(&line),
            Action::Finish(_) => {}
        }
        None
    }
}

fn draw_epoch() -> Result<u64> {
    let mut epoch = [0; 8];
    fill_random(&mut epoch)?;
    Ok(u64::from_le_bytes(epoch))
}
