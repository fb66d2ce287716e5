//! A fresh client of a node in peace: it must be answered, and what it reads is what there is.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tidemill::batch::{Record, batches};
use tidemill::kafka::error_code::ErrorCode;
use tidemill::kafka::messages::{
    CreateTopic, CreateTopicsRequest, DeleteTopic, DeleteTopicsRequest, MetadataRequest,
    MetadataRequestTopic, OffsetFetchRequest, OffsetFetchTopic, Request,
};

use super::broken;
use super::ledger::{Keys, is_value};
use crate::daemon::dump_binary;
use crate::peer::{FETCH_VERSION, Peer, fetch_request};

/// Most bytes that the records of one batch take.
const RECORDS_SIZE_MAX: usize = 64 << 20;
/// A node in peace may still be busy with what was before, but not for longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The keys of all records of a topic, each partition from its first offset to its end.
pub fn read_back(peer: &mut Peer, topic: &str, partitions: u32) -> Result<Vec<Keys>, String> {
    (0..partitions).map(|partition| read_partition(peer, topic, partition)).collect()
}

fn read_partition(peer: &mut Peer, topic: &str, partition: u32) -> Result<Keys, String> {
    let mut keys = Keys::new();
    visit(peer, topic, partition, &mut |record| {
        let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
        let key = key.and_then(|key| key.parse().ok());
        match (key, record.value.as_deref()) {
            (Some(key), Some(value)) if is_value(key, value) => keys.push(key),
            _ => return Err("nobody wrote it".to_owned()),
        }
        Ok(())
    })?;
    Ok(keys)
}

/// Shows every record of a partition from offset 0 to its end; a gap is an error. Returns the end.
pub fn visit(
    peer: &mut Peer,
    topic: &str,
    partition: u32,
    see: &mut dyn FnMut(&Record) -> Result<(), String>,
) -> Result<u64, String> {
    let place = format!("{topic}/{partition}");
    let mut next = 0;
    loop {
        let request = fetch_request(topic, partition as i32, next as i64);
        let mut response =
            peer.try_ask(FETCH_VERSION, &request).map_err(broken(&format!("fetch {place}")))?;
        let mut topics = response.responses.pop().ok_or(format!("{place}: no answer"))?;
        let answer = topics.partitions.pop().ok_or(format!("{place}: no answer"))?;
        if answer.error_code != ErrorCode::None || answer.log_start_offset > 0 {
            return Err(format!(
                "{place} at {next}: {:?}, the log starts at {}",
                answer.error_code, answer.log_start_offset
            ));
        }
        let before = next;
        for batch in batches(answer.records.0.concat().into()) {
            let batch = batch.map_err(|fault| format!("{place}: {fault}"))?;
            let records =
                batch.records(RECORDS_SIZE_MAX).map_err(|fault| format!("{place}: {fault}"))?;
            for record in records {
                let record = record.map_err(|fault| format!("{place}: {fault}"))?;
                if record.offset < next {
                    continue;
                }
                if record.offset > next {
                    return Err(format!("{place}: {} comes after {next}", record.offset));
                }
                see(&record).map_err(|why| format!("{place} at {next}: {why}"))?;
                next += 1;
            }
        }
        let end = answer.high_watermark as u64;
        if next == end {
            return Ok(end);
        }
        if next == before || next > end {
            return Err(format!("{place}: {next} records up to the end at {end}"));
        }
    }
}

/// The offset that a group has stored.
pub fn committed(
    peer: &mut Peer,
    group: &str,
    topic: &str,
    partition: u32,
) -> Result<Option<u64>, String> {
    let wanted = OffsetFetchTopic {
        name: topic.into(),
        partition_indexes: vec![partition as i32],
        ..Default::default()
    };
    let request = OffsetFetchRequest {
        group_id: group.into(),
        topics: Some(vec![wanted]),
        ..Default::default()
    };
    let response =
        peer.try_ask(7, &request).map_err(broken(&format!("the offsets of group {group}")))?;
    let found = response.topics.first().and_then(|topic| topic.partitions.first());
    let found = found.ok_or(format!("group {group}: no answer for {topic}/{partition}"))?;
    for code in [response.error_code, found.error_code] {
        if code != ErrorCode::None {
            return Err(format!("the offsets of group {group}: {code:?}"));
        }
    }
    Ok(u64::try_from(found.committed_offset).ok())
}

/// Whether there is such a topic.
pub fn exists(peer: &mut Peer, topic: &str) -> Result<bool, String> {
    let topic = MetadataRequestTopic { name: Some(topic.into()), ..Default::default() };
    let request = MetadataRequest {
        topics: Some(vec![topic]),
        allow_auto_topic_creation: false,
        ..Default::default()
    };
    let response = peer.try_ask(12, &request).map_err(broken("metadata"))?;
    Ok(response.topics.iter().any(|topic| topic.error_code == ErrorCode::None))
}

/// Makes a topic.
pub fn create_topic(peer: &mut Peer, name: &str, partitions: u32) -> Result<(), String> {
    let topic = CreateTopic {
        name: name.into(),
        num_partitions: partitions as i32,
        replication_factor: 1,
        ..Default::default()
    };
    let request =
        CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
    patiently(peer, 7, &request, |response| {
        let made = response.topics.first().map(|topic| topic.error_code);
        // It was made, and the answer came too late.
        made.map(|code| if code == ErrorCode::TopicAlreadyExists { ErrorCode::None } else { code })
    })
}

/// Deletes a topic.
pub fn delete_topic(peer: &mut Peer, name: &str) -> Result<(), String> {
    let topic = DeleteTopic { name: Some(name.into()), ..Default::default() };
    let request =
        DeleteTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
    patiently(peer, 6, &request, |response| {
        response.responses.first().map(|topic| topic.error_code)
    })
}

/// Asks until it succeeds, as a client does that tries again where it may.
fn patiently<R: Request>(
    peer: &mut Peer,
    version: i16,
    request: &R,
    code: impl Fn(R::Response) -> Option<ErrorCode>,
) -> Result<(), String> {
    let begin = Instant::now();
    loop {
        let response = peer.try_ask(version, request).map_err(broken(&R::API.to_string()))?;
        match code(response) {
            Some(ErrorCode::None) => return Ok(()),
            Some(code) if code.is_retriable() && begin.elapsed() < PATIENCE => {
                std::thread::park_timeout(Duration::from_millis(50));
            }
            other => return Err(format!("{} is answered with {other:?}", R::API)),
        }
    }
}

/// `tidemill-dump --verify` finds nothing.
pub fn verify(data_dir: &Path) -> Result<(), String> {
    let output = Command::new(dump_binary())
        .arg("--verify")
        .arg(data_dir)
        .output()
        .map_err(broken("tidemill-dump"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "tidemill-dump --verify ends with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}
