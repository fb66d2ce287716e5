//! State that goes when its key is silent for a time.
//!
//! It is a node beside the operator whose state it watches, with timers of its own, so that the
//! operator's timers stay what they are. There is one timer for each key: it is set anew when it
//! finds that records came in between, and not with each of them.

use std::sync::Arc;

use bytes::Bytes;

use super::codec::Time;
use super::context::{Context, Identity, OperatorError};
use super::key::{NameId, TimeDomain, Timer};
use super::run::{Failure, Run};
use super::state::{States, ValueState, remove_all};
use super::stream::{OperatorNode, Origin, Parts};

/// How long the state of a key stays after its last record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimeToLive {
    /// By which time.
    pub(super) domain: TimeDomain,
    /// In milliseconds.
    pub(super) after_ms: i64,
}

/// Watches the state of one operator.
pub(super) struct Expiry {
    identity: Identity,
    /// The operator's name.
    operator: String,
    time_to_live: TimeToLive,
    /// The time of the key's last record.
    touched: ValueState<Time>,
    /// The operator's states.
    states: Vec<NameId>,
}

impl Expiry {
    /// Adds the node that watches the states of an operator.
    pub(super) fn add(
        parts: &mut Parts,
        operator: &str,
        time_to_live: TimeToLive,
        states: Vec<NameId>,
        inputs: Vec<Origin>,
    ) -> Arc<Self> {
        let (topology, name) = (parts.name.clone(), format!("{operator} (ttl)"));
        let identity = Identity {
            topology: NameId::of(&[&topology]),
            operator: NameId::of(&[&topology, &name]),
            name: name.clone(),
            index: parts.operators.len(),
        };
        let touched = ValueState::new("touched", Time);
        States { topology: &topology, operator, declared: &mut parts.states }.declare(&touched);
        let (id, operator) = (identity.operator, operator.to_owned());
        let expiry = Arc::new(Self { identity, operator, time_to_live, touched, states });
        let known = expiry.clone();
        let fire = move |run: &mut Run<'_>, timer: &Timer| {
            let key = Bytes::copy_from_slice(&timer.key);
            run.within(timer.partition, key.clone(), timer.time_ms, |run| {
                known.call(run, &key, |context| known.on_timer(context, timer.time_ms));
            });
        };
        let (fire, uses_event_time) =
            (Box::new(fire), matches!(time_to_live.domain, TimeDomain::Event));
        parts.add_operator(&name, OperatorNode { id, inputs, fire, uses_event_time });
        expiry
    }

    /// A record of the key has come to the operator.
    pub(super) fn on_record(&self, run: &mut Run<'_>, key: &Bytes) {
        self.call(run, key, |context| {
            let TimeToLive { domain, after_ms } = self.time_to_live;
            let now_ms = match domain {
                TimeDomain::Event => context.timestamp_ms(),
                TimeDomain::Processing => context.now_ms(),
            };
            let touched_ms = self.touched.get(context)?;
            if touched_ms.is_none_or(|touched_ms| touched_ms < now_ms) {
                self.touched.set(context, &now_ms)?;
            }
            if touched_ms.is_none() {
                context.set_timer(domain, now_ms.saturating_add(after_ms));
            }
            Ok(())
        });
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, ()>,
        time_ms: i64,
    ) -> Result<(), OperatorError> {
        let Some(touched_ms) = self.touched.get(context)? else { return Ok(()) };
        let ends_ms = touched_ms.saturating_add(self.time_to_live.after_ms);
        if ends_ms > time_ms {
            context.set_timer(self.time_to_live.domain, ends_ms);
            return Ok(());
        }
        self.touched.clear(context)?;
        self.states.iter().for_each(|state| remove_all(context, *state));
        Ok(())
    }

    /// What it does is the operator's, for failures.
    fn call(
        &self,
        run: &mut Run<'_>,
        key: &Bytes,
        act: impl FnOnce(&mut Context<'_, '_, ()>) -> Result<(), OperatorError>,
    ) {
        let out = |_: &mut Run<'_>, (): ()| {};
        run.named(self.identity.index, |run| {
            let identity = &self.identity;
            if let Err(error) = act(&mut Context { run, identity, key, out: &out }) {
                let (operator, reason) = (self.operator.clone(), error.to_string());
                run.fail(Failure::Operator { operator, reason });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::Trial;
    use super::*;
    use crate::topology::{Operator, Topology, Utf8};

    fn counted(domain: TimeDomain) -> Trial {
        let topology = Topology::new("silence");
        let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
        let living = keyed.ttl(domain, Duration::from_millis(10));
        // What is between the stream and the operator changes nothing.
        let living = living.map(|_, value| value).filter(|_, value| value != "none");
        living.count("count").map(|_, count| count.to_string()).sink("out", Utf8);
        Trial::new(topology)
    }

    fn count(trial: &mut Trial, key: &str, time_ms: i64) -> String {
        let told = trial.record(key, "x", time_ms).concat();
        let (_, count) = told.split_once('=').expect("a count");
        count.split_once(' ').expect("and a time").0.to_owned()
    }

    #[test]
    fn the_state_of_a_key_goes_when_event_time_is_so_far_beyond_its_last_record() {
        let mut trial = counted(TimeDomain::Event);
        assert_eq!(count(&mut trial, "k", 0), "1");
        assert_eq!(count(&mut trial, "other", 5), "1");
        assert_eq!(count(&mut trial, "k", 8), "2");
        trial.watermark(14);
        assert_eq!(count(&mut trial, "k", 14), "3", "it was touched at 8");
        assert_eq!(count(&mut trial, "other", 14), "2");
        trial.watermark(23);
        assert_eq!(count(&mut trial, "k", 23), "4");
        trial.watermark(24);
        assert_eq!(count(&mut trial, "other", 24), "1", "14 and 10");
        trial.watermark(33);
        assert_eq!(count(&mut trial, "k", 40), "1");
        trial.watermark(50);
        assert_eq!(trial.entry_count(), 0);
        // A late one is forgotten at once.
        assert_eq!(count(&mut trial, "k", 3), "1");
        trial.watermark(50);
        assert_eq!(trial.entry_count(), 0);
    }

    #[test]
    fn the_state_of_a_key_goes_by_the_clock() {
        let mut trial = counted(TimeDomain::Processing);
        trial.clock(1000);
        assert_eq!(count(&mut trial, "k", 500_000), "1");
        trial.clock(1009);
        assert_eq!(count(&mut trial, "k", 0), "2");
        trial.clock(1018);
        assert_eq!(count(&mut trial, "k", 0), "3");
        trial.clock(1028);
        assert_eq!(trial.entry_count(), 0);
        assert_eq!(count(&mut trial, "k", 0), "1");
    }

    /// Sets a timer for the time at which its state goes.
    struct Alarm {
        seen: ValueState<Utf8>,
    }

    impl Operator for Alarm {
        type Key = String;
        type In = String;
        type Out = String;

        fn declare(&self, states: &mut States<'_>) {
            states.declare(&self.seen);
        }

        fn on_record(
            &self,
            context: &mut Context<'_, '_, String>,
            _key: &String,
            value: String,
        ) -> Result<(), OperatorError> {
            self.seen.set(context, &value)?;
            if value == "alarm" {
                context.set_timer(TimeDomain::Event, context.timestamp_ms() + 10);
            }
            Ok(())
        }

        fn on_timer(
            &self,
            context: &mut Context<'_, '_, String>,
            _key: &String,
            _timer: crate::topology::FiredTimer,
        ) -> Result<(), OperatorError> {
            let seen = self.seen.get(context)?;
            context.emit(format!("{seen:?}"));
            Ok(())
        }
    }

    #[test]
    fn an_operator_gets_its_own_timers_only_and_before_its_state_goes() {
        let topology = Topology::new("silence");
        let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
        let living = keyed.ttl(TimeDomain::Event, Duration::from_millis(10));
        living.process("alarm", Alarm { seen: ValueState::new("seen", Utf8) }).sink("out", Utf8);
        let mut trial = Trial::new(topology);
        trial.record("a", "quiet", 0);
        trial.record("b", "alarm", 0);
        assert_eq!(trial.watermark(10), [r#"Sink(0) b=Some("alarm") at 10"#]);
        assert_eq!(trial.entry_count(), 0);
    }

    #[test]
    fn what_follows_an_operator_lives_on() {
        let topology = Topology::new("silence");
        let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
        let living = keyed.ttl(TimeDomain::Event, Duration::from_millis(10));
        living.count("mortal").count("immortal");
        let mut trial = Trial::new(topology);
        trial.record("k", "x", 0);
        trial.watermark(100);
        assert_eq!(trial.entry_count(), 1);
    }
}
