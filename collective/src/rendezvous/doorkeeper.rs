//! Rank 0 after the end: tells whoever still comes that the job is done.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::addresses;
use super::sockets::{Listen, rendezvous_socket};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Environment, host_name};
use crate::link::quic::{endpoint, tuning::Traffic};
use crate::report;
use crate::statistics::Counters;
use crate::trust::Credentials;
use crate::trust::certificates::Membership;
use crate::trust::hello::Again;

/// Rank 0's word that the job is done, for ranks whose processes are started again after the end:
/// they get [`ErrorKind::Done`] at once, and need not wait for ranks that will not come.
///
/// It needs no processor while nobody comes. Dropping it ends it.
#[derive(Debug)]
pub struct Doorkeeper {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    told: Arc<Mutex<BTreeSet<usize>>>,
}

impl Doorkeeper {
    /// Listens where the ranks have met; their communicator must be closed. `reason` is what
    /// newcomers are told, in a few words.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] on another rank than 0; as
    /// [`Communicator::connect`](crate::Communicator::connect) where it cannot listen.
    pub fn start(mut config: Config, reason: &str) -> Result<Self> {
        if config.rank() != 0 {
            let problem = format!("rank {} is not where the ranks meet", config.rank());
            return Err(ErrorKind::Argument { problem }.into());
        }
        let credentials = match config.credentials.take() {
            Some(given) => given,
            None => Credentials::from_environment(&Environment::of_process(), &config.identity)?,
        };
        let membership = Arc::new(Membership::new(&credentials, &config.job, 0)?);
        drop(credentials);
        let listen = Listen::new(&config, &addresses::of_this_host())?;
        let (socket, _) = rendezvous_socket(&config, None, listen)?;
        let counters = Counters::new(0, config.size(), "quic").of(&config.job, &host_name());
        let (counters, reason) = (Arc::new(counters), reason.to_string());
        let (stop, stopped) = oneshot::channel();
        let (opened, outcome) = mpsc::sync_channel(1);
        let told = Arc::<Mutex<BTreeSet<usize>>>::default();
        let tells = told.clone();
        let main = move || {
            report::speak_for(&counters.origin);
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = opened.send(Err(Error::system("start the door's runtime", error)));
                    return;
                }
            };
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let endpoint = match endpoint::open(socket, &membership, Traffic::Control) {
                    Ok(endpoint) => endpoint,
                    Err(error) => {
                        let _ = opened.send(Err(error));
                        return;
                    }
                };
                let _ = opened.send(Ok(()));
                let open = endpoint.clone();
                let guests = endpoint::accept(open, membership, counters, move |greeted| {
                    let (reason, tells) = (reason.clone(), tells.clone());
                    let rank = greeted.hello.rank as usize;
                    tokio::task::spawn_local(async move {
                        greeted.refuse(reason, Again::Over).await;
                        tells.lock().unwrap_or_else(PoisonError::into_inner).insert(rank);
                    });
                });
                tokio::select! {
                    () = guests => {}
                    _ = stopped => {}
                }
                endpoint.close(0u32.into(), b"closed");
            });
        };
        let thread = std::thread::Builder::new()
            .name("allfold-door".into())
            .spawn(main)
            .map_err(|error| Error::system("start the door's thread", error))?;
        let keeper = Self { stop: Some(stop), thread: Some(thread), told };
        match outcome.recv() {
            Ok(Ok(())) => Ok(keeper),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::system("keep the door", "its thread ended")),
        }
    }

    /// The ranks that have come and were told, in ascending order.
    pub fn told(&self) -> Vec<usize> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

impl Drop for Doorkeeper {
    fn drop(&mut self) {
        // The thread may have ended by itself.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Communicator;

    #[test]
    fn who_comes_after_the_end_is_told_so() {
        let place = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let secret = crate::Secret::random().unwrap().to_line();
        let config = |rank| {
            Config::new(rank, 3, &place.to_string()).unwrap().secret(&secret).unwrap().job("done")
        };
        let keeper = Doorkeeper::start(config(0), "training complete").unwrap();
        for rank in [1, 2, 1] {
            let error = Communicator::connect(config(rank)).map(drop).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Done { .. }), "{error}");
            assert_eq!(error.to_string(), "training complete");
            assert!(!error.is_retryable());
        }
        assert_eq!(keeper.told(), [1, 2]);
        let error = Communicator::connect(config(1).job("another")).map(drop).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Refused { .. }), "{error}");
        drop(keeper);
        // The place is free again.
        drop(Doorkeeper::start(config(0), "training complete").unwrap());
        assert!(Doorkeeper::start(config(1), "").is_err());
    }
}
