//! What a topology's states are, kept beside them: a start compares what the program declares with
//! what is there, before anything is read wrongly. Persisted: see `docs/FORMAT.md`.

use super::state::{Declared, StateKind};
use super::{NameId, Plan};
use crate::state::Kind;

/// Format of the entry.
const VERSION: u8 = 1;

/// Every state of a topology that has entries, or may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredStates {
    /// The topology's name.
    pub topology: String,
    /// Its states.
    pub states: Vec<StoredState>,
}

/// One state of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredState {
    /// The operator's name.
    pub operator: String,
    /// Its own.
    pub name: String,
    /// What it is.
    pub kind: StateKind,
    /// Names of its codecs.
    pub codec: String,
    /// Versions of the codec that may have written an entry.
    pub versions: Vec<u8>,
}

impl StoredState {
    fn id(&self, topology: &str) -> NameId {
        NameId::of(&[topology, &self.operator, &self.name])
    }
}

/// Key of a topology's states.
pub fn states_key(topology: NameId) -> Vec<u8> {
    Kind::TopologyStates.key(&[&topology.0.to_be_bytes()])
}

impl StoredStates {
    /// None yet.
    pub fn new(topology: &str) -> Self {
        Self { topology: topology.to_owned(), states: Vec::new() }
    }

    /// What is stored once the topology of this plan writes, or everything that forbids it.
    /// `holds` says whether a state has entries.
    pub fn compare(
        &self,
        plan: &Plan,
        holds: &dyn Fn(NameId) -> bool,
    ) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        if self.topology != plan.name() {
            faults.push(format!("{:?} has the same identity; rename one", self.topology));
        }
        let mut states: Vec<StoredState> = plan.states().iter().map(state_of).collect();
        for stored in &self.states {
            let id = stored.id(&self.topology);
            if !holds(id) {
                continue;
            }
            let declared = plan.states().iter().zip(&mut states).find(|(it, _)| it.id == id);
            let Some((declared, next)) = declared else {
                if plan.may_drop(id) {
                    states.push(stored.clone());
                } else {
                    faults.push(format!(
                        "operator {:?} is gone or has no state {:?} any more, which still holds \
                         entries; bring it back, or give them up with `drop_state({:?}, {:?})`",
                        stored.operator, stored.name, stored.operator, stored.name
                    ));
                }
                continue;
            };
            faults.extend(stored.differs(declared));
            for version in &stored.versions {
                if !next.versions.contains(version) {
                    next.versions.push(*version);
                }
            }
        }
        match faults.is_empty() {
            true => Ok(Self { topology: plan.name().to_owned(), states }),
            false => Err(faults),
        }
    }

    /// Takes in what another shard has stored of the same topology. False if they differ in more than
    /// which states have entries, and in the versions that wrote them.
    pub fn merge(&mut self, other: Self) -> bool {
        let mut is_same = self.topology == other.topology;
        for state in other.states {
            let is_it = |it: &&mut StoredState| it.id(&self.topology) == state.id(&self.topology);
            let Some(known) = self.states.iter_mut().find(is_it) else {
                self.states.push(state);
                continue;
            };
            is_same &= known.kind == state.kind && known.codec == state.codec;
            let new = state.versions.iter().filter(|version| !known.versions.contains(version));
            let new: Vec<u8> = new.copied().collect();
            known.versions.extend(new);
        }
        is_same
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        put_text(&mut bytes, &self.topology);
        bytes.extend_from_slice(&(self.states.len() as u16).to_le_bytes());
        for state in &self.states {
            put_text(&mut bytes, &state.operator);
            put_text(&mut bytes, &state.name);
            put_text(&mut bytes, &state.codec);
            bytes.extend_from_slice(&[state.kind as u8, state.versions.len() as u8]);
            bytes.extend_from_slice(&state.versions);
        }
        bytes
    }

    /// The opposite of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, mut rest) = bytes.split_first()?;
        if *version != VERSION {
            return None;
        }
        let topology = take_text(&mut rest)?;
        let (count, after) = rest.split_first_chunk::<2>()?;
        rest = after;
        let mut states = Vec::new();
        for _ in 0..u16::from_le_bytes(*count) {
            let (operator, name) = (take_text(&mut rest)?, take_text(&mut rest)?);
            let codec = take_text(&mut rest)?;
            let ([kind, count], after) = rest.split_first_chunk::<2>()?;
            let (versions, after) = after.split_at_checked(usize::from(*count))?;
            let (kind, versions) = (StateKind::of(*kind)?, versions.to_vec());
            states.push(StoredState { operator, name, kind, codec, versions });
            rest = after;
        }
        rest.is_empty().then_some(Self { topology, states })
    }
}

impl StoredState {
    /// Why a declared state cannot read what is stored.
    fn differs(&self, declared: &Declared) -> Option<String> {
        let whose = format!("state {:?} of operator {:?}", self.name, self.operator);
        let kept = "its entries were kept; use the old one, or another name for the new";
        if self.kind != declared.kind {
            return Some(format!(
                "{whose} is declared as {:?} and was {:?}; {kept}",
                declared.kind, self.kind
            ));
        }
        if self.codec != declared.codec {
            return Some(format!(
                "{whose} has the codec {} and was written by {}; {kept}",
                declared.codec, self.codec
            ));
        }
        let unread = self.versions.iter().find(|version| !(declared.reads)(**version))?;
        Some(format!(
            "{whose} holds values that version {unread} of {} wrote, which version {} does not \
             read; let its `reads` and `decode_version` take them",
            self.codec, declared.version
        ))
    }
}

fn state_of(declared: &Declared) -> StoredState {
    StoredState {
        operator: declared.operator.clone(),
        name: declared.name.clone(),
        kind: declared.kind,
        codec: declared.codec.clone(),
        versions: vec![declared.version],
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    let (size, after) = rest.split_first_chunk::<2>()?;
    let (text, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*size)))?;
    *rest = after;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Int64, Topology, Utf8};

    fn counting(topology: &Topology, operator: &str) {
        let source = topology.source("in", Utf8);
        source.partitioned_by_key(Utf8).count(operator).map(|_, n| n.to_string()).sink("out", Utf8);
    }

    fn plan(operator: &str) -> Plan {
        let topology = Topology::new("t");
        counting(&topology, operator);
        topology.build().expect("good")
    }

    fn stored() -> StoredStates {
        StoredStates::new("t").compare(&plan("count"), &|_| false).expect("nothing is there")
    }

    #[test]
    fn states_come_back_as_they_were_and_nothing_else_does() {
        let stored = stored();
        let bytes = stored.encode();
        assert_eq!(StoredStates::decode(&bytes), Some(stored));
        for size in 0..bytes.len() {
            assert_eq!(StoredStates::decode(&bytes[..size]), None, "{size} bytes");
        }
    }

    #[test]
    fn the_same_topology_goes_on() {
        assert_eq!(stored().compare(&plan("count"), &|_| true), Ok(stored()));
    }

    #[test]
    fn an_operator_that_is_gone_may_hold_nothing_unless_it_is_dropped() {
        let faults = stored().compare(&plan("other"), &|_| true).expect_err("count is gone");
        let [fault] = &faults[..] else { panic!("one fault: {faults:?}") };
        assert!(fault.contains("drop_state(\"count\","), "{fault}");
        assert!(stored().compare(&plan("other"), &|_| false).is_ok());
        let topology = Topology::new("t");
        counting(&topology, "other");
        topology.drop_state("count", &stored().states[0].name);
        let kept = stored().compare(&topology.build().expect("good"), &|_| true).expect("dropped");
        assert_eq!(kept.states.len(), 2, "it is known until its last entry is gone");
    }

    #[test]
    fn another_codec_kind_or_version_is_refused_by_name() {
        let refusal = |change: &dyn Fn(&mut StoredState)| {
            let mut stored = stored();
            change(&mut stored.states[0]);
            stored.compare(&plan("count"), &|_| true).expect_err("it differs").remove(0)
        };
        let codec = refusal(&|it| it.codec = "json".to_owned());
        assert!(codec.contains("was written by json"), "{codec}");
        let kind = refusal(&|it| it.kind = StateKind::Map);
        assert!(kind.contains("was Map"), "{kind}");
        let version = refusal(&|it| it.versions = vec![1, 7]);
        assert!(version.contains("version 7"), "{version}");
        assert_eq!(stored().states[0].codec, crate::topology::Codec::name(&Int64));
    }
}
