//! `tidemill-bench fill`: many records, quickly.
//!
//! Into a directory they go as extents, past the WAL, for tests of recovery with much data. Into
//! a node that runs they go over the Kafka protocol, as a client's would.

mod client;
mod extents;

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use clap::Args;
use tidemill::batch::{self, BatchBuilder, NewRecord, RecordBatch};

/// Records are added to a batch up to this size.
const BATCH_SIZE: usize = 64 << 10;

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

/// What was written.
#[derive(Debug, Default)]
struct Filled {
    records: u64,
    size: u64,
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
            for byte in &mut value {
                // Text that does not compress to nothing.
                bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = b'a' + (bits >> 59) as u8 % 26;
            }
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

fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err("write a number with KiB, MiB, GiB or TiB, for example 20GiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "write a number first".to_owned())?;
    let size = number.checked_mul(1 << shift).ok_or("that is too much")?;
    if size == 0 { Err("write more than nothing".to_owned()) } else { Ok(size) }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// 64 random bits.
fn random() -> u64 {
    let mut bytes = [0; 8];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.expect("the system has random numbers");
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(parse_size("20GiB"), Ok(20 << 30));
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("3 KiB"), Ok(3072));
        for wrong in ["", "GiB", "20GB", "-1", "0", "99999999999999TiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_stamped_template_is_a_batch_of_its_place() {
        let template = Template::new(100);
        let batch = RecordBatch::check(template.at(7)).expect("the checksum still holds");
        assert_eq!(batch.base_offset(), 7);
        assert_eq!(batch.last_offset(), 6 + template.record_count());
        assert!(batch.size() <= BATCH_SIZE + 200);
    }
}
