use std::collections::BTreeMap;

use bytes::Bytes;
use tidemill_wal::format::ShardId;

use super::*;
use crate::effect::Change;

fn circumstances() -> Circumstances {
    Circumstances {
        now_ms: 1_000,
        shard: ShardId(0),
        shard_count: 1,
        stages: vec![StagePlace { partition_count: 4, first_shard: ShardId(0) }; 4],
        watermarks_ms: vec![i64::MIN; 4],
        seen_before_ms: BTreeMap::new(),
        seed: 7,
        step: 1,
        size_max: 1 << 20,
        stopwatch: None,
    }
}

fn record(key: &str, value: &str) -> Record {
    Record {
        offset: 0,
        timestamp_ms: 5,
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: Vec::new(),
    }
}

/// What a call made, as text; its changes are taken into the state.
fn take(state: &mut State, result: Result<Wanted, Failure>) -> Result<Vec<String>, String> {
    let wanted = result.map_err(|failure| failure.to_string())?;
    for (key, value) in wanted.changes {
        state.apply(Change { key, value });
    }
    let text = |bytes: Option<Bytes>| {
        bytes.map_or("-".to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let shown = |it: Emitted| {
        let (key, value) = (text(it.key), text(it.value));
        format!("{:?} {key}={value} at {}", it.to, it.timestamp_ms)
    };
    Ok(wanted.emitted.into_iter().map(shown).collect())
}

/// One shard's part of a topology without the shard: records and times in, what they make out.
pub(super) struct Trial {
    plan: Plan,
    pub(super) state: State,
    circumstances: Circumstances,
}

impl Trial {
    /// All keys are in one partition.
    pub(super) fn new(topology: Topology) -> Self {
        let plan = topology.build().expect("good");
        let place = StagePlace { partition_count: 1, first_shard: ShardId(0) };
        let circumstances = Circumstances {
            stages: vec![place; plan.stages().count()],
            watermarks_ms: vec![i64::MIN; plan.operators().count()],
            ..circumstances()
        };
        Self { plan, state: State::default(), circumstances }
    }

    /// A record of the first source.
    pub(super) fn record(&mut self, key: &str, value: &str, time_ms: i64) -> Vec<String> {
        self.try_record(0, key, value, time_ms).expect("good")
    }

    /// A record of a source, or why it failed.
    pub(super) fn try_record(
        &mut self,
        source: usize,
        key: &str,
        value: &str,
        timestamp_ms: i64,
    ) -> Result<Vec<String>, String> {
        self.take_record(source, &Record { timestamp_ms, ..record(key, value) })
    }

    /// A record of a source that has no value.
    pub(super) fn tombstone(&mut self, source: usize, key: &str, time_ms: i64) -> Vec<String> {
        let record = Record { timestamp_ms: time_ms, value: None, ..record(key, "") };
        self.take_record(source, &record).expect("good")
    }

    fn take_record(&mut self, source: usize, record: &Record) -> Result<Vec<String>, String> {
        let result = self.plan.on_record(&self.state, &self.circumstances, (source, 0), record);
        take(&mut self.state, result)
    }

    /// Event time has come so far, for one operator after the other: their timers fire.
    pub(super) fn watermark(&mut self, time_ms: i64) -> Vec<String> {
        let operators: Vec<NameId> = self.plan.operators().map(|(id, _)| id).collect();
        let mut told = Vec::new();
        for (index, operator) in operators.into_iter().enumerate() {
            told.extend(self.fire(TimeDomain::Event, operator, time_ms));
            self.circumstances.watermarks_ms[index] = time_ms;
        }
        told
    }

    /// The step's clock says so: timers fire.
    pub(super) fn clock(&mut self, now_ms: i64) -> Vec<String> {
        self.circumstances.now_ms = now_ms;
        let operators: Vec<NameId> = self.plan.operators().map(|(id, _)| id).collect();
        let fire = |operator| self.fire(TimeDomain::Processing, operator, now_ms);
        operators.into_iter().flat_map(fire).collect()
    }

    fn fire(&mut self, domain: TimeDomain, operator: NameId, due_ms: i64) -> Vec<String> {
        let prefix = Timer::prefix(self.plan.id(), domain, operator);
        let mut told = Vec::new();
        loop {
            let next = self.state.range(&prefix).next().and_then(|(key, _)| Timer::decode(key));
            let Some(timer) = next.filter(|timer| timer.time_ms <= due_ms) else { return told };
            let result = self.plan.on_timer(&self.state, &self.circumstances, &timer);
            told.extend(take(&mut self.state, result).expect("good"));
        }
    }

    /// Entries of all states, and timers.
    pub(super) fn entry_count(&self) -> usize {
        self.state.range(&[]).count()
    }
}

fn word_count() -> Plan {
    let topology = Topology::new("words");
    topology
        .source("lines", Utf8)
        .flat_map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .key_by("word", Utf8, Utf8, String::clone)
        .count("count")
        .map(|_, count| count.to_string())
        .sink("counts", Utf8);
    topology.build().expect("good")
}

#[test]
fn words_are_counted_and_each_count_is_told() {
    let plan = word_count();
    let mut state = State::default();
    let mut line = |text: &str| {
        let result = plan.on_record(&state, &circumstances(), (0, 0), &record("k", text));
        take(&mut state, result).expect("good")
    };
    assert_eq!(line("a b a"), ["Sink(0) a=1 at 5", "Sink(0) b=1 at 5", "Sink(0) a=2 at 5"]);
    assert_eq!(line("b"), ["Sink(0) b=2 at 5"]);
    let words: Vec<&str> = plan.sources().chain(plan.stages()).chain(plan.sinks()).collect();
    assert_eq!(words, ["lines", "word", "counts"]);
}

#[test]
fn keys_of_another_shard_are_sent_there_and_counted_on_arrival() {
    let plan = word_count();
    let mut two = Circumstances { shard_count: 2, ..circumstances() };
    let mut state = State::default();
    let sent = plan.on_record(&state, &two, (0, 0), &record("k", "a b c d e f")).expect("good");
    let away: Vec<Emitted> = (sent.emitted.into_iter())
        .filter(|it| matches!(it.to, Destination::Stage { .. }))
        .collect();
    assert!(!away.is_empty() && away.len() < 6, "some words live here and some there");
    two.shard = ShardId(1);
    let Emitted { to: Destination::Stage { stage, partition }, key, value, timestamp_ms, headers } =
        away[0].clone()
    else {
        panic!("filtered above");
    };
    let arrived = Record { offset: 0, timestamp_ms, key, value, headers };
    let result = plan.on_arrival(&state, &two, (stage, partition), &arrived);
    let told = take(&mut state, result).expect("good");
    assert_eq!(told.len(), 1);
    assert!(told[0].ends_with("=1 at 5"), "{told:?}");
}

/// Fails or panics on demand, after it has changed state and emitted.
struct Moody {
    seen: ValueState<Int64>,
}

impl Operator for Moody {
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
        let seen = self.seen.get(context)?.unwrap_or(0) + 1;
        self.seen.set(context, &seen)?;
        context.emit(format!("{value} {seen}"));
        match value.as_str() {
            "fail" => Err("as asked".into()),
            "panic" => panic!("as asked"),
            "timer" => {
                context.set_timer(TimeDomain::Event, 50);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, String>,
        key: &String,
        timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        let seen = self.seen.get(context)?.unwrap_or(0);
        context.emit(format!("{key} rang at {} after {seen}", timer.time_ms));
        Ok(())
    }
}

fn moody() -> Plan {
    let topology = Topology::new("moods");
    topology
        .source("moods", Utf8)
        .partitioned_by_key(Utf8)
        .process("moody", Moody { seen: ValueState::new("seen", Int64) })
        .sink("told", Utf8);
    topology.build().expect("good")
}

#[test]
fn a_failed_or_panicked_call_leaves_no_trace() {
    let plan = moody();
    let mut state = State::default();
    let mut value = |text: &str| {
        let result = plan.on_record(&state, &circumstances(), (0, 0), &record("k", text));
        take(&mut state, result)
    };
    assert_eq!(value("x"), Ok(vec!["Sink(0) k=x 1 at 5".to_owned()]));
    assert_eq!(value("fail"), Err("operator moody: as asked".to_owned()));
    assert_eq!(value("panic"), Err("operator moody panicked: as asked".to_owned()));
    assert_eq!(value("x"), Ok(vec!["Sink(0) k=x 2 at 5".to_owned()]));
}

#[test]
fn a_timer_is_found_by_its_stage_fires_once_and_knows_its_key() {
    let plan = moody();
    let mut state = State::default();
    let result = plan.on_record(&state, &circumstances(), (0, 0), &record("k", "timer"));
    take(&mut state, result).expect("good");
    let prefix = Timer::prefix(plan.id(), TimeDomain::Event, NameId::of(&["moods", "moody"]));
    let timers = |state: &State| -> Vec<Timer> {
        state.range(&prefix).map(|(key, _)| Timer::decode(key).expect("ours")).collect()
    };
    let [timer] = &timers(&state)[..] else { panic!("one is set") };
    let result = plan.on_timer(&state, &circumstances(), timer);
    assert_eq!(
        take(&mut state, result),
        Ok(vec!["Sink(0) k=k rang at 50 after 1 at 50".to_owned()])
    );
    assert!(timers(&state).is_empty());
}

#[test]
fn what_does_not_decode_names_the_source() {
    let plan = word_count();
    let bad = Record { value: Some(Bytes::from_static(&[0xff])), ..record("k", "") };
    let failure =
        plan.on_record(&State::default(), &circumstances(), (0, 0), &bad).expect_err("bad");
    assert!(failure.to_string().starts_with("source lines: not utf-8"), "{failure}");
    let null = Record { value: None, ..record("k", "") };
    let failure =
        plan.on_record(&State::default(), &circumstances(), (0, 0), &null).expect_err("null");
    assert_eq!(failure.to_string(), "source lines: a null where utf-8 is expected");
}

#[test]
fn more_than_a_frame_holds_is_an_error_of_the_operator() {
    let plan = word_count();
    let small = Circumstances { size_max: 100, ..circumstances() };
    let failure = plan
        .on_record(&State::default(), &small, (0, 0), &record("k", "a b c d e f"))
        .expect_err("too much");
    assert!(matches!(failure, Failure::TooLarge { size_max: 100, .. }), "{failure}");
}

#[test]
fn a_bad_graph_is_refused_with_all_that_is_wrong() {
    let topology = Topology::new("");
    let source = topology.source("a", Utf8);
    let _ = topology.source("a", Utf8);
    let keyed = source.partitioned_by_key(Utf8);
    let _ = keyed.count("count");
    let _ = keyed.count("count");
    let Err(BadTopology { faults, .. }) = topology.build() else { panic!("it is bad") };
    let all = faults.join("\n");
    for words in ["read by two sources", "two operators", "a name has 1 to", "two states"] {
        assert!(all.contains(words), "no {words:?} in: {all}");
    }
}

#[test]
fn what_is_too_large_is_told_of_its_operator() {
    let plan = word_count();
    let small = Circumstances { size_max: 100, ..circumstances() };
    let failure = plan
        .on_record(&State::default(), &small, (0, 0), &record("k", "a b c d e f"))
        .expect_err("too much");
    assert!(failure.to_string().starts_with("operator count made "), "{failure}");
}

#[test]
fn a_stream_is_split_by_what_is_true_of_its_values() {
    let topology = Topology::new("splits");
    let source = topology.source("in", Utf8);
    let (short, long) = source.split(|value| value.len() < 2);
    let (digits, words) = long.split(|value| value.parse::<u32>().is_ok());
    short.sink("short", Utf8);
    digits.sink("digits", Utf8);
    let (loud, quiet) =
        words.key_by("word", Utf8, Utf8, String::clone).split(|key, _| key.ends_with('!'));
    loud.sink("loud", Utf8);
    quiet.sink("quiet", Utf8);
    let mut trial = Trial::new(topology);
    let told = ["a", "12", "abc", "no!"].map(|value| trial.record("k", value, 5).concat());
    let expected = ["Sink(0) k=a", "Sink(1) k=12", "Sink(3) abc=abc", "Sink(2) no!=no!"];
    assert_eq!(told, expected.map(|line| format!("{line} at 5")));
}

#[test]
fn values_with_a_key_get_another_one() {
    let topology = Topology::new("keys");
    topology
        .source("in", Utf8)
        .partitioned_by_key(Utf8)
        .count("first")
        .key_by("sum", Utf8, Int64, |key, count| format!("{}{count}", &key[..1]))
        .count("second")
        .map(|_, count| count.to_string())
        .sink("out", Utf8);
    let mut trial = Trial::new(topology);
    let told = ["ab", "ac", "ab"].map(|key| trial.record(key, "x", 5).concat());
    assert_eq!(told, ["a1=1", "a1=2", "a2=1"].map(|line| format!("Sink(0) {line} at 5")));
}

/// Sends what it gets to its main way out and to a side, now and when its timer fires.
struct Forks {
    side: SideOutput<String>,
}

impl Operator for Forks {
    type Key = String;
    type In = String;
    type Out = String;

    fn on_record(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        value: String,
    ) -> Result<(), OperatorError> {
        context.set_timer(TimeDomain::Event, context.timestamp_ms());
        context.set_timer(TimeDomain::Processing, context.now_ms());
        context.emit_to(&self.side, value.clone());
        context.emit(value);
        Ok(())
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        _timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        assert!(context.headers().is_empty());
        context.emit_to(&self.side, "later".to_owned());
        context.emit("later".to_owned());
        Ok(())
    }
}

#[test]
fn headers_go_with_all_that_a_record_leads_to_and_with_no_timer() {
    let topology = Topology::new("traces");
    let side = SideOutput::new();
    let source = topology.source("in", Utf8);
    let forked = source
        .flat_map(|value| [value.clone(), value])
        .key_by("value", Utf8, Utf8, String::clone)
        .process("forks", Forks { side: side.clone() });
    forked.through("middle", Utf8).sink("out", Utf8);
    side.stream(&forked).sink("side", Utf8);
    let plan = topology.build().expect("good");
    let headers: Headers = [("traceparent", "00-1-2-01"), ("tracestate", "a=b"), ("other", "")]
        .map(|(name, value)| (Bytes::from(name), Some(Bytes::from(value))))
        .into();
    let mut state = State::default();
    let mut shown = Vec::new();
    let mut show = |state: &mut State, result: Result<Wanted, Failure>| {
        let wanted = result.expect("good");
        for (key, value) in wanted.changes {
            state.apply(Change { key, value });
        }
        for it in &wanted.emitted {
            assert!(it.headers == headers || it.headers.is_empty());
            let value = String::from_utf8_lossy(it.value.as_deref().unwrap_or_default());
            shown.push(format!("{:?} {value} with {}", it.to, it.headers.len()));
        }
        wanted.emitted
    };
    // The record is read where its key is not.
    let here = Circumstances { shard_count: 2, ..circumstances() };
    let there = Circumstances { shard: ShardId(1), ..here.clone() };
    let (_, shard) = here.place(0, b"v");
    let (near, far) = if shard == here.shard { (&there, &here) } else { (&here, &there) };
    let input = Record { headers: headers.clone(), ..record("k", "v") };
    let result = plan.on_record(&state, near, (0, 0), &input);
    for it in show(&mut state, result) {
        let Destination::Stage { stage, partition } = it.to else { panic!("{:?}", it.to) };
        let Emitted { key, value, timestamp_ms, headers, .. } = it;
        let arrived = Record { offset: 0, timestamp_ms, key, value, headers };
        let result = plan.on_arrival(&state, far, (stage, partition), &arrived);
        for it in show(&mut state, result).into_iter().filter(|it| it.to == Destination::Sink(0)) {
            // Through the topic in the middle.
            let Emitted { key, value, timestamp_ms, headers, .. } = it;
            let read = Record { offset: 0, timestamp_ms, key, value, headers };
            let result = plan.on_record(&state, near, (1, 0), &read);
            show(&mut state, result);
        }
    }
    for domain in [TimeDomain::Event, TimeDomain::Processing] {
        let prefix = Timer::prefix(plan.id(), domain, NameId::of(&["traces", "forks"]));
        let timer = state.range(&prefix).next().and_then(|(key, _)| Timer::decode(key));
        let result = plan.on_timer(&state, far, &timer.expect("it is set"));
        show(&mut state, result);
    }
    let stage = shown[0].clone();
    assert!(stage.starts_with("Stage { stage: 0, ") && stage.ends_with("} v with 3"), "{stage}");
    let each = ["Sink(2) v with 3", "Sink(0) v with 3", "Sink(1) v with 3"];
    let late = ["Sink(2) later with 0", "Sink(0) later with 0"];
    let twice = [&stage[..]; 2];
    let expected = [&twice[..], &each[..], &each[..], &late[..], &late[..]].concat();
    assert_eq!(shown, expected);
}

/// Emits its value at a time that the value says, and sets a timer for it.
struct Stray;

impl Operator for Stray {
    type Key = String;
    type In = String;
    type Out = String;

    fn on_record(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        value: String,
    ) -> Result<(), OperatorError> {
        let (word, time) = value.split_once(' ').ok_or("two words")?;
        let time_ms = time.parse()?;
        match word {
            "emit" => context.emit_at(value, time_ms),
            _ => context.set_timer(TimeDomain::Event, time_ms),
        }
        Ok(())
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        context.emit(timer.time_ms.to_string());
        Ok(())
    }
}

#[test]
fn what_operators_make_has_times_that_records_may_have() {
    let topology = Topology::new("strays");
    let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
    keyed.process("stray", Stray).sink("out", Utf8);
    let mut trial = Trial::new(topology);
    for time_ms in [i64::MIN, -TIME_MS_MAX - 1, TIME_MS_MAX + 1, i64::MAX] {
        let failure = trial.try_record(0, "k", &format!("emit {time_ms}"), 0).expect_err("beyond");
        assert!(failure.starts_with(&format!("operator stray: the time {time_ms} is ")));
    }
    let told = trial.record("k", &format!("emit {TIME_MS_MAX}"), 0);
    assert_eq!(told, [format!("Sink(0) k=emit {TIME_MS_MAX} at {TIME_MS_MAX}")]);
    trial.record("k", &format!("timer {}", i64::MIN), 0);
    let told = trial.watermark(0);
    assert_eq!(told, [format!("Sink(0) k={} at {}", i64::MIN, -TIME_MS_MAX)]);
}

#[test]
fn shards_are_told_of_event_time_only_where_somebody_uses_it() {
    let topology = Topology::new("timed");
    let source = topology.source("in", Utf8);
    let counted = source.key_by("counted", Utf8, Utf8, String::clone).count("count");
    let again = counted.map(|_, count| count.to_string()).pairs().map(|(_, count)| count);
    again.key_by("again", Utf8, Utf8, String::clone).count("recount");
    let windowed = source.key_by("windowed", Utf8, Utf8, String::clone);
    windowed.window(Windows::tumbling(std::time::Duration::from_secs(1))).count("windows");
    let behind = source.key_by("behind", Utf8, Utf8, String::clone).count("first");
    behind.process("own", Told).sink("out", Utf8);
    let plan = topology.build().expect("good");
    let timed: Vec<(&str, bool)> = plan.stages().zip(plan.timed_stages()).collect();
    let expected = [("counted", false), ("again", false), ("windowed", true), ("behind", true)];
    assert_eq!(timed, expected);
}

/// Uses whatever there is.
struct Told;

impl Operator for Told {
    type Key = String;
    type In = i64;
    type Out = String;

    fn on_record(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        _value: i64,
    ) -> Result<(), OperatorError> {
        context.emit(context.watermark_ms().to_string());
        Ok(())
    }
}
#[test]
fn a_window_is_told_once_although_a_record_comes_between_two_timers_that_are_due() {
    use std::sync::Arc;
    let topology = Topology::new("cut");
    let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
    keyed
        .window(Windows::tumbling(std::time::Duration::from_millis(10)))
        .count("window")
        .map(|_, it| format!("{}: {}", it.start_ms, it.value))
        .sink("out", Utf8);
    let plan = Arc::new(topology.build().expect("good"));
    let place = StagePlace { partition_count: 1, first_shard: ShardId(0) };
    let surroundings = Surroundings { shard: ShardId(0), shard_count: 1, stages: vec![place] };
    let now = crate::effect::Now { monotonic_ms: 0, wall_ms: 0 };
    let mut task = Task::new(plan, surroundings, 0, 0);
    let (mut state, room) = (State::default(), 1 << 20);
    task.begin(Step { now, sequence: 1, seed: 1, size_max: room });
    task.times_mut().add_partition(0, 0, i64::MIN, 0);
    let put = |task: &mut Task, state: &mut State, offset: u64, timestamp_ms: i64| {
        let record = Record { offset, timestamp_ms, ..record("k", "x") };
        assert_eq!(task.on_record(state, (0, 0), &record, room), Taken::Done);
    };
    for (offset, time_ms) in [(0, 1), (1, 11), (2, 21), (3, 50)] {
        put(&mut task, &mut state, offset, time_ms);
    }
    // There is time for one timer only.
    let mut calls = 0;
    task.fire(&mut state, room, &mut || {
        calls += 1;
        calls < 2
    });
    put(&mut task, &mut state, 4, 2);
    put(&mut task, &mut state, 5, 12);
    task.fire(&mut state, room, &mut || true);
    let told: Vec<String> = (task.take_made().emitted.into_iter())
        .map(|it| String::from_utf8_lossy(&it.value.expect("a value")).into_owned())
        .collect();
    assert_eq!(told, ["0: 1", "10: 1", "20: 1"]);
}
