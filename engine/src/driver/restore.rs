//! The same node with another number of shards.

use std::collections::VecDeque;

use tidemill_wal::disk::MemoryStorage;
use tidemill_wal::format::ShardId;
use tidemill_wal::recovery::perform_write;

use super::{DriverError, Place, TestDriver};
use crate::effect::Input;
use crate::reshard::reshard;
use crate::shard::{Contents, OpenError, Shard, ShardOptions};

impl TestDriver {
    /// Goes on with another number of shards over the same contents: records with their offsets,
    /// producers, consumer groups, and of topologies the state, timers, event time and progress. What
    /// is on its way between the shards is taken first, and the node ends cleanly. If the power is
    /// gone, it comes back before that.
    ///
    /// An error leaves the old shards as they are, without power; [`Self::restart`] goes on with them.
    /// It is one if a topology rests and leaves what another shard sent to it.
    pub fn restore(&mut self, shard_count: u16) -> Result<(), DriverError> {
        assert!(shard_count > 0, "a node has a shard");
        if self.is_down {
            self.restart()?;
        }
        self.writes_left = None;
        self.run();
        self.stop()?;
        self.starts += 1;
        let mut contents = Vec::new();
        for index in 0..self.places.len() {
            let options = self.options_of(index, self.shard_count);
            let disk = &mut self.places[index].disk;
            let mut opened = Shard::open(disk, options, self.now, &mut |_| {})?;
            contents.push(opened.shard.contents(disk).map_err(OpenError::from)?);
        }
        let contents = reshard(contents, shard_count)?;
        let mut places = Vec::new();
        for (index, contents) in contents.into_iter().enumerate() {
            places.push(self.place_of(index, shard_count, contents)?);
        }
        (self.places, self.shard_count) = (places, shard_count);
        self.restart()
    }

    /// The end of every shard, as a node that is told to stop makes it.
    fn stop(&mut self) -> Result<(), OpenError> {
        for place in &mut self.places {
            place.inbox.push_back(Input::Stop);
        }
        self.run();
        for place in &mut self.places {
            let seal = place.shard.as_mut().and_then(|shard| shard.seal(self.now));
            if let Some(seal) = seal {
                perform_write(&mut place.disk, &seal)?;
            }
        }
        self.power_off();
        Ok(())
    }

    fn place_of(
        &self,
        index: usize,
        shard_count: u16,
        contents: Contents,
    ) -> Result<Place, OpenError> {
        let mut disk = MemoryStorage::new();
        contents.write(&mut disk, self.options_of(index, shard_count), self.now)?;
        Ok(Place { disk, shard: None, inbox: VecDeque::new() })
    }

    /// Of a shard without topologies.
    fn options_of(&self, index: usize, shard_count: u16) -> ShardOptions {
        let options = self.options(index as u16);
        ShardOptions { id: ShardId(index as u16), shard_count, topologies: Vec::new(), ..options }
    }
}
