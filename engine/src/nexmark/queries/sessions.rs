//! Queries for what a bidder does in a while: q11, q12.

use std::time::Duration;

use ::nexmark::event::Bid;
use serde::{Deserialize, Serialize};

use super::{Number, bids};
use crate::topology::{
    Context, FiredTimer, Json, Operator, OperatorError, States, TimeDomain, Topology, ValueState,
    Windows,
};

/// A session ends when its bidder was silent for this long.
const GAP: Duration = Duration::from_secs(10);

/// Length of the windows of q12 on the clock, in milliseconds.
const CLOCK_WINDOW_MS: i64 = 10_000;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Activity {
    bidder: usize,
    bid_count: i64,
    starttime: i64,
    endtime: i64,
}

/// All that these queries have to know of a bid on its way to another shard.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Made {
    bidder: usize,
}

pub(super) fn q11(topology: &Topology, to: &str) {
    bids(topology)
        .map(|Bid { bidder, .. }| Made { bidder })
        .key_by("bidder", Number, Json::<Made>::new(), |bid| bid.bidder)
        .window(Windows::session(GAP))
        .count("sessions")
        .map(|bidder, session| Activity {
            bidder: *bidder,
            bid_count: session.value,
            starttime: session.start_ms,
            endtime: session.end_ms,
        })
        .sink(to, Json::<Activity>::new());
}

pub(super) fn q12(topology: &Topology, to: &str) {
    let open = ValueState::new("open", Json::new());
    bids(topology)
        .map(|Bid { bidder, .. }| Made { bidder })
        .key_by("bidder", Number, Json::<Made>::new(), |bid| bid.bidder)
        .process("by the clock", ByTheClock { open })
        .sink(to, Json::<Activity>::new());
}

/// Counts in windows of the step's clock, which never goes back: a bidder has one at a time.
struct ByTheClock {
    open: ValueState<Json<Activity>>,
}

impl Operator for ByTheClock {
    type Key = usize;
    type In = Made;
    type Out = Activity;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.open);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, Activity>,
        bidder: &usize,
        _bid: Made,
    ) -> Result<(), OperatorError> {
        let starttime = context.now_ms().div_euclid(CLOCK_WINDOW_MS) * CLOCK_WINDOW_MS;
        let endtime = starttime + CLOCK_WINDOW_MS;
        let open = self.open.get(context)?;
        let mut activity = match open {
            Some(open) if open.starttime == starttime => open,
            other => {
                // Its time is over, and its timer had no turn yet.
                if let Some(over) = other {
                    context.forget_timer(TimeDomain::Processing, over.endtime);
                    let last_ms = over.endtime - 1;
                    context.emit_at(over, last_ms);
                }
                context.set_timer(TimeDomain::Processing, endtime);
                Activity { bidder: *bidder, bid_count: 0, starttime, endtime }
            }
        };
        activity.bid_count += 1;
        self.open.set(context, &activity)
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, Activity>,
        _bidder: &usize,
        timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        let open = self.open.get(context)?;
        if let Some(over) = open.filter(|open| open.endtime <= timer.time_ms) {
            self.open.clear(context)?;
            context.emit(over);
        }
        Ok(())
    }
}
