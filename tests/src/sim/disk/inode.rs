//! One file's bytes: what is durable, what a loss of power may take, and what a fault of the disk
//! has made of it behind everybody's back.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tidemill_wal::limits::BLOCK_SIZE;

use super::SECTOR_SIZE;
use crate::sim::random::Random;

type Sector = [u8; SECTOR_SIZE];

/// A sector that does not hold what was written to it.
#[derive(Debug, Clone)]
struct Damage {
    /// What it should hold: an operator who has a copy writes it back.
    truth: Sector,
    /// The disk says that it cannot read it, instead of giving wrong bytes.
    is_unreadable: bool,
}

/// A file without its name.
#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    pub(super) data: Arc<Vec<u8>>,
    /// Bytes of it that are durable as a size; what is behind them is volatile.
    pub(super) durable_size: usize,
    /// Durable content of the sectors that were overwritten since the last sync.
    before: BTreeMap<usize, Sector>,
    damage: BTreeMap<usize, Damage>,
}

fn sectors(range: &Range<usize>) -> Range<usize> {
    range.start / SECTOR_SIZE..range.end.div_ceil(SECTOR_SIZE)
}

fn bytes_of(sector: usize) -> Range<usize> {
    sector * SECTOR_SIZE..(sector + 1) * SECTOR_SIZE
}

impl Inode {
    fn sector(&self, sector: usize) -> Sector {
        self.data[bytes_of(sector)].try_into().expect("a whole sector")
    }

    /// Writes whole sectors, volatile until the next sync.
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        for sector in sectors(&(offset..end.min(self.durable_size).max(offset))) {
            if !self.before.contains_key(&sector) {
                self.before.insert(sector, self.sector(sector));
            }
        }
        let data = Arc::make_mut(&mut self.data);
        if data.len() < end {
            data.resize(end, 0);
        }
        data[offset..end].copy_from_slice(bytes);
        self.heal(&(offset..end));
    }

    /// Writes so that the bytes are durable when this returns.
    pub(super) fn write_through(&mut self, offset: usize, bytes: &[u8]) {
        let range = offset..offset + bytes.len();
        Arc::make_mut(&mut self.data)[range.clone()].copy_from_slice(bytes);
        self.before.retain(|sector, _| !sectors(&range).contains(sector));
        self.heal(&range);
    }

    /// What was written is durable.
    pub(super) fn sync(&mut self) {
        self.durable_size = self.data.len();
        self.before.clear();
    }

    /// Volatile data survive or not.
    pub(super) fn lose_power(&mut self, random: &mut Random) {
        if self.before.is_empty() && self.durable_size == self.data.len() {
            return;
        }
        // Nothing of it, all of it, or any sectors.
        let kept = random.choose(&[0, 100, 50, 90]);
        let blocks = (self.data.len() - self.durable_size) / BLOCK_SIZE;
        let size = match kept {
            0 => self.durable_size,
            100 => self.data.len(),
            _ => self.durable_size + random.between(0, blocks as u64) as usize * BLOCK_SIZE,
        };
        let durable_size = self.durable_size;
        let data = Arc::make_mut(&mut self.data);
        for (sector, before) in std::mem::take(&mut self.before) {
            if !random.percent(kept) {
                data[bytes_of(sector)].copy_from_slice(&before);
                self.damage.remove(&sector);
            }
        }
        data.truncate(size);
        if kept != 100 {
            for (index, sector) in data[durable_size..].chunks_mut(SECTOR_SIZE).enumerate() {
                if !random.percent(kept) {
                    sector.fill(0);
                    self.damage.remove(&(durable_size / SECTOR_SIZE + index));
                }
            }
        }
        self.damage.retain(|sector, _| bytes_of(*sector).end <= size);
        self.durable_size = size;
    }

    /// The last write of this range never reached the medium, although the disk said so: `old` is
    /// what was there before it.
    pub(super) fn drop_write(&mut self, range: &Range<usize>, old: &[u8], random: &mut Random) {
        let noise = random.bits().to_le_bytes();
        let is_noisy = random.one_in(2);
        for sector in sectors(range) {
            let at = bytes_of(sector).start - range.start;
            let wrong = match old.get(at..at + SECTOR_SIZE) {
                Some(old) => old.try_into().expect("a whole sector"),
                // Behind the old end: what the medium happened to hold.
                None if is_noisy => std::array::from_fn(|index| noise[index % noise.len()]),
                None => [0; SECTOR_SIZE],
            };
            self.spoil(sector, wrong);
        }
    }

    /// Bytes that belong elsewhere land here, as far as there is something to land on.
    pub(super) fn overwrite(&mut self, offset: usize, bytes: &[u8]) {
        for (index, wrong) in bytes.chunks_exact(SECTOR_SIZE).enumerate() {
            let sector = offset / SECTOR_SIZE + index;
            if bytes_of(sector).end <= self.data.len() {
                self.spoil(sector, wrong.try_into().expect("a whole sector"));
            }
        }
    }

    /// One bit turns.
    pub(super) fn flip(&mut self, at: usize, bit: u8) {
        let mut wrong = self.sector(at / SECTOR_SIZE);
        wrong[at % SECTOR_SIZE] ^= 1 << bit;
        self.spoil(at / SECTOR_SIZE, wrong);
    }

    /// A sector can no longer be read.
    pub(super) fn lose_sector(&mut self, at: usize) {
        let sector = at / SECTOR_SIZE;
        let truth = self.sector(sector);
        self.damage.entry(sector).or_insert(Damage { truth, is_unreadable: true });
    }

    fn spoil(&mut self, sector: usize, wrong: Sector) {
        let truth = self.sector(sector);
        if truth != wrong {
            self.damage.entry(sector).or_insert(Damage { truth, is_unreadable: false });
            Arc::make_mut(&mut self.data)[bytes_of(sector)].copy_from_slice(&wrong);
        }
    }

    fn heal(&mut self, range: &Range<usize>) {
        if !self.damage.is_empty() {
            self.damage.retain(|sector, _| !sectors(range).contains(sector));
        }
    }

    /// Puts back what belongs into the range.
    pub(super) fn repair(&mut self, range: &Range<usize>) {
        let wrong: Vec<usize> =
            self.damage.range(sectors(range)).map(|(sector, _)| *sector).collect();
        for sector in wrong {
            let damage = self.damage.remove(&sector).expect("just found");
            Arc::make_mut(&mut self.data)[bytes_of(sector)].copy_from_slice(&damage.truth);
        }
    }

    /// From the first damage in the range to the last, in bytes.
    pub(super) fn damage_in(&self, range: &Range<usize>) -> Option<Range<usize>> {
        let mut wrong = self.damage.range(sectors(range)).map(|(sector, _)| bytes_of(*sector));
        let first = wrong.next()?;
        Some(first.start..wrong.next_back().unwrap_or(first).end)
    }

    /// Whether the disk fails to read some of the range.
    pub(super) fn is_unreadable(&self, range: &Range<usize>) -> bool {
        self.damage.range(sectors(range)).any(|(_, damage)| damage.is_unreadable)
    }
}
