//! A channel whose receiver can be polled beside sockets and pipes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;

use rustix::event::{EventfdFlags, eventfd};

/// Opens a mailbox.
pub(crate) fn mailbox<T>() -> io::Result<(Sender<T>, Receiver<T>)> {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (letters, slot) = mpsc::channel();
    let sender = Sender { letters: Some(letters), bell: bell.clone() };
    Ok((sender, Receiver { slot, bell }))
}

/// The end that never blocks.
pub(crate) struct Sender<T> {
    letters: Option<mpsc::Sender<T>>,
    bell: Arc<OwnedFd>,
}

impl<T> Sender<T> {
    /// Leaves a letter; lost where the receiver is gone.
    pub(crate) fn send(&self, letter: T) {
        if let Some(letters) = &self.letters {
            let _ = letters.send(letter);
        }
        self.ring();
    }

    fn ring(&self) {
        // It fails only when the counter is full, and then the bell rings already.
        let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // The channel must be closed before the bell, or the receiver would sleep again.
        self.letters = None;
        self.ring();
    }
}

/// The end that polls.
pub(crate) struct Receiver<T> {
    slot: mpsc::Receiver<T>,
    bell: Arc<OwnedFd>,
}

impl<T> Receiver<T> {
    /// What is readable when there is something to take.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// All letters so far, and whether the sender is gone.
    pub(crate) fn take(&self) -> (Vec<T>, bool) {
        let _ = rustix::io::read(&*self.bell, &mut [0_u8; 8]);
        let mut letters = Vec::new();
        loop {
            match self.slot.try_recv() {
                Ok(letter) => letters.push(letter),
                Err(mpsc::TryRecvError::Empty) => return (letters, false),
                Err(mpsc::TryRecvError::Disconnected) => return (letters, true),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_sender_is_noticed_after_its_last_letter() {
        let (sender, receiver) = mailbox().unwrap();
        sender.send(1);
        sender.send(2);
        assert_eq!(receiver.take(), (vec![1, 2], false));
        drop(sender);
        assert_eq!(receiver.take(), (vec![], true));
    }
}
