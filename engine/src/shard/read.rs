//! Reading: the tail from memory, older data through cold reads, and waiting for more.

use bytes::Bytes;
use tidemill_wal::format::PartitionId;
use tidemill_wal::store::RunRef;

use super::{Outgoing, Partition, Shard};
use crate::batch::{RecordBatch, batches};
use crate::command::{
    Fetch, FetchPartition, Fetched, OffsetAnswer, OffsetAt, OffsetQuery, Refusal, Reply, Ticket,
};
use crate::effect::{Effect, ExtentRead, Notice, Now, ReadFault, ReadFrom, ReadId};
use crate::partition::fetch::Waiting;

/// What a cold read is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// One partition of a fetch.
    Fetch { ticket: Ticket, index: usize },
    /// Records for an input of a topology.
    Topology { index: usize, wiring: u64, number: usize },
    /// One query by time.
    Query { ticket: Ticket, index: usize, time_ms: i64, start: u64 },
}

/// Offset queries that wait for cold reads.
#[derive(Debug)]
pub(super) struct Queries {
    results: Vec<Option<Result<OffsetAnswer, Refusal>>>,
    reads_open: usize,
}

/// What a fetch finds without waiting.
struct Gathered {
    results: Vec<Option<Fetched>>,
    cold: Vec<(usize, ExtentRead)>,
    size: u64,
    has_refusal: bool,
}

/// Where a partition's data from an offset on are.
enum Place<'a> {
    Memory(Vec<&'a Bytes>),
    Extent(ExtentRead),
    Refused(Refusal),
}

impl Shard {
    pub(super) fn fetch(
        &mut self,
        now: Now,
        ticket: Ticket,
        fetch: Fetch,
        effects: &mut Vec<Effect>,
    ) {
        let gathered = self.gather(&fetch);
        let deadline_ms = now.monotonic_ms + u64::from(fetch.wait_ms);
        if !gathered.cold.is_empty() {
            let waiting = Waiting {
                fetch,
                deadline_ms,
                reads_open: gathered.cold.len(),
                results: gathered.results,
            };
            self.readers.insert(ticket, waiting);
            for (index, request) in gathered.cold {
                self.read(Purpose::Fetch { ticket, index }, request, effects);
            }
            return;
        }
        let is_enough = gathered.size >= u64::from(fetch.bytes_min) || gathered.has_refusal;
        let can_wait = self.readers.count() < self.options.readers_max && !self.is_stopping;
        if is_enough || fetch.wait_ms == 0 || !can_wait {
            self.answer_fetch(ticket, &fetch, gathered.results, effects);
        } else {
            let results = Vec::new();
            self.readers.insert(ticket, Waiting { fetch, deadline_ms, reads_open: 0, results });
        }
    }

    fn gather(&self, fetch: &Fetch) -> Gathered {
        let count = fetch.partitions.len();
        let mut gathered = Gathered {
            results: Vec::with_capacity(count),
            cold: vec![],
            size: 0,
            has_refusal: false,
        };
        let mut rest = u64::from(fetch.bytes_max);
        for (index, wanted) in fetch.partitions.iter().enumerate() {
            let Some(partition) = self.partitions.get(&wanted.partition) else {
                gathered.has_refusal = true;
                gathered.results.push(Some(Fetched {
                    start: 0,
                    durable_end: 0,
                    records: Err(Refusal::UnknownPartition),
                }));
                continue;
            };
            let bytes_max = rest.min(u64::from(wanted.bytes_max));
            let is_first = gathered.size == 0 && gathered.cold.is_empty();
            let records = match self.locate(partition, wanted, bytes_max, is_first) {
                Place::Memory(batches) => {
                    let size: u64 = batches.iter().map(|batch| batch.len() as u64).sum();
                    gathered.size += size;
                    rest = rest.saturating_sub(size);
                    Ok(batches.into_iter().cloned().collect())
                }
                Place::Extent(request) => {
                    rest = rest.saturating_sub(bytes_max);
                    gathered.cold.push((index, request));
                    gathered.results.push(None);
                    continue;
                }
                Place::Refused(refusal) => {
                    gathered.has_refusal = true;
                    Err(refusal)
                }
            };
            gathered.results.push(Some(fetched(partition, records)));
        }
        gathered
    }

    fn locate<'a>(
        &'a self,
        partition: &'a Partition,
        wanted: &FetchPartition,
        bytes_max: u64,
        is_first: bool,
    ) -> Place<'a> {
        let log = &partition.log;
        if wanted.offset < log.start() || wanted.offset > log.durable_end() {
            return Place::Refused(Refusal::OffsetOutOfRange);
        }
        if !is_first && bytes_max == 0 {
            return Place::Memory(Vec::new());
        }
        if wanted.offset < log.tail_start() {
            if self.is_lost(wanted.partition, wanted.offset) {
                return Place::Refused(Refusal::Storage);
            }
            if let Some(run) = self.store.find(wanted.partition, wanted.offset) {
                let from = ReadFrom::Offset(wanted.offset);
                return Place::Extent(extent_read(&run, wanted.partition, from, bytes_max));
            }
        }
        let from = wanted.offset.max(log.tail_start());
        let mut batches = log.read(from, bytes_max).unwrap_or_default();
        let is_too_large =
            batches.first().is_some_and(|batch| batch.bytes.len() as u64 > bytes_max);
        if is_too_large && !is_first {
            batches.clear();
        }
        Place::Memory(batches.into_iter().map(|batch| &batch.bytes).collect())
    }

    /// Whether an operator gave the record up after its file was damaged.
    fn is_lost(&self, partition: PartitionId, offset: u64) -> bool {
        let lost = &self.store.manifest().lost;
        lost.iter()
            .any(|range| range.partition == partition && (range.base..range.end).contains(&offset))
    }

    /// Answers now if everything said is durable anyway, which data at the tail always are; a
    /// refusal or a start that just moved waits behind the barrier like everything else.
    fn answer_fetch(
        &mut self,
        ticket: Ticket,
        fetch: &Fetch,
        results: Vec<Option<Fetched>>,
        effects: &mut Vec<Effect>,
    ) {
        let durable = self.wal.durable();
        let is_settled = |id: &PartitionId| {
            self.partitions.get(id).is_some_and(|partition| partition.changed_in <= durable)
        };
        let is_plain = fetch.partitions.iter().all(|wanted| is_settled(&wanted.partition))
            && results.iter().flatten().all(|fetched| fetched.records.is_ok());
        let nothing = || Fetched { start: 0, durable_end: 0, records: Err(Refusal::Storage) };
        let results = results.into_iter().map(|result| result.unwrap_or_else(nothing)).collect();
        let outgoing = Outgoing::Reply(ticket, Reply::Fetch(results));
        if is_plain {
            self.release(outgoing, effects);
        } else {
            self.hold(outgoing, effects);
        }
    }

    /// A partition got more durable records: long polls that have enough now are answered.
    pub(super) fn wake_readers(&mut self, partition: PartitionId, effects: &mut Vec<Effect>) {
        for ticket in self.readers.on_partition(partition) {
            let Some(fetch) = self.readers.fetch(ticket) else { continue };
            let bytes_min = u64::from(fetch.bytes_min);
            let mut size = 0;
            for wanted in &fetch.partitions {
                if let Some(partition) = self.partitions.get(&wanted.partition) {
                    size +=
                        partition.log.readable_size(wanted.offset, bytes_min - size.min(bytes_min));
                }
                if size >= bytes_min {
                    break;
                }
            }
            if size >= bytes_min {
                self.end_wait(ticket, effects);
            }
        }
    }

    /// Answers a long poll with what there is.
    pub(super) fn end_wait(&mut self, ticket: Ticket, effects: &mut Vec<Effect>) {
        let Some(waiting) = self.readers.remove(ticket) else { return };
        let fetch = Fetch { wait_ms: 0, ..waiting.fetch };
        self.fetch(Now { monotonic_ms: waiting.deadline_ms, wall_ms: 0 }, ticket, fetch, effects);
    }

    pub(super) fn fetch_now(&mut self, ticket: Ticket, effects: &mut Vec<Effect>) {
        if self.readers.is_long_poll(ticket) {
            self.end_wait(ticket, effects);
        }
    }

    pub(super) fn expire_readers(&mut self, now: Now, effects: &mut Vec<Effect>) {
        for ticket in self.readers.expired(now.monotonic_ms) {
            self.end_wait(ticket, effects);
        }
    }

    /// Every long poll is answered: the shard stops.
    pub(super) fn end_all_waits(&mut self, effects: &mut Vec<Effect>) {
        for ticket in self.readers.expired(u64::MAX) {
            self.end_wait(ticket, effects);
        }
    }

    /// Long polls of a topic that goes must hear of it.
    pub(super) fn wake_readers_of_gone(&mut self, gone: &[PartitionId], effects: &mut Vec<Effect>) {
        for partition in gone {
            for ticket in self.readers.on_partition(*partition) {
                self.end_wait(ticket, effects);
            }
        }
    }

    pub(super) fn read(
        &mut self,
        purpose: Purpose,
        request: ExtentRead,
        effects: &mut Vec<Effect>,
    ) {
        let read = ReadId(self.next_read);
        self.next_read += 1;
        self.reads.insert(read, purpose);
        effects.push(Effect::Read { read, request });
    }

    pub(super) fn on_read_done(
        &mut self,
        now: Now,
        read: ReadId,
        result: Result<Vec<Bytes>, ReadFault>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(purpose) = self.reads.remove(&read) else { return };
        if let Err(ReadFault::Corrupt(why) | ReadFault::Failed(why)) = &result {
            effects.push(Effect::Notice(Notice::Damaged(why.clone())));
        }
        match purpose {
            Purpose::Fetch { ticket, index } => self.on_fetch_read(ticket, index, result, effects),
            Purpose::Query { ticket, index, time_ms, start } => {
                let answer = answer_from_batches(result, time_ms, start);
                self.on_query_answer(ticket, index, answer, effects);
            }
            Purpose::Topology { index, wiring, number } => {
                self.on_topology_read(now, (index, wiring, number), result);
            }
        }
    }

    fn on_fetch_read(
        &mut self,
        ticket: Ticket,
        index: usize,
        result: Result<Vec<Bytes>, ReadFault>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(waiting) = self.readers.waiting_mut(ticket) else { return };
        let records = match result {
            Ok(batches) => Ok(batches),
            // The file went while the read was on its way; the client asks again and finds the
            // data elsewhere, or learns that they are gone.
            Err(ReadFault::Gone | ReadFault::Nothing) => Ok(Vec::new()),
            Err(ReadFault::Corrupt(_) | ReadFault::Failed(_)) => Err(Refusal::Storage),
        };
        let id = waiting.fetch.partitions[index].partition;
        waiting.results[index] = Some(match self.partitions.get(&id) {
            Some(partition) => fetched(partition, records),
            None => Fetched { start: 0, durable_end: 0, records: Err(Refusal::UnknownPartition) },
        });
        waiting.reads_open -= 1;
        if waiting.reads_open == 0
            && let Some(waiting) = self.readers.remove(ticket)
        {
            self.answer_fetch(ticket, &waiting.fetch, waiting.results, effects);
        }
    }

    pub(super) fn list_offsets(
        &mut self,
        ticket: Ticket,
        queries: Vec<OffsetQuery>,
        effects: &mut Vec<Effect>,
    ) {
        let mut results = Vec::with_capacity(queries.len());
        let mut cold = Vec::new();
        for (index, query) in queries.iter().enumerate() {
            match self.answer_query(query) {
                Ok(Answer::Now(answer)) => results.push(Some(Ok(answer))),
                Ok(Answer::Cold(request, time_ms, start)) => {
                    let purpose = Purpose::Query { ticket, index, time_ms, start };
                    cold.push((purpose, request));
                    results.push(None);
                }
                Err(refusal) => results.push(Some(Err(refusal))),
            }
        }
        if cold.is_empty() {
            let results = results.into_iter().flatten().collect();
            return self.hold(Outgoing::Reply(ticket, Reply::ListOffsets(results)), effects);
        }
        self.queries.insert(ticket, Queries { results, reads_open: cold.len() });
        for (purpose, request) in cold {
            self.read(purpose, request, effects);
        }
    }

    fn answer_query(&self, query: &OffsetQuery) -> Result<Answer, Refusal> {
        let partition = self.partitions.get(&query.partition).ok_or(Refusal::UnknownPartition)?;
        let log = &partition.log;
        let in_tail = |batch: Option<&crate::partition::log::TailBatch>| {
            let Some(batch) = batch else { return Ok(Answer::Now(OffsetAnswer::None)) };
            let batch = RecordBatch::stored(batch.bytes.clone()).map_err(|_| Refusal::Storage)?;
            Ok(Answer::Now(OffsetAnswer::InBatch(batch)))
        };
        let in_run = |run: &RunRef, time_ms: i64| {
            let from = ReadFrom::Time(time_ms);
            Answer::Cold(extent_read(run, query.partition, from, 1), time_ms, log.start())
        };
        match query.at {
            OffsetAt::Earliest => Ok(Answer::Now(OffsetAnswer::Offset(log.start()))),
            OffsetAt::Latest => Ok(Answer::Now(OffsetAnswer::Offset(log.durable_end()))),
            OffsetAt::Time(time_ms) => {
                // A run below the start is on its way out, but may not be gone yet.
                let mut runs = self.store.runs(query.partition);
                match runs.find(|run| run.max_timestamp_ms >= time_ms && run.end > log.start()) {
                    Some(run) => Ok(in_run(run, time_ms)),
                    None => in_tail(log.find_time(time_ms)),
                }
            }
            OffsetAt::MaxTimestamp => {
                let newest = log.find_max_timestamp();
                let stored = self
                    .store
                    .runs(query.partition)
                    .filter(|run| run.end > log.start())
                    .max_by_key(|run| (run.max_timestamp_ms, std::cmp::Reverse(run.base)));
                match (stored, newest) {
                    (Some(run), Some(batch)) if run.max_timestamp_ms < batch.max_timestamp_ms => {
                        in_tail(Some(batch))
                    }
                    (Some(run), _) => Ok(in_run(run, run.max_timestamp_ms)),
                    (None, newest) => in_tail(newest),
                }
            }
        }
    }

    fn on_query_answer(
        &mut self,
        ticket: Ticket,
        index: usize,
        answer: Result<OffsetAnswer, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(queries) = self.queries.get_mut(&ticket) else { return };
        queries.results[index] = Some(answer);
        queries.reads_open -= 1;
        if queries.reads_open == 0
            && let Some(queries) = self.queries.remove(&ticket)
        {
            let results = queries.results.into_iter().flatten().collect();
            self.hold(Outgoing::Reply(ticket, Reply::ListOffsets(results)), effects);
        }
    }
}

/// Largest cold read, in bytes; a reader comes again for more. It is memory of its own that waits
/// with its answer, for as many readers as there are.
const COLD_READ_SIZE_MAX: u64 = 1 << 20;

enum Answer {
    Now(OffsetAnswer),
    Cold(ExtentRead, i64, u64),
}

fn fetched(partition: &Partition, records: Result<Vec<Bytes>, Refusal>) -> Fetched {
    let (start, durable_end) = (partition.log.start(), partition.log.durable_end());
    Fetched { start, durable_end, records }
}

pub(super) fn extent_read(
    run: &RunRef,
    partition: PartitionId,
    from: ReadFrom,
    bytes_max: u64,
) -> ExtentRead {
    let bytes_max = bytes_max.min(COLD_READ_SIZE_MAX) as u32;
    ExtentRead { file: run.file.clone(), partition, from, bytes_max }
}

/// The first batch that fits both the time and the log's start.
fn answer_from_batches(
    result: Result<Vec<Bytes>, ReadFault>,
    time_ms: i64,
    start: u64,
) -> Result<OffsetAnswer, Refusal> {
    let pieces = match result {
        Ok(pieces) => pieces,
        Err(ReadFault::Nothing) => return Ok(OffsetAnswer::None),
        Err(ReadFault::Gone) => return Err(Refusal::Busy),
        Err(ReadFault::Corrupt(_) | ReadFault::Failed(_)) => return Err(Refusal::Storage),
    };
    for piece in pieces {
        for batch in batches(piece) {
            let batch = batch.map_err(|_| Refusal::Storage)?;
            if batch.max_timestamp_ms() >= time_ms && batch.last_offset() >= start {
                return Ok(OffsetAnswer::InBatch(batch));
            }
        }
    }
    Ok(OffsetAnswer::Offset(start))
}
