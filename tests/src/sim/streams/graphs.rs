//! The graphs, and the operators that are not in every program.

use std::time::Duration;

use tidemill::topology::{
    Context, FiredTimer, Int64, Keyed, MapState, Operator, OperatorError, SideOutput, States,
    TimeDomain, Topology, Utf8, ValueState,
};

use super::item::{Item, Items, Mood};
use super::{Flow, Streams, TIMER_MS_MAX, WindowRules};

/// The graph of a flow.
pub(super) fn graph(flow: Flow, streams: &Streams) -> Topology {
    let has_calls = streams.has_calls;
    let topology = Topology::new(flow.name());
    topology.dead_letter(&flow.dead_letter());
    match flow {
        Flow::Count => count(&topology, has_calls),
        Flow::Rekey => rekey(&topology, has_calls),
        Flow::Windows => windows(&topology, &streams.rules, has_calls),
        Flow::Timers => timers(&topology, has_calls),
        Flow::Chain => chain(&topology, has_calls),
    }
    topology
}

/// Passes items on, but for those that want to fail.
fn moody(keyed: &Keyed<Utf8, Item>, has_calls: bool) -> Keyed<Utf8, Item> {
    match has_calls {
        true => keyed.blocking("moody", Items, Items, |_, item| act(item)),
        false => keyed.process("moody", Moody::new()),
    }
}

/// What a blocking call does with an item.
fn act(item: &Item) -> Result<Item, OperatorError> {
    match item.mood() {
        Mood::Error => Err("as asked".into()),
        Mood::Panic => panic!("as asked"),
        Mood::Fine | Mood::PanicAtOnce | Mood::Undecodable => Ok(item.clone()),
    }
}

fn count(topology: &Topology, has_calls: bool) {
    let keyed = topology.source(&Flow::Count.source(), Items).partitioned_by_key(Utf8);
    moody(&keyed, has_calls).count("count").sink(&Flow::Count.sink(), Int64);
}

fn rekey(topology: &Topology, has_calls: bool) {
    let keyed = topology.source(&Flow::Rekey.source(), Items).flat_map(Item::parts).key_by(
        "anew",
        Utf8,
        Items,
        Item::new_key,
    );
    moody(&keyed, has_calls).count("count").sink(&Flow::Rekey.sink(), Int64);
}

fn windows(topology: &Topology, rules: &WindowRules, has_calls: bool) {
    let milliseconds = |ms: i64| Duration::from_millis(ms.unsigned_abs());
    let source = topology.source(&Flow::Windows.source(), Items).event_time(
        Item::time_ms,
        milliseconds(rules.lateness_ms),
        rules.idle_after_ms.map(Duration::from_millis),
    );
    let keyed = match rules.is_keyed_anew {
        true => source.key_by("anew", Utf8, Items, Item::new_key),
        false => source.partitioned_by_key(Utf8),
    };
    let keyed = if has_calls { moody(&keyed, true) } else { keyed };
    let late = SideOutput::new();
    let counted = keyed
        .window(rules.windows)
        .allowed_lateness(milliseconds(rules.allowed_lateness_ms))
        .late_to(&late)
        .count("windows");
    let late_topic = Flow::Windows.other().expect("it has one");
    late.stream(&counted).sink(&late_topic, Items);
    counted
        .map(|_, window| format!("{} {} {}", window.start_ms, window.end_ms, window.value))
        .sink(&Flow::Windows.sink(), Utf8);
}

fn timers(topology: &Topology, has_calls: bool) {
    let keyed = topology.source(&Flow::Timers.source(), Items).partitioned_by_key(Utf8);
    moody(&keyed, has_calls).process("remind", Remind::new()).sink(&Flow::Timers.sink(), Utf8);
}

fn chain(topology: &Topology, has_calls: bool) {
    let middle = Flow::Chain.other().expect("it has one");
    let keyed = topology
        .source(&Flow::Chain.source(), Items)
        .filter(Item::passes_filter)
        .through(&middle, Items)
        .key_by("anew", Utf8, Items, Item::new_key);
    moody(&keyed, has_calls).count("count").sink(&Flow::Chain.sink(), Int64);
}

/// Passes items on, and then fails or panics over those that want it: what was done until then must
/// leave no trace.
struct Moody {
    seen: ValueState<Int64>,
}

impl Moody {
    fn new() -> Self {
        Self { seen: ValueState::new("seen", Int64) }
    }
}

impl Operator for Moody {
    type Key = String;
    type In = Item;
    type Out = Item;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.seen);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, Item>,
        _key: &String,
        item: Item,
    ) -> Result<(), OperatorError> {
        let seen = self.seen.get(context)?.unwrap_or(0) + 1;
        self.seen.set(context, &seen)?;
        let mood = item.mood();
        context.emit(item);
        match mood {
            Mood::Error => Err("as asked".into()),
            Mood::Panic => panic!("as asked"),
            Mood::Fine | Mood::PanicAtOnce | Mood::Undecodable => Ok(()),
        }
    }
}

/// Numbers the records of a key, and tells each number when its time has come: the number, when it
/// was due, and when it was told. A timer that fires for none tells of zero.
struct Remind {
    count: ValueState<Int64>,
    /// When each number is due.
    due: MapState<Int64, Int64>,
}

impl Remind {
    fn new() -> Self {
        Self { count: ValueState::new("count", Int64), due: MapState::new("due", Int64, Int64) }
    }
}

impl Operator for Remind {
    type Key = String;
    type In = Item;
    type Out = String;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.count);
        states.declare(&self.due);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        item: Item,
    ) -> Result<(), OperatorError> {
        let number = self.count.get(context)?.unwrap_or(0) + 1;
        self.count.set(context, &number)?;
        let due_ms = context.now_ms() + item.time_ms().rem_euclid(TIMER_MS_MAX);
        self.due.insert(context, &number, &due_ms)?;
        context.set_timer(TimeDomain::Processing, due_ms);
        Ok(())
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        let mut due = self.due.entries(context)?;
        due.retain(|(_, due_ms)| *due_ms == timer.time_ms);
        if due.is_empty() {
            due.push((0, timer.time_ms));
        }
        for (number, due_ms) in due {
            self.due.remove(context, &number)?;
            let told_ms = context.now_ms();
            context.emit(format!("{number} {due_ms} {told_ms}"));
        }
        Ok(())
    }
}
