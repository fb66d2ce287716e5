//! Blocking calls of topologies: asked for when what they are about is durable, and taken in their
//! turn when they have ended.

use super::{Turn, Wired};
use crate::effect::{CallId, CallResult, Effect};
use crate::shard::{Outgoing, Shard};
use crate::topology::Taken;

/// Blocking calls of a topology that a shard has open at once. The others wait, and no thread would
/// make them sooner.
const OPEN_MAX: usize = 64;

impl Shard {
    /// Takes results that wait. They are taken however little other shards follow, for two that both
    /// waited with theirs would wait for each other.
    pub(super) fn take_results(
        &mut self,
        wired: &mut Wired,
        room: usize,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Turn {
        let mut turn = Turn::Nothing;
        let mut count = 0;
        while wired.task.has_results() {
            if !goes_on() {
                turn = Turn::Full;
                break;
            }
            match wired.task.take_result(&mut self.state, room) {
                Some(Taken::Done) => (turn, count) = (Turn::Took, count + 1),
                Some(Taken::NoRoom) => {
                    turn = Turn::Full;
                    break;
                }
                None => break,
            }
        }
        wired.course.on_calls(count);
        turn
    }

    /// Lets calls be made, as many as may be open. Each is for a record of the state, so it leaves when
    /// the newest frame is durable, as everything does that depends on one.
    pub(super) fn ask_calls(&mut self, index: usize, wired: &mut Wired, effects: &mut Vec<Effect>) {
        while self.topologies.hosted[index].calls_open < OPEN_MAX {
            let Some(asked) = wired.task.next_call(&self.state) else { break };
            self.topologies.hosted[index].calls_open += 1;
            let call = CallId { topology: index, wiring: wired.number, number: asked.number };
            self.hold(Outgoing::Call(call, asked.request), effects);
        }
    }

    /// A call has ended. Its result waits for its turn, if the wiring is still there that asked for it.
    pub(in crate::shard) fn on_called(&mut self, call: CallId, result: CallResult) {
        let hosted = &mut self.topologies.hosted[call.topology];
        assert!(hosted.calls_open > 0, "a call ends once");
        hosted.calls_open -= 1;
        let wired = hosted.wired.as_mut().filter(|wired| wired.number == call.wiring);
        if let Some(wired) = wired {
            wired.task.on_result(call.number, result);
        }
    }
}
