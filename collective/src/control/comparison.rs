//! Two ranks whose calls differ find out from where on: the questions and answers between them.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::endpoint::{Control, Message};
use super::running::in_turns;
use crate::group::{self, Shown, Trail};
use crate::world::World;

/// The calls of this rank and of `peer` differ: asks that one, or has it ask, and tells what is known
/// if nothing comes of it.
pub(super) fn begin(control: &Rc<Control>, world: &Arc<World>, peer: u32, group: u64) {
    let is_linked = control.links.borrow().get(&peer).is_some_and(|link| !link.is_closed());
    let question = match world.rank < peer {
        true => world.trail(peer).map(Message::Trail),
        false => Some(Message::Differs { group }),
    };
    let Some(question) = question.filter(|_| is_linked) else { return world.end_doubt() };
    control.post(peer, question);
    // The verdict of the lower one is to be the first.
    let limit = if world.rank < peer { ANSWER_LIMIT } else { 2 * ANSWER_LIMIT };
    let world = world.clone();
    tokio::task::spawn_local(async move {
        in_turns(limit).await;
        world.end_doubt();
    });
}

/// `peer` says that its calls differ from this rank's.
pub(super) fn hear(control: &Control, world: &World, peer: u32, group: u64) {
    if let Some(trail) = world.hear_of_difference(peer, group) {
        control.post(peer, Message::Trail(trail));
    }
}

/// `peer` shows what calls it has made: says where this rank's differ.
pub(super) fn answer(control: &Control, world: &World, peer: u32, trail: &Trail) {
    if let Some(calls) = world.answer_judge(peer, trail) {
        let calls = calls.iter().map(group::to_bytes).collect();
        control.post(peer, Message::Calls { group: trail.group, calls });
    }
}

/// `peer` has said where its calls differ.
pub(super) fn conclude(world: &World, peer: u32, group: u64, calls: &[Vec<u8>]) {
    let calls = calls.iter().take(MAX_SHOWN).map_while(|bytes| group::from_bytes(bytes));
    world.note_answer(peer, group, &calls.collect::<Vec<Shown>>());
}

/// A round trip, and a rank that is not scheduled for a while; what is known can be told within the
/// three seconds in which a rank's loss is, too.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// The first call that differs, and the last that both have made.
const MAX_SHOWN: usize = 2;
