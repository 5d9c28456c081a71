//! Looks rank 0's name up, again and again, and knows where it led last. Name servers that do not
//! answer take the system half a minute: no attempt waits for that which has an address already.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

/// One name, and one look-up of it at a time.
pub(super) struct Resolver {
    /// Where the name led last.
    known: RefCell<Vec<SocketAddr>>,
    /// Why the last look-up failed, if it did.
    problem: RefCell<Option<String>>,
    is_looking: RefCell<bool>,
    ended: Notify,
}

impl Resolver {
    pub(super) fn new() -> Rc<Self> {
        let (known, problem, is_looking) = Default::default();
        Rc::new(Self { known, problem, is_looking, ended: Notify::new() })
    }

    /// Where the name led last; empty before it is known.
    pub(super) fn known(&self) -> Vec<SocketAddr> {
        self.known.borrow().clone()
    }

    /// Where the name leads now. While nobody can say, it is where it led last, if that is known: a
    /// pod that is not ready may have no name, and be there. What `look` finds later counts from
    /// then on, and `told` hears it.
    ///
    /// # Errors
    /// The resolver's word, where the name has led nowhere yet.
    pub(super) async fn look_up<F>(
        self: &Rc<Self>,
        look: impl FnOnce() -> F,
        told: impl FnOnce(Result<(), String>) + 'static,
    ) -> Result<Vec<SocketAddr>, String>
    where
        F: Future<Output = Result<Vec<SocketAddr>, String>> + 'static,
    {
        let ended = self.ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        // One that hangs is not joined by another: each takes a thread.
        if !self.is_looking.replace(true) {
            let (resolver, looking) = (self.clone(), look());
            tokio::task::spawn_local(async move {
                told(resolver.take(looking.await));
            });
        }
        if self.known.borrow().is_empty() {
            ended.await;
        } else {
            let _ = timeout(PATIENCE, ended).await;
        }
        let known = self.known();
        match (known.is_empty(), self.problem.borrow().clone()) {
            (true, Some(problem)) => Err(problem),
            _ => Ok(known),
        }
    }

    fn take(&self, found: Result<Vec<SocketAddr>, String>) -> Result<(), String> {
        let problem = match found {
            Ok(found) if !found.is_empty() => {
                self.known.replace(found);
                None
            }
            Ok(_) => Some("it has no address".to_string()),
            Err(problem) => Some(problem),
        };
        self.problem.replace(problem.clone());
        self.is_looking.replace(false);
        self.ended.notify_waiters();
        problem.map_or(Ok(()), Err)
    }
}

/// For the name server, where the name led somewhere before.
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A name server in a time that does not pass by itself.
    struct Server {
        /// How long it takes to answer.
        takes: Duration,
        answer: RefCell<Result<Vec<SocketAddr>, String>>,
        asked: Cell<usize>,
        told: RefCell<Vec<Result<(), String>>>,
    }

    impl Server {
        fn new(takes: u64, answer: Result<Vec<SocketAddr>, String>) -> Rc<Self> {
            Rc::new(Self {
                takes: Duration::from_millis(takes),
                answer: RefCell::new(answer),
                asked: Cell::new(0),
                told: RefCell::default(),
            })
        }

        async fn ask(self: &Rc<Self>, resolver: &Rc<Resolver>) -> Result<Vec<SocketAddr>, String> {
            let (server, hears) = (self.clone(), self.clone());
            let look = || {
                server.asked.set(server.asked.get() + 1);
                let answer = server.answer.borrow().clone();
                let takes = server.takes;
                async move {
                    tokio::time::sleep(takes).await;
                    answer
                }
            };
            resolver.look_up(look, move |what| hears.told.borrow_mut().push(what)).await
        }
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    fn at(last: u8) -> Vec<SocketAddr> {
        vec![SocketAddr::from(([10, 0, 0, last], 29_500))]
    }

    #[test]
    fn an_answer_that_takes_longer_than_an_attempt_counts_when_it_comes() {
        run(async {
            let (resolver, server) = (Resolver::new(), Server::new(5_000, Ok(at(7))));
            assert_eq!(server.ask(&resolver).await, Ok(at(7)), "the first is waited for");
            *server.answer.borrow_mut() = Ok(at(9));
            let began = tokio::time::Instant::now();
            let mut attempts = 0;
            while server.ask(&resolver).await == Ok(at(7)) {
                assert!(began.elapsed() < Duration::from_secs(20), "it is never taken");
                attempts += 1;
            }
            assert!((2..8).contains(&attempts), "{attempts}");
            assert!(began.elapsed() >= Duration::from_secs(5));
            // One at a time, so that no threads pile up in the system.
            assert_eq!(server.asked.get(), 2);
            assert_eq!(*server.told.borrow(), [Ok(()), Ok(())]);
        });
    }

    #[test]
    fn a_name_that_is_unknown_by_now_leads_where_it_led() {
        run(async {
            let (resolver, server) = (Resolver::new(), Server::new(5, Err("no such name".into())));
            assert_eq!(server.ask(&resolver).await, Err("no such name".into()));
            *server.answer.borrow_mut() = Ok(at(7));
            assert_eq!(server.ask(&resolver).await, Ok(at(7)));
            *server.answer.borrow_mut() = Ok(Vec::new());
            assert_eq!(server.ask(&resolver).await, Ok(at(7)));
            let told = server.told.borrow().clone();
            assert_eq!(told[2], Err("it has no address".into()));
        });
    }
}
