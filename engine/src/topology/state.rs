//! State of operators: for each key a value, a map, a list, or an aggregate, under a stable name.
//!
//! An operator owns handles, which say name and codec, and declares them; what they hold is the
//! task's, and is reached through the context of a call. Each stored value begins with the version
//! of the codec that wrote it, or with 0 if it is null.

use std::sync::OnceLock;

use bytes::Bytes;

use super::codec::{Codec, CodecError, Int64};
use super::context::{Context, OperatorError};
use super::key::{NameId, behind};

/// What a state is; persisted with its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StateKind {
    /// One value for each key.
    Value = 1,
    /// A map for each key.
    Map = 2,
    /// A list for each key.
    List = 3,
}

impl StateKind {
    /// The kind of a number.
    pub fn of(number: u8) -> Option<Self> {
        [Self::Value, Self::Map, Self::List].into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Whether a codec reads what a version of it wrote.
pub type Reads = Box<dyn Fn(u8) -> bool + Send + Sync>;

/// What a topology says of a state of its.
pub struct Declared {
    /// The operator's name.
    pub operator: String,
    /// Its own.
    pub name: String,
    /// Its identity.
    pub id: NameId,
    /// What it is.
    pub kind: StateKind,
    /// Names of its codecs.
    pub codec: String,
    /// The version that it writes.
    pub version: u8,
    /// Whether it reads what a version wrote.
    pub reads: Reads,
}

/// Takes the declarations of one operator.
pub struct States<'d> {
    pub(super) topology: &'d str,
    pub(super) operator: &'d str,
    pub(super) declared: &'d mut Vec<Declared>,
}

impl States<'_> {
    /// The operator has this state.
    pub fn declare(&mut self, state: &impl Handle) {
        let about = state.about();
        let id = NameId::of(&[self.topology, self.operator, about.name]);
        assert!(about.version != NULL, "versions of codecs count from 1");
        // A handle that is declared again, for the same operator, stays what it is.
        let is_new = about.id.set(id).is_ok();
        if is_new || about.id.get() == Some(&id) {
            self.declared.push(Declared {
                operator: self.operator.to_owned(),
                name: about.name.to_owned(),
                id,
                kind: about.kind,
                codec: about.codec,
                version: about.version,
                reads: about.reads,
            });
        }
    }
}

/// What a handle says of itself.
pub struct About<'h> {
    name: &'h str,
    id: &'h OnceLock<NameId>,
    kind: StateKind,
    codec: String,
    version: u8,
    reads: Reads,
}

/// A handle of any kind of state.
pub trait Handle {
    /// Name, kind and codec.
    fn about(&self) -> About<'_>;
}

/// One value for each key.
#[derive(Debug)]
pub struct ValueState<C> {
    name: String,
    codec: C,
    id: OnceLock<NameId>,
}

impl<C: Codec> ValueState<C> {
    /// Of a name that stays: what is stored is found by it.
    pub fn new(name: impl Into<String>, codec: C) -> Self {
        Self { name: name.into(), codec, id: OnceLock::new() }
    }

    /// The value of the key, if it has one.
    pub fn get<O>(&self, context: &Context<'_, '_, O>) -> Result<Option<C::Value>, OperatorError> {
        let key = context.state_key(id(&self.name, &self.id)?);
        context.stored(&key).map(|stored| decode(&self.codec, stored)).transpose()
    }

    /// Gives the key a value.
    pub fn set<O>(
        &self,
        context: &mut Context<'_, '_, O>,
        value: &C::Value,
    ) -> Result<(), OperatorError> {
        let key = context.state_key(id(&self.name, &self.id)?);
        context.store(key, Some(encode(&self.codec, value)));
        Ok(())
    }

    /// Takes the key's value away.
    pub fn clear<O>(&self, context: &mut Context<'_, '_, O>) -> Result<(), OperatorError> {
        let key = context.state_key(id(&self.name, &self.id)?);
        context.store(key, None);
        Ok(())
    }
}

impl<C: Codec> Handle for ValueState<C> {
    fn about(&self) -> About<'_> {
        let codec = self.codec.clone();
        About {
            name: &self.name,
            id: &self.id,
            kind: StateKind::Value,
            codec: codec.name(),
            version: codec.version(),
            reads: Box::new(move |version| codec.reads(version)),
        }
    }
}

/// A key and a value of a map.
type Entry<K, V> = (<K as Codec>::Value, <V as Codec>::Value);

/// A map for each key. Its entries are apart: what is not touched is not read or written.
#[derive(Debug)]
pub struct MapState<K, V> {
    name: String,
    keys: K,
    values: V,
    id: OnceLock<NameId>,
}

/// Where the entries of a map, or some of them, are in the shard's state.
struct Range {
    /// Bytes before the map's own keys.
    prefix_size: usize,
    from: Vec<u8>,
    to: Vec<u8>,
}

impl<K: Codec, V: Codec> MapState<K, V> {
    /// Of a name that stays. Entries are in the order of their keys' bytes: by number or time if the
    /// codec is [`Time`](super::Time).
    pub fn new(name: impl Into<String>, keys: K, values: V) -> Self {
        Self { name: name.into(), keys, values, id: OnceLock::new() }
    }

    fn key<O>(
        &self,
        context: &Context<'_, '_, O>,
        key: &K::Value,
    ) -> Result<Vec<u8>, OperatorError> {
        let mut bytes = context.state_key(id(&self.name, &self.id)?);
        self.keys.encode(key, &mut bytes);
        Ok(bytes)
    }

    /// From a key on and before another, or from the first, or to the last.
    fn range<O>(
        &self,
        context: &Context<'_, '_, O>,
        from: Option<&K::Value>,
        to: Option<&K::Value>,
    ) -> Result<Range, OperatorError> {
        let prefix = context.state_key(id(&self.name, &self.id)?);
        let border = |key: &K::Value| {
            let mut bytes = prefix.clone();
            self.keys.encode(key, &mut bytes);
            bytes
        };
        Ok(Range {
            prefix_size: prefix.len(),
            from: from.map_or_else(|| prefix.clone(), border),
            to: to.map_or_else(|| behind(&prefix), border),
        })
    }

    fn entry(
        &self,
        range: &Range,
        (key, value): (&[u8], &[u8]),
    ) -> Result<Entry<K, V>, OperatorError> {
        let key = self.keys.decode(&Bytes::copy_from_slice(&key[range.prefix_size..]))?;
        Ok((key, decode(&self.values, value)?))
    }

    /// An entry's value.
    pub fn get<O>(
        &self,
        context: &Context<'_, '_, O>,
        key: &K::Value,
    ) -> Result<Option<V::Value>, OperatorError> {
        let key = self.key(context, key)?;
        context.stored(&key).map(|stored| decode(&self.values, stored)).transpose()
    }

    /// Adds or replaces an entry.
    pub fn insert<O>(
        &self,
        context: &mut Context<'_, '_, O>,
        key: &K::Value,
        value: &V::Value,
    ) -> Result<(), OperatorError> {
        let key = self.key(context, key)?;
        context.store(key, Some(encode(&self.values, value)));
        Ok(())
    }

    /// Removes an entry.
    pub fn remove<O>(
        &self,
        context: &mut Context<'_, '_, O>,
        key: &K::Value,
    ) -> Result<(), OperatorError> {
        let key = self.key(context, key)?;
        context.store(key, None);
        Ok(())
    }

    /// All entries, in the order of their keys' bytes.
    pub fn entries<O>(
        &self,
        context: &Context<'_, '_, O>,
    ) -> Result<Vec<Entry<K, V>>, OperatorError> {
        self.within(context, None, None)
    }

    /// Entries from one key on and before another, in the order of their keys' bytes. No other is
    /// read.
    pub fn between<O>(
        &self,
        context: &Context<'_, '_, O>,
        from: &K::Value,
        to: &K::Value,
    ) -> Result<Vec<Entry<K, V>>, OperatorError> {
        self.within(context, Some(from), Some(to))
    }

    fn within<O>(
        &self,
        context: &Context<'_, '_, O>,
        from: Option<&K::Value>,
        to: Option<&K::Value>,
    ) -> Result<Vec<Entry<K, V>>, OperatorError> {
        let range = self.range(context, from, to)?;
        let found = context.run.range(&range.from, &range.to);
        found.map(|entry| self.entry(&range, entry)).collect()
    }

    /// The entry whose key is the first; no other is read.
    pub fn first<O>(
        &self,
        context: &Context<'_, '_, O>,
    ) -> Result<Option<Entry<K, V>>, OperatorError> {
        self.least(context, None)
    }

    /// The first entry from a key on; no other is read.
    pub fn first_from<O>(
        &self,
        context: &Context<'_, '_, O>,
        from: &K::Value,
    ) -> Result<Option<Entry<K, V>>, OperatorError> {
        self.least(context, Some(from))
    }

    fn least<O>(
        &self,
        context: &Context<'_, '_, O>,
        from: Option<&K::Value>,
    ) -> Result<Option<Entry<K, V>>, OperatorError> {
        let range = self.range(context, from, None)?;
        let first = context.run.range(&range.from, &range.to).next();
        first.map(|entry| self.entry(&range, entry)).transpose()
    }

    /// The entry whose key is the last; no other is read.
    pub fn last<O>(
        &self,
        context: &Context<'_, '_, O>,
    ) -> Result<Option<Entry<K, V>>, OperatorError> {
        self.greatest(context, None)
    }

    /// The last entry before a key; no other is read.
    pub fn last_before<O>(
        &self,
        context: &Context<'_, '_, O>,
        to: &K::Value,
    ) -> Result<Option<Entry<K, V>>, OperatorError> {
        self.greatest(context, Some(to))
    }

    fn greatest<O>(
        &self,
        context: &Context<'_, '_, O>,
        to: Option<&K::Value>,
    ) -> Result<Option<Entry<K, V>>, OperatorError> {
        let range = self.range(context, None, to)?;
        let last = context.run.range_backward(&range.from, &range.to).next();
        last.map(|entry| self.entry(&range, entry)).transpose()
    }

    fn last_key<O>(&self, context: &Context<'_, '_, O>) -> Result<Option<K::Value>, OperatorError> {
        let range = self.range(context, None, None)?;
        let last = context.run.range_backward(&range.from, &range.to).next();
        let key = last.map(|(key, _)| Bytes::copy_from_slice(&key[range.prefix_size..]));
        Ok(key.map(|key| self.keys.decode(&key)).transpose()?)
    }

    /// Whether it has no entry.
    pub fn is_empty<O>(&self, context: &Context<'_, '_, O>) -> Result<bool, OperatorError> {
        let range = self.range(context, None, None)?;
        let is_empty = context.run.range(&range.from, &range.to).next().is_none();
        Ok(is_empty)
    }

    /// Removes the entries before a key.
    pub fn remove_before<O>(
        &self,
        context: &mut Context<'_, '_, O>,
        to: &K::Value,
    ) -> Result<(), OperatorError> {
        let range = self.range(context, None, Some(to))?;
        remove_range(context, &range.from, &range.to);
        Ok(())
    }

    /// Removes all entries.
    pub fn clear<O>(&self, context: &mut Context<'_, '_, O>) -> Result<(), OperatorError> {
        let range = self.range(context, None, None)?;
        remove_range(context, &range.from, &range.to);
        Ok(())
    }
}

/// Removes what a key has in a state of any kind.
pub(super) fn remove_all<O>(context: &mut Context<'_, '_, O>, state: NameId) {
    let prefix = context.state_key(state);
    remove_range(context, &prefix, &behind(&prefix));
}

fn remove_range<O>(context: &mut Context<'_, '_, O>, from: &[u8], to: &[u8]) {
    let keys: Vec<Vec<u8>> = context.run.range(from, to).map(|(key, _)| key.to_vec()).collect();
    keys.into_iter().for_each(|key| context.store(key, None));
}

impl<K: Codec, V: Codec> Handle for MapState<K, V> {
    fn about(&self) -> About<'_> {
        let values = self.values.clone();
        About {
            name: &self.name,
            id: &self.id,
            kind: StateKind::Map,
            codec: format!("{} to {}", self.keys.name(), values.name()),
            version: values.version(),
            reads: Box::new(move |version| values.reads(version)),
        }
    }
}

/// A list for each key, to append to and to read as a whole.
#[derive(Debug)]
pub struct ListState<C> {
    items: MapState<Int64, C>,
}

impl<C: Codec> ListState<C> {
    /// Of a name that stays.
    pub fn new(name: impl Into<String>, codec: C) -> Self {
        Self { items: MapState::new(name, Int64, codec) }
    }

    /// Adds a value at the end.
    pub fn push<O>(
        &self,
        context: &mut Context<'_, '_, O>,
        value: &C::Value,
    ) -> Result<(), OperatorError> {
        let next = self.items.last_key(context)?.map_or(0, |last| last + 1);
        self.items.insert(context, &next, value)
    }

    /// All values, in the order of pushing.
    pub fn values<O>(&self, context: &Context<'_, '_, O>) -> Result<Vec<C::Value>, OperatorError> {
        Ok(self.items.entries(context)?.into_iter().map(|(_, value)| value).collect())
    }

    /// Removes all values.
    pub fn clear<O>(&self, context: &mut Context<'_, '_, O>) -> Result<(), OperatorError> {
        self.items.clear(context)
    }
}

impl<C: Codec> Handle for ListState<C> {
    fn about(&self) -> About<'_> {
        About { kind: StateKind::List, ..self.items.about() }
    }
}

/// What an aggregate is before anything is added.
type Initial<V> = Box<dyn Fn() -> V + Send + Sync>;

/// Adds to an aggregate.
type Add<V, A> = Box<dyn Fn(&mut V, A) + Send + Sync>;

/// One aggregate for each key, changed by what is added to it.
pub struct AggregatingState<C: Codec, A> {
    value: ValueState<C>,
    initial: Initial<C::Value>,
    add: Add<C::Value, A>,
}

impl<C: Codec, A> AggregatingState<C, A> {
    /// Of a name that stays, from an initial value and what adding does.
    pub fn new(
        name: impl Into<String>,
        codec: C,
        initial: impl Fn() -> C::Value + Send + Sync + 'static,
        add: impl Fn(&mut C::Value, A) + Send + Sync + 'static,
    ) -> Self {
        let value = ValueState::new(name, codec);
        Self { value, initial: Box::new(initial), add: Box::new(add) }
    }

    /// Adds to the key's aggregate, and gives what it is then.
    pub fn add<O>(
        &self,
        context: &mut Context<'_, '_, O>,
        item: A,
    ) -> Result<C::Value, OperatorError> {
        let mut value = self.value.get(context)?.unwrap_or_else(&self.initial);
        (self.add)(&mut value, item);
        self.value.set(context, &value)?;
        Ok(value)
    }

    /// The key's aggregate; the initial value if nothing was added.
    pub fn get<O>(&self, context: &Context<'_, '_, O>) -> Result<C::Value, OperatorError> {
        Ok(self.value.get(context)?.unwrap_or_else(&self.initial))
    }

    /// Begins the key's aggregate anew.
    pub fn clear<O>(&self, context: &mut Context<'_, '_, O>) -> Result<(), OperatorError> {
        self.value.clear(context)
    }
}

impl<C: Codec, A> Handle for AggregatingState<C, A> {
    fn about(&self) -> About<'_> {
        self.value.about()
    }
}

fn id(name: &str, id: &OnceLock<NameId>) -> Result<NameId, OperatorError> {
    id.get().copied().ok_or_else(|| format!("state {name} is used and not declared").into())
}

/// In the place of the codec's version: the value is null, and no bytes follow. Persisted.
pub(super) const NULL: u8 = 0;

/// The version of the codec, or [`NULL`], and what it wrote.
pub(super) fn encode<C: Codec>(codec: &C, value: &C::Value) -> Vec<u8> {
    if codec.is_null(value) {
        return vec![NULL];
    }
    let mut bytes = vec![codec.version()];
    codec.encode(value, &mut bytes);
    bytes
}

fn decode<C: Codec>(codec: &C, stored: &[u8]) -> Result<C::Value, OperatorError> {
    let (version, bytes) = stored.split_first().ok_or("an entry of state is empty")?;
    Ok(decode_version(codec, *version, &Bytes::copy_from_slice(bytes))?)
}

/// The value of what a version of the codec wrote, or of [`NULL`].
pub(super) fn decode_version<C: Codec>(
    codec: &C,
    version: u8,
    bytes: &Bytes,
) -> Result<C::Value, CodecError> {
    match version {
        NULL => codec.decode_null(),
        version => codec.decode_version(version, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Trial;
    use super::*;
    use crate::topology::{Nullable, Operator, Time, Topology, Utf8};

    /// Does with its states what the words of a record say, and tells what they are.
    struct Script {
        map: MapState<Time, Int64>,
        list: ListState<Utf8>,
        value: ValueState<Nullable<Utf8>>,
        sum: AggregatingState<Int64, i64>,
    }

    impl Script {
        fn act(
            &self,
            context: &mut Context<'_, '_, String>,
            words: &[&str],
        ) -> Result<String, OperatorError> {
            let number = |index: usize| words[index].parse::<i64>();
            let (map, list, value) = (&self.map, &self.list, &self.value);
            Ok(match words[0] {
                "insert" => format!("{:?}", map.insert(context, &number(1)?, &number(1)?)?),
                "remove" => format!("{:?}", map.remove(context, &number(1)?)?),
                "remove-before" => format!("{:?}", map.remove_before(context, &number(1)?)?),
                "between" => format!("{:?}", map.between(context, &number(1)?, &number(2)?)?),
                "entries" => format!("{:?}", map.entries(context)?),
                "first" => format!("{:?}", map.first(context)?),
                "first-from" => format!("{:?}", map.first_from(context, &number(1)?)?),
                "last" => format!("{:?}", map.last(context)?),
                "last-before" => format!("{:?}", map.last_before(context, &number(1)?)?),
                "is-empty" => format!("{:?}", map.is_empty(context)?),
                "clear" => format!("{:?}", map.clear(context)?),
                "push" => format!("{:?}", list.push(context, &words[1].to_owned())?),
                "values" => format!("{:?}", list.values(context)?),
                "set" => format!("{:?}", value.set(context, &Some(words[1].to_owned()))?),
                "set-null" => format!("{:?}", value.set(context, &None)?),
                "unset" => format!("{:?}", value.clear(context)?),
                "get" => format!("{:?}", value.get(context)?),
                "add" => format!("{:?}", self.sum.add(context, number(1)?)?),
                other => return Err(format!("no such word: {other}").into()),
            })
        }
    }

    impl Operator for Script {
        type Key = String;
        type In = String;
        type Out = String;

        fn declare(&self, states: &mut States<'_>) {
            states.declare(&self.map);
            states.declare(&self.list);
            states.declare(&self.value);
            states.declare(&self.sum);
        }

        fn on_record(
            &self,
            context: &mut Context<'_, '_, String>,
            _key: &String,
            value: String,
        ) -> Result<(), OperatorError> {
            let mut told = Vec::new();
            for line in value.split(", ") {
                let words: Vec<&str> = line.split(' ').collect();
                let result = self.act(context, &words)?;
                if result != "()" {
                    told.push(result);
                }
            }
            context.emit(told.join(" | "));
            Ok(())
        }
    }

    /// Runs each line as a record of one key: what it tells.
    fn check(lines: &[(&str, &str)]) {
        let topology = Topology::new("scripts");
        let script = Script {
            map: MapState::new("map", Time, Int64),
            list: ListState::new("list", Utf8),
            value: ValueState::new("value", Nullable(Utf8)),
            sum: AggregatingState::new("sum", Int64, || 100, |sum, more| *sum += more),
        };
        let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
        keyed.process("script", script).sink("out", Utf8);
        let mut trial = Trial::new(topology);
        // Of other keys, on both sides: nobody may see it.
        for neighbour in ["j", "l"] {
            trial.record(neighbour, "insert 1, push x, set x, add 1", 0);
        }
        for (line, told) in lines {
            let expected = format!("Sink(0) k={told} at 0");
            assert_eq!(trial.record("k", line, 0), [expected], "{line}");
        }
    }

    #[test]
    fn a_map_is_read_from_both_ends_and_in_parts() {
        let all = "[(-7, -7), (-1, -1), (0, 0), (5, 5), (9, 9)]";
        check(&[
            ("is-empty, first, last", "true | None | None"),
            ("insert 9, insert -7, insert 0, insert 5, insert -1", ""),
            ("entries", all),
            ("between -1 5, between 5 -1", "[(-1, -1), (0, 0)] | []"),
            ("first, last, is-empty", "Some((-7, -7)) | Some((9, 9)) | false"),
            ("first-from -6, first-from 10", "Some((-1, -1)) | None"),
            ("last-before 5, last-before -7", "Some((0, 0)) | None"),
            // What this record has changed already counts.
            ("remove -7, insert 12, first, last", "Some((-1, -1)) | Some((12, 12))"),
            ("remove-before 5, entries", "[(5, 5), (9, 9), (12, 12)]"),
            ("clear, is-empty, insert 3, entries", "true | [(3, 3)]"),
        ]);
    }

    #[test]
    fn a_list_grows_at_its_end() {
        check(&[
            ("push a, push b, values", r#"["a", "b"]"#),
            ("push c, push a, values", r#"["a", "b", "c", "a"]"#),
        ]);
    }

    #[test]
    fn a_null_that_is_stored_is_not_an_empty_text_and_not_nothing() {
        check(&[
            ("get", "None"),
            ("set-null, get", "Some(None)"),
            ("get", "Some(None)"),
            ("set , get", r#"Some(Some(""))"#),
            ("get", r#"Some(Some(""))"#),
            ("unset, get", "None"),
        ]);
    }

    #[test]
    fn an_aggregate_begins_with_its_initial_value() {
        check(&[("add 5", "105"), ("add -1, add 2", "104 | 106")]);
    }
}
