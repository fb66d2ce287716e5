//! The seam out: what happens to a shard, and what it asks of the world.
//!
//! The runtime turns sockets, rings, timers and completions into [`Input`]s and performs the
//! [`Effect`]s; the simulator does the same with faults.

use std::sync::Arc;

use bytes::Bytes;
use tidemill_wal::commit::FrameWrite;
use tidemill_wal::disk::{DiskFault, DiskOp};
use tidemill_wal::extent::RunData;
use tidemill_wal::format::{FileName, PartitionId, Sequence, ShardId};
use tidemill_wal::scrub::ScrubPiece;
use tidemill_wal::store::{MergePlan, PlannedFiles, SettleFiles};

use crate::command::{Command, Reply, Routes, Ticket};

/// The step's clock, handed in with every input. Steps of one shard never see it go back, except
/// `wall_ms`, which is the machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Milliseconds of a clock that only goes forward; for timeouts.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970; for timestamps and retention.
    pub wall_ms: i64,
}

/// Something happened.
#[derive(Debug)]
pub enum Input {
    /// A protocol asks. Answered by exactly one `Effect::Reply` with the same ticket.
    Command {
        /// Names the command in its reply.
        ticket: Ticket,
        /// What is asked.
        command: Command,
    },
    /// The waiting fetch with this ticket is to be answered with what there is.
    FetchNow(Ticket),
    /// The asker is gone (its connection closed): waiting for it ends. Its command still has its
    /// one reply, which nobody reads.
    Cancel(Ticket),
    /// Another shard says something.
    Mesh {
        /// Who.
        from: ShardId,
        /// What.
        message: MeshMessage,
    },
    /// The write of the frame in flight is durable.
    Durable(Sequence),
    /// A disk job ended.
    DiskDone {
        /// Which.
        job: JobId,
        /// How. A `Failed` fault never comes here: the process ends first.
        result: Result<(), DiskFault>,
    },
    /// A cold read ended.
    ReadDone {
        /// Which.
        read: ReadId,
        /// Whole batches that cover the range, checked; or what is wrong with the file.
        result: Result<Vec<Bytes>, ReadFault>,
    },
    /// The files of a settle round are planned.
    Planned(PlannedFiles),
    /// The runs of a merge are read, or cannot be.
    MergeRead(Result<Vec<RunData>, ReadFault>),
    /// A blocking call of a topology ended.
    Called {
        /// Which.
        call: CallId,
        /// What came of it.
        result: CallResult,
    },
    /// Time has passed; due timers fire.
    Tick,
    /// No more commands will come: finish what was begun, settle nothing new.
    Stop,
}

/// The shard asks the world to do something.
#[derive(Debug)]
pub enum Effect {
    /// Write a frame durably, then come back with `Input::Durable`. At most one is in flight.
    Write(FrameWrite),
    /// Answer a command.
    Reply {
        /// The command.
        ticket: Ticket,
        /// The answer.
        reply: Reply,
    },
    /// Tell another shard.
    Mesh {
        /// Whom.
        to: ShardId,
        /// What.
        message: MeshMessage,
    },
    /// Perform the operations in order in the background, then `Input::DiskDone`.
    Disk {
        /// Names the job in its completion.
        job: JobId,
        /// What to do.
        ops: Vec<DiskOp>,
    },
    /// Read from an extent off the shard's thread, then `Input::ReadDone`.
    Read {
        /// Names the read in its completion.
        read: ReadId,
        /// What to read.
        request: ExtentRead,
    },
    /// Plan (and so checksum) the files of a settle round off the shard's thread, then
    /// `Input::Planned`.
    Plan(SettleFiles),
    /// Read what a merge needs off the shard's thread, then `Input::MergeRead`.
    ReadMerge(MergePlan),
    /// Verify a piece of an extent off the shard's thread; only damage is reported.
    Verify(ScrubPiece),
    /// Call a blocking operator's function off the shard's thread, then `Input::Called`. A call may
    /// take for ever; a shard has a bounded number of them open.
    Call {
        /// Names the call in its result.
        call: CallId,
        /// What to call, and with what.
        request: CallRequest,
    },
    /// The catalog changed, durably.
    Routes(Arc<Routes>),
    /// Something a person should know.
    Notice(Notice),
    /// Durable state contradicts itself; the process must end with this reason.
    Halt(String),
}

/// A disk job of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// A cold read of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReadId(pub u64);

/// A blocking call of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId {
    /// The topology: its number among those of the node.
    pub topology: usize,
    /// Which wiring of the topology made it: the result is nothing to a later one.
    pub wiring: u64,
    /// Number of the call in that wiring.
    pub number: u64,
}

/// What a blocking operator's function is called with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRequest {
    /// The operator: its number in the topology.
    pub operator: usize,
    /// Key of the record.
    pub key: Bytes,
    /// Version of the codec that wrote the value; 0: it is null.
    pub version: u8,
    /// Value of the record.
    pub value: Bytes,
}

/// The result's bytes, none if it is null; or why there is none.
pub type CallResult = Result<Option<Bytes>, CallFault>;

/// Why a blocking call has no result, in its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallFault {
    /// The function said so, or its record cannot be decoded.
    Failed(String),
    /// It panicked.
    Panicked(String),
}

/// A range of one partition in one extent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentRead {
    /// The file.
    pub file: FileName,
    /// Whose run in it.
    pub partition: PartitionId,
    /// Where to begin.
    pub from: ReadFrom,
    /// Stop adding batches past this; one batch is returned whole all the same.
    pub bytes_max: u32,
}

/// Where a cold read begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// At the batch that holds this offset.
    Offset(u64),
    /// At the first batch whose largest timestamp is at least this.
    Time(i64),
}

/// Why a cold read failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadFault {
    /// A checksum or a length is wrong; the text names file and position.
    Corrupt(String),
    /// The system could not read; the text names file and reason.
    Failed(String),
    /// No batch fits (a time past the run's last).
    Nothing,
    /// The file is not there any more: its data were dropped or moved to another one.
    Gone,
}

/// Between shards. Everything here left its sender only after the frame it depends on was durable.
#[derive(Debug, Clone)]
pub enum MeshMessage {
    /// Outbox entries: state of the sender, delivered exactly once and in order.
    Outbox {
        /// Sequence of the first entry; gapless for the ordered pair, never restarting.
        first: u64,
        /// The entries.
        entries: Vec<Bytes>,
        /// The sender's frame that they are in, which is being written; 0: they are durable.
        frame: Sequence,
    },
    /// The sender's frames up to this one are durable. Follows entries that were not.
    FrameDurable {
        /// The frame.
        through: Sequence,
    },
    /// Everything up to this outbox sequence is durable at the receiver. Sent first of all at
    /// start, before the other side may send.
    OutboxDurable {
        /// Highest durable outbox sequence; 0: none.
        through: u64,
        /// Whether this announces the filter after a start.
        hello: bool,
    },
    /// The receiver's part of a topology does not get on with what it is sent, or does again. Nothing
    /// durable depends on it.
    TopologyFlow {
        /// Identity of the topology.
        topology: u64,
        /// Whether nothing more is to be sent for now.
        stops: bool,
    },
}

/// For the log, as data, so that the simulator sees it too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Settling finished.
    Settled {
        /// Last frame that is now in extents and delta files.
        through: Sequence,
        /// Record bytes moved.
        bytes: u64,
    },
    /// A snapshot was completed.
    Snapshot {
        /// First frame to replay with it.
        first: Sequence,
    },
    /// No room left to settle; the WAL still takes what fits.
    DiskFull,
    /// There is room again.
    DiskHasRoom,
    /// A stored range cannot be read.
    Damaged(String),
}

/// What a part of the shard (catalog, partition, group) hands back: changes of the shard's keyed
/// state, recorded in the frame, and replies, held until that frame is durable.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Absolute values or tombstones, in order.
    pub changes: Vec<Change>,
    /// Answers to commands, this one's or waiting ones'.
    pub replies: Vec<(Ticket, Reply)>,
}

/// One entry of keyed state takes a value, or goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// First byte names the kind, see `state.rs`.
    pub key: Vec<u8>,
    /// `None` removes the entry.
    pub value: Option<Vec<u8>>,
}
