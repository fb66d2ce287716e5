//! How much was simulated.

use std::fmt;
use std::ops::AddAssign;

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// How much was simulated, and how often each thing happened.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            /// Every count with its name.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }

        impl AddAssign for Counts {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counts! {
    /// Simulated time, in microseconds.
    simulated_us,
    /// Events of the world.
    events,
    /// Steps of shards.
    steps,
    /// Effects and operations of disk jobs; the machine may end before each.
    effects,
    /// Commands of clients.
    commands,
    /// Connections that broke with requests open.
    disconnections,
    /// Kafka requests of clients.
    requests,
    /// Answers that clients read and compared.
    answers,
    /// Bytes of requests and answers.
    wire_bytes,
    /// Connections that ended in the middle of a request.
    broken_requests,
    /// Connections that ended in the middle of an answer.
    broken_answers,
    /// Requests that became commands for several shards.
    split_requests,
    /// Answers that were ready before those of earlier requests.
    answers_kept,
    /// Fetches that waited for the one before them.
    held_fetches,
    /// Fetches that need not wait, for another shard has records.
    hurried_fetches,
    /// Elements of requests that the node answered without asking a shard.
    node_refusals,
    /// Requests that want no answer.
    unanswered_requests,
    /// Connections that ended because such a request failed.
    unacknowledged_ends,
    /// Times that a connection was not read because of what it has open.
    unread_connections,
    /// Times that a client did not read for a while.
    reading_pauses,
    /// Frames written.
    frames,
    /// Answers whose asker was gone.
    lost_answers,
    /// Records acknowledged.
    records,
    /// Batches that were sent again, and answered with their place.
    repeated_batches,
    /// Batches out of their producer's order that were refused.
    refused_sequences,
    /// Batches of an epoch that is over that were refused.
    fenced_epochs,
    /// Batches refused because they are larger than their topic allows.
    refused_sizes,
    /// Batches that came before their partition.
    early_batches,
    /// Moves of a log's start that a limit of age or size explains.
    retention_moves,
    /// Assignments that members got.
    assignments,
    /// Offsets that members committed.
    member_commits,
    /// Requests of members that are none any more that were refused.
    fenced_members,
    /// Groups that were removed.
    removed_groups,
    /// Bytes of batches read and compared.
    bytes_compared,
    /// Settle rounds.
    settles,
    /// Snapshots.
    snapshots,
    /// Merges begun.
    merges,
    /// Reads of extents.
    cold_reads,
    /// Everything acknowledged was read.
    audits,
    /// Ends of the machine without a stop.
    crashes,
    /// Of these, during a recovery.
    crashes_in_recovery,
    /// Of these, during the recovery after one that had crashed.
    crashes_in_second_recovery,
    /// Clean stops.
    stops,
    /// Starts that came to their end.
    recoveries,
    /// Recoveries that cut a torn frame, or one of the next line.
    torn,
    /// Recoveries that cut a frame that rested on one which another shard had lost.
    cut_ends,
    /// Frames replayed.
    replayed,
    /// Ends of the node because the disk admitted a failure.
    disk_failures,
    /// Starts refused because the disk failed to do something that may work the next time.
    starts_failed,
    /// Writes that failed.
    write_errors,
    /// Writes of frames that ended short.
    short_writes,
    /// Syncs that failed, and lost some of what they were to keep.
    sync_errors,
    /// Creations, renames and removals that failed.
    name_errors,
    /// Reads that failed once.
    read_errors,
    /// Operations of the disk that took very long.
    stalls,
    /// Times that a shard found its disk full.
    full_disks,
    /// Bits that turned.
    flipped_bits,
    /// Sectors that cannot be read any more.
    unreadable_sectors,
    /// Writes that went nowhere and were reported done.
    dropped_writes,
    /// Writes that went elsewhere and were reported done.
    misdirected_writes,
    /// Starts refused because of damage, with its file and place.
    starts_refused,
    /// Reads that found damage: of consumers, merges and the scrub.
    damage_read,
    /// Fetches and queries that were answered with the refusal for damaged storage.
    storage_refusals,
    /// Restorations of a disk by its operator.
    repairs,
    /// Ends at which damage to the last frame could not be told from a torn write.
    doubtful_frames,
    /// Jumps of the wall clock.
    clock_jumps,
    /// Packets between shards.
    packets,
    /// Runs of a shard that left packets behind because a ring was full.
    full_rings,
    /// Times that topologies had more to do than time.
    operators_late,
    /// Blocking calls of topologies that ended.
    calls,
    /// Records of sources that were checked at the end.
    stream_records,
    /// Results of topologies that were checked at the end.
    stream_results,
    /// Records that could not be processed.
    dead_letters,
    /// Windows that were told.
    windows_told,
    /// Records that came too late for their windows.
    late_records,
    /// Steps of topologies that were made again at the end.
    steps_again,
    /// Requests that a connection kept back because its shard was behind.
    gates_shut,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in self.all() {
            writeln!(f, "{count:>16} {}", name.replace('_', " "))?;
        }
        Ok(())
    }
}
