//! The control thread: meets the other ranks, then serves the world.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::net::{Shutdown, UdpSocket};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::sockets::SocketTurn;
use super::{Meeting, attend, gather};
use crate::config::Config;
use crate::control::endpoint::{Control, Event};
use crate::control::launched::Launched;
use crate::control::{Command, Flooded, NetworkControl, running};
use crate::error::{Error, Result};
#[cfg(feature = "faults")]
use crate::faults;
use crate::link::quic::{endpoint, tuning::Traffic};
use crate::link::shared_memory::{Arena, Doorway};
use crate::report;
use crate::statistics::Counters;
use crate::trust::certificates::Membership;
use crate::trust::hello::Hello;

/// Starts the control thread and waits until the ranks have met.
pub(super) fn start(
    config: Config,
    counters: &Arc<Counters>,
    membership: Arc<Membership>,
    (socket, turn, door): Place,
    launched: Option<Launched>,
    me: Me,
) -> Result<(NetworkControl, Meeting)> {
    let (commands, inbox) = mpsc::unbounded_channel();
    let (met, meeting) = std::sync::mpsc::sync_channel(1);
    let flooded = Flooded::default();
    let flag = flooded.clone();
    let counters = counters.clone();
    let main = move || {
        #[cfg(feature = "faults")]
        faults::enter(me.hello.rank);
        report::speak_for(&counters.origin);
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = met.send(Err(Error::system("start the control runtime", error)));
                return;
            }
        };
        tokio::task::LocalSet::new().block_on(&runtime, async move {
            let (events, noticed) = mpsc::unbounded_channel();
            let line = launched.and_then(|line| listen_to_launcher(line, events.clone()));
            let endpoint = match endpoint::open(socket, &membership, Traffic::Control) {
                Ok(endpoint) => endpoint,
                Err(error) => {
                    let _ = met.send(Err(error));
                    return;
                }
            };
            let control = Rc::new(Control {
                config,
                membership,
                endpoint,
                counters,
                is_launched: line.is_some(),
                links: RefCell::new(BTreeMap::new()),
                world: OnceCell::new(),
                events,
                changed: Notify::new(),
            });
            // Open until the ranks have met.
            let door = door.map(|(arena, doorway)| tokio::task::spawn_local(doorway.serve(arena)));
            serve(control, me, inbox, noticed, (met, door), flag).await;
        });
        // A name look-up that still hangs in the system must not hold up the end.
        runtime.shutdown_background();
        drop(turn);
    };
    let thread = std::thread::Builder::new()
        .name("allfold-control".into())
        .spawn(main)
        .map_err(|error| Error::system("start the control thread", error))?;
    let control = NetworkControl::new(commands, flooded, thread);
    match meeting.recv() {
        Ok(Ok(meeting)) => Ok((control, meeting)),
        Ok(Err(error)) => {
            control.close();
            Err(error)
        }
        Err(_) => Err(Error::system("meet the other ranks", "the control thread ended")),
    }
}

/// Where a rank listens: its socket, whose turn that is, and the door to its memory.
pub(super) type Place = (UdpSocket, Option<SocketTurn>, Option<(Arc<Arena>, Doorway)>);

/// What this process tells the others of itself.
#[derive(Clone)]
pub(super) struct Me {
    pub(super) hello: Hello,
}

async fn serve(
    control: Rc<Control>,
    me: Me,
    inbox: mpsc::UnboundedReceiver<Command>,
    mut noticed: mpsc::UnboundedReceiver<Event>,
    (met, door): (std::sync::mpsc::SyncSender<Result<Meeting>>, Option<JoinHandle<()>>),
    flooded: Flooded,
) {
    let (events, counters) = (control.events.clone(), control.counters.clone());
    let guests = endpoint::accept(
        control.endpoint.clone(),
        control.membership.clone(),
        counters,
        move |greeted| {
            let _ = events.send(Event::Greeted(Box::new(greeted)));
        },
    );
    tokio::task::spawn_local(guests);
    tokio::task::spawn_local(control.clone().beat());
    let meeting = if control.rank() == 0 {
        gather::gather(&control, &me, &mut noticed).await
    } else {
        attend::attend(&control, &me, &mut noticed).await
    };
    if meeting.is_err() {
        running::linger(&control).await;
    }
    if let Some(door) = door {
        door.abort();
    }
    let _ = met.send(meeting);
    running::serve(control, inbox, noticed, flooded).await;
}

fn listen_to_launcher(line: Launched, events: mpsc::UnboundedSender<Event>) -> Option<HangUp> {
    let hang_up = HangUp(line.handle().ok()?);
    std::thread::Builder::new()
        .name("allfold-launcher".into())
        .spawn(move || {
            line.watch(|obituary| {
                let _ = events.send(Event::Obituary(obituary));
            });
        })
        .ok()?;
    Some(hang_up)
}

/// Ends the line to the launcher, and with it the thread that listens, when dropped.
struct HangUp(UnixStream);

impl Drop for HangUp {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}
