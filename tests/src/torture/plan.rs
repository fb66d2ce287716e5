//! What goes wrong in a round, and when: drawn from the seed before the round begins.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;

use crate::clients::Client;
use crate::sim::random::Random;

/// Faults begin within this time of a round.
const SPELLS_MS: u64 = 6000;
/// Before the first fault there is a moment of peace.
const QUIET_MS: u64 = 200;
/// Most spells of one round.
const SPELLS_MAX: u64 = 4;

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// `kill -9`, and a start at once; some of these starts are killed as well.
    Kill,
    /// SIGSTOP, and SIGCONT later.
    Stop,
    /// No room on the disk.
    Full,
    /// A disk that takes few writes a second.
    Slow,
    /// More connections than are allowed, coming and going.
    Flood,
    /// Connections that send half a request, or never read, or are silent, and vanish.
    HalfOpen,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 6] =
        [Fault::Kill, Fault::Stop, Fault::Full, Fault::Slow, Fault::Flood, Fault::HalfOpen];
}

/// What happens to the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Killed and started; each of these starts but the last is killed after so long.
    Kill {
        /// How long the starts that do not succeed are given.
        starts: Vec<Duration>,
    },
    /// Stopped.
    Stop,
    /// The disk is full.
    Full,
    /// The disk is slow.
    Slow {
        /// What it still takes.
        writes_per_second: u64,
    },
    /// Flooded.
    Flood {
        /// So many at a time.
        connections: usize,
    },
    /// Half-open connections.
    HalfOpen {
        /// So many at a time.
        connections: usize,
    },
}

/// A piece of trouble, from and to a moment of the round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spell {
    /// Its beginning.
    pub from: Duration,
    /// Its end.
    pub to: Duration,
    /// What it is.
    pub trouble: Trouble,
}

/// What is done to the node between a round's load and its reading back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing: it goes on.
    None,
    /// SIGTERM and a start.
    Stop,
    /// `kill -9` and a start.
    Kill,
}

/// One round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// By their beginning.
    pub spells: Vec<Spell>,
    /// Libraries that produce; each has a topic's keys of its own.
    pub producers: Vec<Client>,
    /// Libraries that consume; each in a group of its own.
    pub consumers: Vec<Client>,
    /// Bytes a second of each of our own producers.
    pub rate: u64,
    /// What follows.
    pub turn: Turn,
}

/// Deals faults so that each has its turn, and libraries likewise.
#[derive(Debug)]
pub struct Deck {
    random: Random,
    faults: Vec<Fault>,
    clients: Vec<Client>,
    dealt: Vec<Fault>,
    rounds: usize,
}

impl Deck {
    /// The rounds of a seed.
    pub fn new(seed: u64, faults: &[Fault], clients: &[Client]) -> Deck {
        let random = Random::new(seed);
        let (faults, clients) = (faults.to_vec(), clients.to_vec());
        Deck { random, faults, clients, dealt: Vec::new(), rounds: 0 }
    }

    /// The next round.
    pub fn draw(&mut self) -> Plan {
        let count = self.random.between(2, SPELLS_MAX);
        let mut spells: Vec<Spell> = Vec::new();
        for _ in 0..count {
            let Some(fault) = self.next_fault() else { break };
            let spell = self.spell(fault);
            // A disk is not full twice at a time; but a node may be killed at any time.
            let kind = std::mem::discriminant(&spell.trouble);
            let is_twice = spells.iter().any(|s| std::mem::discriminant(&s.trouble) == kind);
            if fault == Fault::Kill || !is_twice {
                spells.push(spell);
            }
        }
        spells.sort_by_key(|spell| spell.from);
        let at = |shift: usize| self.clients[(self.rounds + shift) % self.clients.len()];
        let mut producers = vec![at(0), at(1)];
        let mut consumers = vec![at(0), at(2)];
        producers.dedup();
        consumers.dedup();
        self.rounds += 1;
        let rate = self.random.between(1, 8) << 20;
        let turn = self.random.choose(&[Turn::None, Turn::Stop, Turn::Kill]);
        Plan { spells, producers, consumers, rate, turn }
    }

    fn next_fault(&mut self) -> Option<Fault> {
        if self.dealt.is_empty() {
            self.dealt.clone_from(&self.faults);
            if self.faults.contains(&Fault::Kill) {
                // Every life begins with a recovery: there cannot be enough of them.
                self.dealt.push(Fault::Kill);
            }
        }
        if self.dealt.is_empty() {
            return None;
        }
        let index = self.random.below(self.dealt.len() as u64) as usize;
        Some(self.dealt.swap_remove(index))
    }

    fn spell(&mut self, fault: Fault) -> Spell {
        let random = &mut self.random;
        let from = random.between(QUIET_MS, SPELLS_MS);
        let (lasts, trouble) = match fault {
            Fault::Kill => {
                let count = random.below(3);
                let starts = (0..count).map(|_| Duration::from_millis(random.skewed(16, 1024)));
                (0, Trouble::Kill { starts: starts.collect() })
            }
            // Sometimes longer than a session of a group.
            Fault::Stop => (random.skewed(50, 12_800), Trouble::Stop),
            Fault::Full => (random.between(2000, 6000), Trouble::Full),
            Fault::Slow => {
                // A start that has segments to write takes some hundred writes.
                let writes_per_second = random.skewed(40, 320);
                (random.between(2000, 5000), Trouble::Slow { writes_per_second })
            }
            Fault::Flood => {
                let connections = random.between(100, 500) as usize;
                (random.between(1000, 4000), Trouble::Flood { connections })
            }
            Fault::HalfOpen => {
                let connections = random.between(10, 250) as usize;
                (random.between(2000, 5000), Trouble::HalfOpen { connections })
            }
        };
        let (from, lasts) = (Duration::from_millis(from), Duration::from_millis(lasts));
        Spell { from, to: from + lasts, trouble }
    }
}

impl Plan {
    /// When the last trouble is over.
    pub fn end(&self) -> Duration {
        let quiet = Duration::from_millis(QUIET_MS);
        self.spells.iter().map(|spell| spell.to).max().unwrap_or(quiet)
    }
}

impl Trouble {
    /// Its kind.
    pub fn fault(&self) -> Fault {
        match self {
            Trouble::Kill { .. } => Fault::Kill,
            Trouble::Stop => Fault::Stop,
            Trouble::Full => Fault::Full,
            Trouble::Slow { .. } => Fault::Slow,
            Trouble::Flood { .. } => Fault::Flood,
            Trouble::HalfOpen { .. } => Fault::HalfOpen,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Spell { from, to, trouble } in &self.spells {
            match trouble {
                Trouble::Kill { starts } => write!(f, "kill at {from:?}, again {starts:?}; ")?,
                trouble => write!(f, "{trouble:?} {from:?} to {to:?}; ")?,
            }
        }
        let Plan { producers, consumers, rate, turn, .. } = self;
        write!(f, "{producers:?} produce, {consumers:?} consume, ours {rate} B/s each, ")?;
        match turn {
            Turn::None => write!(f, "read back"),
            Turn::Stop => write!(f, "stop, start, read back"),
            Turn::Kill => write!(f, "kill, start, read back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_always_the_same_schedule_and_every_fault_has_its_turn() {
        let clients = [Client::Confluent, Client::Java, Client::FranzGo];
        let draw = |seed| {
            let mut deck = Deck::new(seed, &Fault::ALL, &clients);
            (0..10).map(|_| deck.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        for seed in 0..20 {
            let plans = draw(seed);
            let spells = || plans.iter().flat_map(|plan| &plan.spells);
            for fault in Fault::ALL {
                assert!(spells().any(|spell| spell.trouble.fault() == fault), "{fault:?}");
            }
        }
    }
}
