//! What the node says about its disks is compared with what is wrong with them, and the operator
//! repairs what he is told of.

use tidemill::shard::OpenError;
use tidemill_wal::disk::DiskFault;
use tidemill_wal::format::FileName;
use tidemill_wal::recovery::ScanError;
use tidemill_wal::store::StoreError;

use super::{Event, World};
use crate::sim::disk::is_injected;
use crate::sim::model::Check;

/// How soon the operator repairs a disk, in microseconds; sooner when no new faults come.
const REPAIR_US_MAX: u64 = 50_000;

/// What a refused start blames: the file and the place in it.
fn blamed(error: &OpenError) -> Option<(&FileName, u64)> {
    match error {
        OpenError::Store(
            StoreError::Corrupt {
                file, damage: tidemill_wal::damage::Damage { position, .. }, ..
            }
            | StoreError::Read { file, position, .. },
        ) => Some((file, *position)),
        OpenError::Store(StoreError::TooNew { file, .. }) => Some((file, 0)),
        OpenError::Scan(
            ScanError::Corrupt { file, offset, .. }
            | ScanError::TooNew { file, offset, .. }
            | ScanError::Io { file, offset, .. },
        ) => Some((file, *offset)),
        OpenError::Store(
            StoreError::Missing { .. } | StoreError::NoManifest { .. } | StoreError::List(_),
        )
        | OpenError::Scan(ScanError::Missing { .. } | ScanError::Rejected { .. })
        | OpenError::Disk(_)
        | OpenError::Directory(_)
        | OpenError::Contents(_)
        | OpenError::Disagree(_)
        | OpenError::Topology(..) => None,
    }
}

/// Whether the error says that the disk did not do what it was asked.
fn is_of_disk(error: &OpenError) -> bool {
    match error {
        OpenError::Disk(fault) => is_injected(fault),
        OpenError::Scan(ScanError::Io { .. })
        | OpenError::Store(StoreError::Read { .. } | StoreError::List(_)) => true,
        OpenError::Scan(_)
        | OpenError::Store(_)
        | OpenError::Directory(_)
        | OpenError::Contents(_)
        | OpenError::Disagree(_)
        | OpenError::Topology(..) => false,
    }
}

impl World {
    /// A shard does not start: it must have a reason, and name it.
    pub(super) fn judge_refusal(
        &mut self,
        index: u16,
        error: &OpenError,
        has_failed: bool,
    ) -> Check {
        let disk = &mut self.disks[usize::from(index)];
        if has_failed {
            self.counts.starts_failed += 1;
            return match is_of_disk(error) {
                true => Ok(()),
                false => Err(format!("shard {index} takes a failing disk for: {error}")),
            };
        }
        if let OpenError::Disk(DiskFault::Full { .. }) = error
            && disk.is_full()
        {
            // The operator makes room.
            disk.set_full(false);
            return Ok(());
        }
        let Some((file, position)) = blamed(error) else {
            return Err(format!("shard {index} does not start: {error}"));
        };
        let Some(damage) = disk.damage_of(file) else {
            return Err(format!("shard {index} blames {file}, which is whole: {error}"));
        };
        if position >= damage.end as u64 {
            return Err(format!("shard {index}: the damage is at {damage:?}, not where {error}"));
        }
        self.counts.starts_refused += 1;
        self.counts.repairs += 1;
        disk.repair();
        Ok(())
    }

    /// A read of a shard's helper failed; its reason must be true.
    pub(super) fn on_damage_read(&mut self, index: u16, file: &FileName, why: &str) -> Check {
        let disk = &self.disks[usize::from(index)];
        // A map that was kept shows what the file was when it still had a name.
        let is_true = disk.damage_of(file).is_some() || disk.map(file).is_none();
        self.say(|| format!("{index} reads damage: {why}"));
        if !is_true {
            return Err(format!("shard {index} complains about {file}, which is whole: {why}"));
        }
        self.counts.damage_read += 1;
        let slot = &mut self.slots[usize::from(index)];
        if !std::mem::replace(&mut slot.is_repair_due, true) {
            let delay_us = if self.is_calm { 200 } else { REPAIR_US_MAX };
            let delay_us = self.random.skewed(1, delay_us);
            self.schedule(delay_us, Event::Repair(index));
        }
        Ok(())
    }

    /// A shard tells people of damage: once for each read that failed.
    pub(super) fn on_damage_told(&mut self, index: u16, why: &str) -> Check {
        let due = &mut self.slots[usize::from(index)].notices_due;
        match due.checked_sub(1) {
            Some(left) => *due = left,
            None => return Err(format!("shard {index} tells of damage that nobody read: {why}")),
        }
        Ok(())
    }

    /// A shard that has taken in everything has told of all damage that was read for it.
    pub(super) fn check_told(&self, index: u16) -> Check {
        let Some(slot) = self.slots.get(usize::from(index)) else { return Ok(()) };
        if slot.notices_due > 0 && slot.inbox.is_empty() && !self.is_crashing {
            return Err(format!("shard {index} keeps damage to itself"));
        }
        Ok(())
    }

    /// The operator restores what the disk has lost.
    pub(super) fn repair(&mut self, index: u16) {
        self.say(|| format!("disk {index} is restored from a copy"));
        self.counts.repairs += 1;
        self.disks[usize::from(index)].repair();
        let slot = &mut self.slots[usize::from(index)];
        slot.maps.clear();
        slot.is_repair_due = false;
    }
}
