//! `tidemill-bench fill`: many records, quickly.
//!
//! Into a directory they go as extents, past the WAL, for tests of recovery with much data. Into
//! a node that runs they go over the Kafka protocol, as a client's would.

mod client;
mod extents;

pub use self::client::{Addressed, send};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use clap::Args;
use tidemill::batch::{self, BatchBuilder, NewRecord, RecordBatch};

use crate::load::kafka::fill_with_text;
use crate::{now_ms, parse_size, random};

/// Records are added to a batch up to this size.
pub const BATCH_SIZE: usize = 64 << 10;

/// A record must fit the default limit of a batch.
const RECORD_SIZE_MAX: usize = 1_000_000;

/// Arguments of the subcommand.
#[derive(Debug, Args)]
pub struct Options {
    /// A data directory to make.
    #[arg(long, value_name = "DIR", required_unless_present = "address")]
    data_dir: Option<PathBuf>,
    /// A node to fill over the Kafka protocol.
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["data_dir", "shards"])]
    address: Option<SocketAddr>,
    /// Bytes of record batches in all, for example 20GiB.
    #[arg(long, value_parser = parse_size)]
    size: u64,
    /// Shards of the new directory.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    shards: u16,
    /// Partitions of the topic; one for each shard if it is not said.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    partitions: Option<u32>,
    /// Bytes of one record's value.
    #[arg(long, default_value_t = 256)]
    record_size: usize,
    /// Name of the topic, which is made.
    #[arg(long, default_value = "fill")]
    topic: String,
}

/// Runs the subcommand.
pub fn run(options: &Options) -> Result<(), String> {
    if options.record_size > RECORD_SIZE_MAX {
        return Err(format!("a record has at most {RECORD_SIZE_MAX} bytes"));
    }
    let template = Template::new(options.record_size);
    let started = Instant::now();
    let filled = match (&options.data_dir, options.address) {
        (Some(data), _) => extents::fill(data, options, &template)?,
        (None, Some(address)) => client::fill(address, options, &template)?,
        (None, None) => unreachable!("clap requires one of them"),
    };
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} records, {} MiB of batches, in {seconds:.1} s: {:.0} MiB/s",
        filled.records,
        filled.size >> 20,
        (filled.size >> 20) as f64 / seconds
    );
    Ok(())
}

/// Fills a topic of a node that runs, which is made for it.
pub fn into_topic(
    address: SocketAddr,
    topic: &str,
    partitions: u32,
    size: u64,
    record_size: usize,
) -> Result<Filled, String> {
    client::into_topic(address, (topic, Some(partitions)), size, &Template::new(record_size))
}

/// What was written.
#[derive(Debug, Default)]
pub struct Filled {
    /// Records.
    pub records: u64,
    /// Bytes of their batches.
    pub size: u64,
}

/// A batch that is written again and again with other offsets.
struct Template {
    batch: RecordBatch,
}

impl Template {
    fn new(record_size: usize) -> Self {
        let mut bits = random();
        let mut value = vec![0; record_size];
        let mut builder = BatchBuilder::new();
        let timestamp_ms = now_ms();
        while builder.record_count() == 0 || builder.size() + record_size <= BATCH_SIZE {
            fill_with_text(&mut value, &mut bits);
            builder.push(NewRecord { timestamp_ms, value: Some(&value), ..NewRecord::default() });
        }
        Self { batch: builder.build() }
    }

    fn size(&self) -> u64 {
        self.batch.size() as u64
    }

    fn record_count(&self) -> u64 {
        self.batch.record_count().into()
    }

    fn max_timestamp_ms(&self) -> i64 {
        self.batch.max_timestamp_ms()
    }

    /// The batch as it comes from a client.
    fn bytes(&self) -> &Bytes {
        self.batch.bytes()
    }

    /// The batch at its place in a log.
    fn at(&self, base_offset: u64) -> Bytes {
        let mut bytes = BytesMut::from(&self.batch.bytes()[..]);
        batch::stamp(&mut bytes, base_offset, 0);
        bytes.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamped_template_is_a_batch_of_its_place() {
        let template = Template::new(100);
        let batch = RecordBatch::check(template.at(7)).expect("the checksum still holds");
        assert_eq!(batch.base_offset(), 7);
        assert_eq!(batch.last_offset(), 6 + template.record_count());
        assert!(batch.size() <= BATCH_SIZE + 200);
    }
}
