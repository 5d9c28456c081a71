//! Goodbyes that ranks pass on, in worlds where not all have a link to each other: which are new
//! here, and which wait for their origin's own word. Pure.
//!
//! A rank with a link to the origin takes its goodbyes from itself. What others say of it is kept
//! for the case that its own words are lost with the link.

use std::collections::{HashMap, HashSet, VecDeque};

use super::endpoint::Message;

/// Whose goodbye: on a communicator, or to the world.
pub(super) type Word = (u32, Option<u64>);

#[derive(Default)]
pub(super) struct Hearsay {
    known: HashSet<Word>,
    /// The same, the oldest first.
    order: VecDeque<Word>,
    /// What was said of each rank, and by whom, in this order.
    kept: HashMap<u32, Vec<(u32, Message)>>,
    kept_words: HashSet<Word>,
    /// Ranks that have said everything themselves.
    complete: HashSet<u32>,
}

impl Hearsay {
    /// A goodbye counts here; true the first time.
    pub(super) fn note(&mut self, word: Word) -> bool {
        if !self.known.insert(word) {
            return false;
        }
        self.order.push_back(word);
        if self.order.len() > MAX_KNOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    /// Whether a goodbye that is passed on says nothing new.
    pub(super) fn is_stale(&self, word: Word) -> bool {
        self.complete.contains(&word.0) || self.known.contains(&word)
    }

    /// Keeps what rank `from` says of a rank that is to say it itself.
    pub(super) fn keep(&mut self, from: u32, word: Word, message: Message) {
        if self.kept_words.len() < MAX_KEPT && self.kept_words.insert(word) {
            self.kept.entry(word.0).or_default().push((from, message));
        }
    }

    /// What was kept of a rank that says no more itself.
    pub(super) fn take(&mut self, origin: u32) -> Vec<(u32, Message)> {
        let kept = self.kept.remove(&origin).unwrap_or_default();
        for word in kept.iter().filter_map(|(_, message)| word_of(message)) {
            self.kept_words.remove(&word);
        }
        kept
    }

    /// A rank has said everything itself: what others say of it is of no interest any more.
    pub(super) fn complete(&mut self, origin: u32) {
        self.complete.insert(origin);
        self.take(origin);
    }
}

/// What a message says goodbye to.
pub(super) fn word_of(message: &Message) -> Option<Word> {
    match message {
        Message::Goodbye { origin, group, .. } => Some((*origin, Some(*group))),
        Message::Leave { origin } => Some((*origin, None)),
        _ => None,
    }
}

/// A goodbye goes round in milliseconds; it is known for as long as so many others have come.
const MAX_KNOWN: usize = 65_536;
/// A rank's own word comes within milliseconds of another's.
const MAX_KEPT: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn goodbye(origin: u32, group: u64) -> Message {
        Message::Goodbye { origin, group, members: vec![0, origin], calls: 3, hash: 7 }
    }

    fn keep(hearsay: &mut Hearsay, from: u32, message: Message) {
        let word = word_of(&message).unwrap();
        if !hearsay.is_stale(word) {
            hearsay.keep(from, word, message);
        }
    }

    fn taken(hearsay: &mut Hearsay, origin: u32) -> Vec<(u32, Word)> {
        let kept = hearsay.take(origin);
        kept.iter().map(|(from, message)| (*from, word_of(message).unwrap())).collect()
    }

    #[test]
    fn a_goodbye_counts_once_for_as_long_as_it_may_go_round() {
        let mut hearsay = Hearsay::default();
        assert!(hearsay.note((9, Some(1))));
        assert!(!hearsay.note((9, Some(1))));
        assert!(hearsay.note((9, None)));
        for group in 2..=MAX_KNOWN as u64 {
            assert!(hearsay.note((9, Some(group))));
        }
        assert!(hearsay.is_stale((9, None)));
        assert!(!hearsay.is_stale((9, Some(1))), "the oldest is forgotten");
        assert_eq!((hearsay.known.len(), hearsay.order.len()), (MAX_KNOWN, MAX_KNOWN));
    }

    #[test]
    fn what_others_said_of_a_rank_is_kept_in_order_until_it_has_said_everything_itself() {
        let mut hearsay = Hearsay::default();
        for from in [4, 5] {
            keep(&mut hearsay, from, goodbye(9, 2));
            keep(&mut hearsay, from, goodbye(9, 1));
            keep(&mut hearsay, from, Message::Leave { origin: 9 });
            keep(&mut hearsay, from, goodbye(8, 1));
        }
        assert_eq!(taken(&mut hearsay, 9), [(4, (9, Some(2))), (4, (9, Some(1))), (4, (9, None))]);
        assert_eq!(taken(&mut hearsay, 9), []);
        hearsay.complete(8);
        keep(&mut hearsay, 4, Message::Leave { origin: 8 });
        assert_eq!(taken(&mut hearsay, 8), []);
        assert!(hearsay.kept_words.is_empty());
    }

    #[test]
    fn no_more_is_kept_than_a_limit() {
        let mut hearsay = Hearsay::default();
        for group in 0..100_000 {
            keep(&mut hearsay, 4, goodbye(9, group));
        }
        assert_eq!(taken(&mut hearsay, 9).len(), MAX_KEPT);
    }
}
