//! Several ways to one peer, tried side by side: the first on which it proves who it is goes on to
//! the hello.
//!
//! The staggered starts are those of RFC 8305, 5. Hellos follow one after another, as a peer takes
//! two of one process for a process that has come back.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use tokio::time::{Instant, sleep_until};

use super::tuning::{GRACE, STAGGER};
use crate::trust::hello::DialError;

/// Tries `count` ways, the first being the best, until the peer is reached on one: `connect`s to
/// it, and `greet`s it there. Both end by themselves. The error is that of the way which came
/// furthest.
pub(super) async fn race<C, W>(
    count: usize,
    connect: impl AsyncFn(usize) -> Result<C, DialError>,
    greet: impl AsyncFn(C) -> Result<W, DialError>,
) -> Result<W, DialError> {
    let mut connecting: Vec<Pin<Box<_>>> = Vec::new();
    let mut greeting: Option<Pin<Box<_>>> = None;
    let mut connected = VecDeque::new();
    let mut failed = Vec::new();
    let mut next = 0;
    let mut start = Instant::now();
    // A peer with a reason against this process has it at each of its addresses.
    let mut give_up = None;
    loop {
        if greeting.is_none()
            && let Some(connection) = connected.pop_front()
        {
            greeting = Some(Box::pin(greet(connection)));
        }
        let waits = greeting.is_some() || !connecting.is_empty();
        if next == count && !waits {
            return Err(furthest(failed));
        }
        let may_start = next < count && greeting.is_none();
        tokio::select! {
            biased;
            outcome = first_of(&mut connecting) => match outcome {
                Ok(connection) => connected.push_back(connection),
                Err(error) => {
                    give_up = give_up.or_else(|| is_a_reason(&error).then(deadline));
                    // One that is busy is not asked again at once at its other addresses.
                    if !matches!(error, DialError::Busy(_)) {
                        start = Instant::now();
                    }
                    failed.push(error);
                }
            },
            outcome = async {
                match &mut greeting {
                    Some(greeting) => greeting.await,
                    None => pending().await,
                }
            } => {
                greeting = None;
                match outcome {
                    Ok(welcomed) => return Ok(welcomed),
                    Err(error) => {
                        give_up = give_up.or_else(|| is_a_reason(&error).then(deadline));
                        failed.push(error);
                        start = Instant::now();
                    }
                }
            }
            () = sleep_until(start), if may_start => {
                connecting.push(Box::pin(connect(next)));
                next += 1;
                start = Instant::now() + STAGGER;
            }
            () = until(give_up), if greeting.is_none() => return Err(furthest(failed)),
        }
    }
}

/// What the first one to end comes to; it is taken out.
async fn first_of<F: Future>(all: &mut Vec<Pin<Box<F>>>) -> F::Output {
    poll_fn(|context| {
        for at in 0..all.len() {
            if let Poll::Ready(outcome) = all[at].as_mut().poll(context) {
                drop(all.swap_remove(at));
                return Poll::Ready(outcome);
            }
        }
        Poll::Pending
    })
    .await
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

fn deadline() -> Instant {
    Instant::now() + GRACE
}

fn is_a_reason(error: &DialError) -> bool {
    // Another secret is another job's as likely: the address may be in use there too.
    matches!(error, DialError::Refused(..))
}

/// Of several errors the one that says most; those that say alike are put together.
fn furthest(failed: Vec<DialError>) -> DialError {
    let (mut best, mut reasons) = (None, Vec::new());
    let rank = |error: &DialError| match error {
        DialError::Refused(..) => 3,
        DialError::Final(_) => 2,
        DialError::Elsewhere(_) => 1,
        DialError::Retry(_) | DialError::Busy(_) => 0,
    };
    let is_alone = failed.len() == 1;
    for error in failed {
        match error {
            DialError::Retry(reason) | DialError::Busy(reason) => reasons.push(reason),
            // The others may be the right ones, and only late.
            DialError::Elsewhere(reason) if !is_alone => reasons.push(reason),
            error if best.as_ref().is_none_or(|best| rank(best) < rank(&error)) => {
                best = Some(error);
            }
            _ => {}
        }
    }
    best.unwrap_or_else(|| {
        reasons.dedup();
        DialError::Retry(reasons.join("; "))
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use super::*;

    /// Of milliseconds.
    const LIMIT: u64 = 3_000;

    /// What a way does, and after how many milliseconds.
    #[derive(Clone, Copy)]
    enum Way {
        Silent,
        Fails(u64),
        Elsewhere(u64),
        /// It leads to somebody with another secret.
        Stranger(u64),
        /// It leads to one that takes nobody in for now.
        Busy(u64),
        /// It leads to the peer, which says no.
        Refuses(u64),
        /// Connects, and then never answers.
        Hangs(u64),
        Works(u64),
    }
    use Way::*;

    /// The way that was taken, or the error; which ways were begun, and which were greeted; and how
    /// many milliseconds it took in a time that does not pass by itself.
    fn run(ways: &[Way]) -> (Result<usize, DialError>, Vec<usize>, Vec<usize>, u64) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (begun, greeted) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let sleep = |ms| tokio::time::sleep(Duration::from_millis(ms));
        let connect = async |way: usize| {
            begun.borrow_mut().push(way);
            match ways[way] {
                Silent => {
                    sleep(LIMIT).await;
                    Err(DialError::Retry(format!("way {way} is silent")))
                }
                Fails(ms) => {
                    sleep(ms).await;
                    Err(DialError::Retry(format!("way {way}")))
                }
                Elsewhere(ms) => {
                    sleep(ms).await;
                    Err(DialError::Elsewhere(format!("way {way}")))
                }
                Stranger(ms) => {
                    sleep(ms).await;
                    Err(DialError::Final(format!("way {way}")))
                }
                Busy(ms) => {
                    sleep(ms).await;
                    Err(DialError::Busy(format!("way {way}")))
                }
                Works(ms) | Refuses(ms) | Hangs(ms) => {
                    sleep(ms).await;
                    Ok(way)
                }
            }
        };
        let greet = async |way: usize| {
            greeted.borrow_mut().push(way);
            match ways[way] {
                Hangs(_) => {
                    sleep(LIMIT).await;
                    Err(DialError::Retry(format!("way {way} hangs")))
                }
                Refuses(_) => {
                    Err(DialError::Refused("no".into(), crate::trust::hello::Again::Never))
                }
                _ => Ok(way),
            }
        };
        let (outcome, took) = runtime.block_on(async {
            let began = Instant::now();
            let outcome = race(ways.len(), connect, greet).await;
            (outcome, began.elapsed().as_millis() as u64)
        });
        (outcome, begun.into_inner(), greeted.into_inner(), took)
    }

    #[test]
    fn the_first_way_is_taken_alone_where_it_is_quick() {
        let (outcome, begun, greeted, took) = run(&[Works(20), Works(1), Works(1)]);
        assert_eq!((outcome.unwrap(), begun, greeted), (0, vec![0], vec![0]));
        assert!(took <= 25, "{took}");
    }

    #[test]
    fn a_dead_family_costs_one_stagger() {
        let (outcome, begun, _, took) = run(&[Silent, Works(20), Works(20)]);
        assert_eq!((outcome.unwrap(), begun), (1, vec![0, 1]));
        assert!((120..130).contains(&took), "{took}");
    }

    #[test]
    fn a_way_that_fails_lets_the_next_begin_at_once() {
        let (outcome, _, _, took) = run(&[Fails(0), Elsewhere(0), Fails(1), Works(5)]);
        assert_eq!(outcome.unwrap(), 3);
        assert!(took < 20, "{took}");
    }

    #[test]
    fn only_one_at_a_time_is_greeted_and_one_that_hangs_is_left() {
        let (outcome, _, greeted, _) = run(&[Works(150), Works(60)]);
        assert_eq!((outcome.unwrap(), greeted), (0, vec![0]));
        let (outcome, _, greeted, took) = run(&[Hangs(110), Works(20)]);
        assert_eq!((outcome.unwrap(), greeted), (1, vec![0, 1]));
        assert!((3_000..3_300).contains(&took), "{took}");
    }

    #[test]
    fn a_refusal_is_believed_unless_another_way_leads_to_the_right_one_soon() {
        let (outcome, _, _, took) = run(&[Refuses(5), Silent]);
        assert!(matches!(outcome, Err(DialError::Refused(..))), "{outcome:?}");
        assert!(took < 600, "{took}");
        let (outcome, ..) = run(&[Refuses(5), Works(40)]);
        assert_eq!(outcome.unwrap(), 1);
    }

    #[test]
    fn another_secret_at_one_address_ends_nothing_before_the_others_have_answered() {
        let (outcome, ..) = run(&[Stranger(1), Works(2_000)]);
        assert_eq!(outcome.unwrap(), 1);
        let (outcome, ..) = run(&[Silent, Stranger(1)]);
        assert!(matches!(outcome, Err(DialError::Final(why)) if why == "way 1"));
    }

    #[test]
    fn one_that_is_busy_is_not_asked_everywhere_at_once() {
        let (outcome, _, _, took) = run(&[Busy(1), Busy(1), Works(1)]);
        assert_eq!(outcome.unwrap(), 2);
        assert!((200..230).contains(&took), "{took}");
    }

    #[test]
    fn somebody_else_ends_nothing_while_another_way_may_be_right() {
        let (outcome, ..) = run(&[Elsewhere(1), Silent]);
        assert!(
            matches!(&outcome, Err(DialError::Retry(why)) if why.starts_with("way 0; ")),
            "{outcome:?}"
        );
        let (outcome, ..) = run(&[Elsewhere(1)]);
        assert!(matches!(outcome, Err(DialError::Elsewhere(_))), "{outcome:?}");
    }
}
