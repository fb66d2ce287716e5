//! What a step did, in the order in which it did it: with the records themselves, the state before and
//! these facts the same step can be made again, offline. Recovery does not read it. Persisted: see
//! `docs/FORMAT.md`.

use super::key::NameId;
use super::stored::Position;
use crate::state::Kind;

/// Legs of a course at which its step ends, so that what is recorded stays small beside what is made.
pub const LEGS_MAX: usize = 1024;

/// What was done without anything else between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leg {
    /// Records of a partition were taken, or it was found that there are none.
    Input {
        /// The partition: the n-th of those that the step went on in.
        input: usize,
        /// Offset of the first.
        from: u64,
        /// Offset behind the last. The same as `from`: records before it were not there any more.
        to: u64,
    },
    /// Entries of a shard were taken.
    Arrivals {
        /// The shard.
        sender: u16,
        /// Where the first one begins.
        from: Position,
        /// Where the next one does.
        to: Position,
    },
    /// Timers fired, or event time went on.
    Timers {
        /// Operators, by number, that saw a new event time before their timers fired, in their order;
        /// in milliseconds since 1970.
        seen: Vec<(usize, i64)>,
        /// How many timers fired.
        fired: u64,
    },
    /// Results of blocking calls were taken: so many, as the frame has them in order.
    Calls(u64),
}

/// The legs of a step so far.
#[derive(Debug, Default)]
pub struct Course {
    legs: Vec<Leg>,
}

impl Course {
    /// Records of a partition were taken: those from one offset on and before another.
    pub fn on_input(&mut self, input: usize, from: u64, to: u64) {
        match self.legs.last_mut() {
            Some(Leg::Input { input: before, to: end, .. }) if *before == input && *end == from => {
                *end = to;
            }
            _ => self.legs.push(Leg::Input { input, from, to }),
        }
    }

    /// What a shard sent was taken: from one position on and before another.
    pub fn on_arrivals(&mut self, sender: u16, from: Position, to: Position) {
        match self.legs.last_mut() {
            Some(Leg::Arrivals { sender: before, to: end, .. })
                if *before == sender && *end == from =>
            {
                *end = to;
            }
            _ => self.legs.push(Leg::Arrivals { sender, from, to }),
        }
    }

    /// Timers had their turn.
    pub fn on_timers(&mut self, seen: Vec<(usize, i64)>, fired: u64) {
        if fired > 0 || !seen.is_empty() {
            self.legs.push(Leg::Timers { seen, fired });
        }
    }

    /// Results of blocking calls were taken.
    pub fn on_calls(&mut self, count: u64) {
        match self.legs.last_mut() {
            Some(Leg::Calls(before)) => *before += count,
            _ if count > 0 => self.legs.push(Leg::Calls(count)),
            _ => {}
        }
    }

    /// Whether the step is to end.
    pub fn is_full(&self) -> bool {
        self.legs.len() >= LEGS_MAX
    }

    /// The legs, which are another step's from now on not.
    pub fn take(&mut self) -> Vec<Leg> {
        std::mem::take(&mut self.legs)
    }
}

/// The course of a step as it is stored, with all else that the step depended on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StoredCourse {
    /// Seed of its random numbers.
    pub seed: u64,
    /// Most that one call could make, in bytes.
    pub size_max: u64,
    /// Records without a key that its topology had made on this shard before, if it made one.
    pub keyless: u32,
    /// Batches that it made for this shard: so many right before this entry in its frame.
    pub batches: u64,
    /// What it changed: so many entries right behind this one.
    pub changes: u64,
    /// What it did.
    pub legs: Vec<Leg>,
}

const VERSION: u8 = 1;

// Kinds of legs. Persisted: never reuse a number.
const INPUT: u8 = 1;
/// It begins where the last one of its partition in this step has ended.
const INPUT_ON: u8 = 2;
const ARRIVALS: u8 = 3;
/// It begins where the last one of its sender in this step has ended.
const ARRIVALS_ON: u8 = 4;
const TIMERS: u8 = 5;
const CALLS: u8 = 6;

/// Key of what a topology's newest step did.
pub fn course_key(topology: NameId) -> Vec<u8> {
    Kind::TopologyCourse.key(&[&topology.0.to_be_bytes()])
}

impl StoredCourse {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.seed.to_le_bytes());
        for number in [self.size_max, self.keyless.into(), self.batches, self.changes] {
            put(&mut bytes, number);
        }
        for (index, leg) in self.legs.iter().enumerate() {
            let before = self.legs[..index].iter().rev();
            match leg {
                Leg::Input { input, from, to } => {
                    let ended = before.filter_map(|leg| leg.input_end(*input)).next();
                    let goes_on = ended == Some(*from);
                    bytes.push(if goes_on { INPUT_ON } else { INPUT });
                    put(&mut bytes, *input as u64);
                    if !goes_on {
                        put(&mut bytes, *from);
                    }
                    put(&mut bytes, to - from);
                }
                Leg::Arrivals { sender, from, to } => {
                    let ended = before.filter_map(|leg| leg.arrivals_end(*sender)).next();
                    let goes_on = ended == Some(*from);
                    bytes.push(if goes_on { ARRIVALS_ON } else { ARRIVALS });
                    put(&mut bytes, (*sender).into());
                    if !goes_on {
                        put(&mut bytes, from.sequence);
                        put(&mut bytes, from.part.into());
                        put(&mut bytes, from.record.into());
                    }
                    put(&mut bytes, to.sequence - from.sequence);
                    put(&mut bytes, to.part.into());
                    put(&mut bytes, to.record.into());
                }
                Leg::Timers { seen, fired } => {
                    bytes.push(TIMERS);
                    put(&mut bytes, seen.len() as u64);
                    for (operator, seen_ms) in seen {
                        put(&mut bytes, *operator as u64);
                        bytes.extend_from_slice(&seen_ms.to_le_bytes());
                    }
                    put(&mut bytes, *fired);
                }
                Leg::Calls(count) => {
                    bytes.push(CALLS);
                    put(&mut bytes, *count);
                }
            }
        }
        bytes
    }

    /// The opposite of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => {
                Self::read(rest).ok_or_else(|| "the course of a step cannot be read".to_owned())
            }
            Some((version, _)) => Err(format!(
                "the course of a step is of version {version}, and this build reads {VERSION}"
            )),
            None => Err("the course of a step is empty".to_owned()),
        }
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (seed, mut rest) = bytes.split_first_chunk::<8>()?;
        let rest = &mut rest;
        let mut course = Self {
            seed: u64::from_le_bytes(*seed),
            size_max: take(rest)?,
            keyless: take(rest)?.try_into().ok()?,
            batches: take(rest)?,
            changes: take(rest)?,
            legs: Vec::new(),
        };
        while let Some((kind, after)) = rest.split_first() {
            *rest = after;
            let before = course.legs.iter().rev();
            let leg = match *kind {
                INPUT | INPUT_ON => {
                    let input = usize::try_from(take(rest)?).ok()?;
                    let from = match *kind {
                        INPUT => take(rest)?,
                        _ => before.filter_map(|leg| leg.input_end(input)).next()?,
                    };
                    Leg::Input { input, from, to: from.checked_add(take(rest)?)? }
                }
                ARRIVALS | ARRIVALS_ON => {
                    let sender = take(rest)?.try_into().ok()?;
                    let from = match *kind {
                        ARRIVALS => take_position(rest, 0)?,
                        _ => before.filter_map(|leg| leg.arrivals_end(sender)).next()?,
                    };
                    Leg::Arrivals { sender, from, to: take_position(rest, from.sequence)? }
                }
                TIMERS => {
                    let mut seen = Vec::new();
                    for _ in 0..take(rest)? {
                        let operator = usize::try_from(take(rest)?).ok()?;
                        let (seen_ms, after) = rest.split_first_chunk::<8>()?;
                        *rest = after;
                        seen.push((operator, i64::from_le_bytes(*seen_ms)));
                    }
                    Leg::Timers { seen, fired: take(rest)? }
                }
                CALLS => Leg::Calls(take(rest)?),
                _ => return None,
            };
            course.legs.push(leg);
        }
        Some(course)
    }
}

impl Leg {
    fn input_end(&self, of: usize) -> Option<u64> {
        match self {
            Self::Input { input, to, .. } if *input == of => Some(*to),
            _ => None,
        }
    }

    fn arrivals_end(&self, of: u16) -> Option<Position> {
        match self {
            Self::Arrivals { sender, to, .. } if *sender == of => Some(*to),
            _ => None,
        }
    }
}

/// Appends a number, seven bits in a byte, the lowest first; all but the last have the eighth set.
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if bits << shift >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take_position(rest: &mut &[u8], base: u64) -> Option<Position> {
    let sequence = base.checked_add(take(rest)?)?;
    let (part, record) = (take(rest)?.try_into().ok()?, take(rest)?.try_into().ok()?);
    Some(Position { sequence, part, record })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(sequence: u64, part: u32, record: u32) -> Position {
        Position { sequence, part, record }
    }

    fn stored(legs: Vec<Leg>) -> StoredCourse {
        StoredCourse { seed: u64::MAX, size_max: 3 << 20, keyless: 7, batches: 2, changes: 9, legs }
    }

    #[test]
    fn what_follows_without_a_gap_is_one_leg() {
        let mut course = Course::default();
        course.on_input(0, 5, 6);
        course.on_input(0, 6, 9);
        course.on_input(0, 11, 12);
        course.on_timers(Vec::new(), 0);
        course.on_input(1, 12, 13);
        course.on_arrivals(1, position(3, 0, 0), position(3, 1, 2));
        course.on_arrivals(1, position(3, 1, 2), position(4, 0, 0));
        course.on_arrivals(0, position(4, 0, 0), position(5, 0, 0));
        let legs = [
            Leg::Input { input: 0, from: 5, to: 9 },
            Leg::Input { input: 0, from: 11, to: 12 },
            Leg::Input { input: 1, from: 12, to: 13 },
            Leg::Arrivals { sender: 1, from: position(3, 0, 0), to: position(4, 0, 0) },
            Leg::Arrivals { sender: 0, from: position(4, 0, 0), to: position(5, 0, 0) },
        ];
        assert_eq!(course.take(), legs);
        assert_eq!(course.take(), []);
    }

    #[test]
    fn a_course_comes_back_as_it_was_and_a_cut_one_does_not_pass_for_it() {
        let whole = stored(vec![
            Leg::Input { input: 3, from: u64::MAX - 1, to: u64::MAX },
            Leg::Input { input: 1, from: 300, to: 300 },
            Leg::Timers { seen: vec![(0, i64::MIN), (200, -5)], fired: 1 << 40 },
            Leg::Input { input: 1, from: 300, to: 100_000 },
            Leg::Arrivals { sender: 3, from: position(7, 0, 9), to: position(7, 2, 1) },
            Leg::Input { input: 1, from: 100_000, to: 100_001 },
            Leg::Arrivals { sender: 2, from: position(9, 1, 0), to: position(12, 0, 0) },
            Leg::Arrivals { sender: 3, from: position(7, 2, 1), to: position(8, 0, 0) },
            Leg::Calls(300),
        ]);
        let bytes = whole.encode();
        assert_eq!(StoredCourse::decode(&bytes).as_ref(), Ok(&whole));
        for size in 0..bytes.len() {
            let cut = StoredCourse::decode(&bytes[..size]);
            assert!(cut.is_err() || cut.as_ref() != Ok(&whole), "cut at {size}");
        }
        let other = [&[VERSION + 1], &bytes[1..]].concat();
        let why = StoredCourse::decode(&other).expect_err("another version");
        assert!(why.contains("version 2"), "{why}");
    }

    #[test]
    fn the_step_of_one_record_is_a_few_bytes_and_each_further_leg_three() {
        let first = Leg::Input { input: 0, from: 1_000_000, to: 1_000_001 };
        let one = stored(vec![first.clone()]).encode().len();
        assert!(one <= 24, "{one} bytes");
        let second = Leg::Input { input: 1, from: 1_000_000, to: 1_000_001 };
        let third = Leg::Input { input: 0, from: 1_000_001, to: 1_000_002 };
        let two = stored(vec![first.clone(), second.clone()]).encode().len();
        let three = stored(vec![first, second, third]).encode().len();
        assert_eq!(three - two, 3);
    }
}
