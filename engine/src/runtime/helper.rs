//! The helper thread of a shard: cold reads and the scrub.
//!
//! It alone touches what may wait for the disk, so neither a page fault nor a media error can stop
//! the shard. A read finds its place in the mapped file, whose pages the kernel brings in first (a
//! media error is then an error and no signal), reads the batches past the page cache into memory
//! that is used again, and checks them there.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use tidemill_wal::damage::{Damage, FileFault};
use tidemill_wal::disk::ExtentMap;
use tidemill_wal::extent::{ExtentView, ReadFrom as Position, RunData};
use tidemill_wal::format::{FileName, ShardId};
use tidemill_wal::pool::Pool;
use tidemill_wal::scrub::ScrubPiece;
use tidemill_wal::store::{MergePlan, SettleFiles};

use super::mesh::Doorbell;
use super::placement;
use crate::effect::{ExtentRead, Input, ReadFault, ReadFrom, ReadId};

/// Requests that may wait for the thread; the shard's loop keeps the rest.
const REQUESTS_QUEUED_MAX: usize = 64;

/// Maps that are kept open: a consumer that catches up reads one file many times.
const MAPS_MAX: usize = 32;

/// Memory of one read: what a consumer asks for by default, and blocks that are cut at both ends.
const READ_SIZE: usize = (1 << 20) + (64 << 10);

/// How often memory is given back that no read has needed since the last time.
const RELEASE_INTERVAL: Duration = Duration::from_secs(30);

/// Inputs from threads that are not shards.
#[derive(Debug)]
pub struct Mailbox {
    inputs: Mutex<Vec<Input>>,
    notices: Mutex<Vec<String>>,
    doorbells: Arc<[Doorbell]>,
    shard: ShardId,
}

impl Mailbox {
    /// The mailbox of one shard.
    pub fn new(doorbells: Arc<[Doorbell]>, shard: ShardId) -> Arc<Self> {
        Arc::new(Self { inputs: Mutex::default(), notices: Mutex::default(), doorbells, shard })
    }

    /// Puts an input in and wakes the shard.
    pub fn put(&self, input: Input) {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner).push(input);
        self.doorbells[usize::from(self.shard.0)].ring();
    }

    /// Reports damage that the scrub found.
    fn report(&self, fault: String) {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
        self.doorbells[usize::from(self.shard.0)].ring();
    }

    /// Takes everything.
    pub fn take(&self) -> Vec<Input> {
        std::mem::take(&mut self.inputs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the scrub's reports.
    pub fn take_reports(&self) -> Vec<String> {
        std::mem::take(&mut self.notices.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
            && self.notices.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// What the thread is asked.
#[derive(Debug)]
pub enum Request {
    /// A range of one partition.
    Read(ReadId, ExtentRead),
    /// The files of a settle round.
    Plan(SettleFiles),
    /// All that a merge needs.
    Merge(MergePlan),
    /// A piece of an extent, to be verified.
    Verify(ScrubPiece),
    /// Files that are about to be removed: an open map would keep their room on the disk.
    Forget(Vec<FileName>),
}

/// The running thread.
#[derive(Debug)]
pub struct Helper {
    requests: Sender<Request>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    /// Starts the thread for the extents of one directory, on any of these cores.
    pub fn start(
        name: String,
        directory: PathBuf,
        mailbox: Arc<Mailbox>,
        cores: Vec<usize>,
        scrubbed: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let (requests, received) = bounded(REQUESTS_QUEUED_MAX);
        let worker = Worker {
            maps: Maps { shard: mailbox.shard, directory, open: VecDeque::new() },
            pool: Pool::new(READ_SIZE),
            requests: received,
            mailbox,
            scrubbed: Box::new(scrubbed),
        };
        let thread = thread::Builder::new().name(name).spawn(move || {
            placement::keep_on(&cores);
            worker.run();
        })?;
        Ok(Self { requests, thread: Some(thread) })
    }

    /// Hands a request over; gives it back if the queue is full.
    pub fn ask(&self, request: Request) -> Result<(), Request> {
        self.requests.try_send(request).map_err(TrySendError::into_inner)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Without a sender the thread ends after the request at hand.
        self.requests = bounded(0).0;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    maps: Maps,
    /// Memory of reads.
    pool: Pool,
    requests: Receiver<Request>,
    mailbox: Arc<Mailbox>,
    scrubbed: Box<dyn Fn(u64) + Send>,
}

impl Worker {
    fn run(mut self) {
        let mut next_release = Instant::now() + RELEASE_INTERVAL;
        loop {
            if next_release <= Instant::now() {
                self.pool.release();
                next_release = Instant::now() + RELEASE_INTERVAL;
            }
            let request = match self.requests.recv_deadline(next_release) {
                Ok(request) => request,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            match request {
                Request::Read(read, request) => {
                    let result = self.maps.read(&request, &mut self.pool);
                    self.mailbox.put(Input::ReadDone { read, result });
                }
                Request::Plan(files) => self.mailbox.put(Input::Planned(files.plan())),
                Request::Merge(plan) => {
                    let result = self.maps.read_merge(&plan);
                    self.mailbox.put(Input::MergeRead(result));
                }
                Request::Verify(piece) => {
                    let size = piece.range.end - piece.range.start;
                    for fault in self.maps.verify(&piece) {
                        self.mailbox.report(fault);
                    }
                    (self.scrubbed)(size);
                }
                Request::Forget(files) => {
                    self.maps.open.retain(|(name, _)| !files.contains(name));
                }
            }
        }
    }
}

/// Part of what was read. A little of it is copied, for it would hold all the memory.
fn answer(bytes: &Bytes, range: Range<usize>) -> Bytes {
    let held = if bytes.len() <= READ_SIZE / 2 { bytes.len() } else { READ_SIZE.max(bytes.len()) };
    if range.len() * 2 < held { Bytes::copy_from_slice(&bytes[range]) } else { bytes.slice(range) }
}

/// Open maps, the last used last.
struct Maps {
    shard: ShardId,
    directory: PathBuf,
    open: VecDeque<(FileName, ExtentMap)>,
}

impl Maps {
    fn map(&mut self, file: &FileName) -> Result<&ExtentMap, ReadFault> {
        if let Some(index) = self.open.iter().position(|(name, _)| name == file) {
            let entry = self.open.remove(index).expect("just found");
            self.open.push_back(entry);
        } else {
            let map = self.open_map(file)?;
            if self.open.len() == MAPS_MAX {
                self.open.pop_front();
            }
            self.open.push_back((file.clone(), map));
        }
        Ok(&self.open.back().expect("just pushed").1)
    }

    fn open_map(&self, file: &FileName) -> Result<ExtentMap, ReadFault> {
        ExtentMap::open(&self.directory.join(&*file.0)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ReadFault::Gone,
            _ => ReadFault::Failed(format!("{file}: {error}")),
        })
    }

    fn read(&mut self, request: &ExtentRead, pool: &mut Pool) -> Result<Vec<Bytes>, ReadFault> {
        let file = &request.file;
        let shard = self.shard;
        let map = self.map(file)?;
        let corrupt = |fault: Damage| ReadFault::Corrupt(format!("{file}: {fault}"));
        let populate = |range| map.populate(range);
        let view = ExtentView::open_named(map.bytes(), &populate, shard, file).map_err(corrupt)?;
        let from = match request.from {
            ReadFrom::Offset(offset) => Position::Offset(offset),
            ReadFrom::Time(time_ms) => Position::Time(time_ms),
        };
        let bytes_max = request.bytes_max as usize;
        let mut from = from;
        while let Some(pieces) = view.locate(request.partition, from, bytes_max).map_err(corrupt)? {
            let place = pieces.range();
            let bytes = map.read(place.clone(), pool).map_err(|error| {
                let Range { start, end } = place;
                ReadFault::Failed(format!("{file}: bytes {start} to {end} cannot be read: {error}"))
            })?;
            if let Some(range) = pieces.find(&bytes).map_err(corrupt)? {
                return Ok(vec![answer(&bytes, range)]);
            }
            from = Position::Offset(pieces.next_offset.ok_or(ReadFault::Nothing)?);
        }
        Err(ReadFault::Nothing)
    }

    /// Reads whole files instead of keeping maps: a merge's data outlive its inputs.
    fn read_merge(&self, plan: &MergePlan) -> Result<Vec<RunData>, ReadFault> {
        let mut open = |file: &FileName| {
            let map = ExtentMap::open(&self.directory.join(&*file.0))?;
            map.populate(0..map.bytes().len())?;
            Ok(Bytes::copy_from_slice(map.bytes()))
        };
        plan.read(&mut open).map_err(|(file, fault)| match fault {
            FileFault::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ReadFault::Gone
            }
            fault => ReadFault::Corrupt(format!("{file}: {fault}")),
        })
    }

    /// Every fault of the piece, in words.
    fn verify(&self, piece: &ScrubPiece) -> Vec<String> {
        let file = &piece.file;
        // A map of its own, so that the scrub does not push out what consumers read.
        let map = match self.open_map(file) {
            Ok(map) => map,
            Err(ReadFault::Gone | ReadFault::Nothing) => return Vec::new(),
            Err(ReadFault::Corrupt(why) | ReadFault::Failed(why)) => return vec![why],
        };
        let populate = |range| map.populate(range);
        let mut faults = Vec::new();
        match ExtentView::open_named(map.bytes(), &populate, self.shard, file) {
            Ok(view) => view.verify_range(piece.range.clone(), &mut |damage| {
                faults.push(format!("{file}: {damage}"));
            }),
            Err(damage) => faults.push(format!("{file}: {damage}")),
        }
        faults
    }
}
