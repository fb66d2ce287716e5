//! Deliberate breaks of durability and of the protocols, to check the checks: each has to be found
//! by a test. The table is `tests/mutations.md`.
//!
//! Only with the feature `mutations`, which nothing but tests enables: without it [`is_on`] is a
//! constant, and the compiler removes what depends on it. With it, a break is chosen at run time,
//! for a thread by a `Scope` or for a process by `break_process`, so that one build has them all.

/// Whether the code is to break in this way now.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub const fn is_on(_: Mutation) -> bool {
    false
}

#[cfg(feature = "mutations")]
pub use self::chosen::{Scope, break_process, is_on};

macro_rules! mutations {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// One way to break the code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutation {
            $($(#[$doc])* $name,)+
        }

        #[cfg(feature = "mutations")]
        impl Mutation {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// As it is written in the table, and in the environment of a daemon.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
        }
    };
}

mutations! {
    /// Segments are opened without `O_DSYNC`.
    OpenWithoutDsync,
    /// A new file gets its name before its bytes are durable.
    SkipFileSync,
    /// A new segment gets its name before it is durable.
    SkipSegmentSync,
    /// A manifest is written before the names of the files in it are durable.
    SkipNamesSync,
    /// A manifest counts before its own name is durable.
    SkipManifestSync,
    /// The seal that starts an epoch is not written.
    SkipStartSeal,
    /// A clean stop writes no seal.
    SkipStopSeal,
    /// An idle shard writes no frame that says what is durable.
    SkipIdleFrame,
    /// A frame's body is believed without its checksum.
    TrustFrameBody,
    /// A frame's header is believed without its checksum.
    TrustFrameHeader,
    /// Batches in an extent are believed without their checksum.
    TrustExtent,
    /// Snapshots and delta files are believed without their checksums.
    TrustStateFile,
    /// A manifest is believed without its checksum.
    TrustManifest,
    /// Recovery cuts a frame that is known to have been durable.
    CutKnownDurable,
    /// Recovery cuts a frame though others follow it.
    CutBeforeOthers,
    /// State is loaded as if a snapshot held everything up to its last frame.
    LoadFromSnapshotEnd,
    /// A settle round claims the frames that only its values saw.
    SettleTooFar,
    /// Files that a manifest will no longer name are removed before it is durable.
    RemoveBeforeManifest,
    /// Segments are put to use again before the manifest that frees them is durable.
    RecycleEarly,
    /// A merge loses a run that is alive.
    MergeLosesRun,
    /// Replies leave before their frame is durable.
    AnswerBeforeDurable,
    /// The answer to a repeated batch leaves before the frame with the batch is durable.
    AnswerDuplicateEarly,
    /// Readers see batches whose frame is in flight.
    ServeBeforeDurable,
    /// A batch at the tail's end does not wake who waits for it.
    ForgetReader,
    /// The ends of logs are not settled, so that offsets are given again.
    ForgetLogEnd,
    /// What producers appended last is not settled.
    ForgetProducer,
    /// Committed offsets are not settled.
    ForgetGroupOffset,
    /// A snapshot begins with the ends of the settle round before.
    SnapshotOldEnds,
    /// Granted producer ids are not recorded.
    ForgetGrantedIds,
    /// The duplicate filter of entries from other shards is forgotten in a restart.
    ForgetOutboxFilter,
    /// Sequences of entries to other shards begin again after a restart.
    RestartOutbox,
    /// An entry leaves the outbox when it is sent.
    TrimOutboxOnSend,
    /// An entry is confirmed before it is durable here.
    ConfirmEntryEarly,
    /// Entries are sent to a shard that has not announced its filter.
    SendBeforeHello,
    /// A frame counts as durable before those of other shards that it rests on.
    CountAlone,
    /// A frame does not say that it rests on another shard's.
    ForgetEarly,
    /// A start keeps frames whose senders have lost what they hold.
    KeepEnds,
    /// A change of the catalog is answered when shard 0 alone has it.
    AnswerCatalogEarly,
    /// An older producer epoch is taken.
    TakeOldProducerEpoch,
    /// A producer that was never known begins with any sequence, so that its second batch passes
    /// the first one that was refused.
    BeginAnywhere,
    /// A member of an older generation commits.
    TakeOldGeneration,
    /// Offsets of topics that the shard does not know are taken.
    TakeOffsetsOfUnknown,
    /// Records are dropped before the frame that says so is durable.
    DropBeforeDurable,
    /// Retention takes the newest records too.
    RetainNothing,
    /// A settle round brings back a topic that was deleted while it was on its way.
    SettleDeletedTopic,
    /// Ordinary work takes the room that is kept for deletions.
    SpendReserve,
    /// An answer leaves before the answers to earlier requests of its connection.
    AnswerOutOfOrder,
    /// A fetch that waits for the one before it never has its turn.
    ForgetHeldFetch,
    /// What a shard says of a request's elements comes back in another order.
    MixResults,
    /// A shard takes in packets only while its own have room.
    DrainOnlyWithRoom,
    /// The reader of a ring sleeps without a last look that is in order.
    ForgetWakeUp,
    /// How far a topology has read a partition is not stored.
    ForgetProgress,
    /// How far a topology has read a partition goes into the frame after that of what it made.
    SplitStep,
    /// What an operator changed is in memory and not in the frame.
    ForgetOperatorState,
    /// A timer that has fired stays stored.
    KeepFiredTimer,
    /// What a failed call wanted until then is taken, as if it had succeeded.
    KeepFailedCall,
    /// A record that cannot be processed is forgotten.
    ForgetDeadLetter,
    /// How far event time of operators has come is not stored.
    ForgetEventTime,
    /// How far the entries of another shard were taken is not stored.
    ForgetPosition,
    /// An entry of another shard that was taken stays stored.
    KeepTakenArrival,
    /// An entry of another shard stays stored, and is taken again after a restart.
    TakeArrivalAgain,
    /// Event time goes to another shard before the records that came before it.
    MarkBeforeRecords,
}

#[cfg(feature = "mutations")]
mod chosen {
    use std::cell::Cell;
    use std::marker::PhantomData;
    use std::sync::OnceLock;

    use super::Mutation;

    static PROCESS: OnceLock<Mutation> = OnceLock::new();

    thread_local! {
        static THREAD: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Whether the code is to break in this way now, in this thread or in the whole process.
    pub fn is_on(mutation: Mutation) -> bool {
        THREAD.get().or_else(|| PROCESS.get().copied()) == Some(mutation)
    }

    /// Breaks the whole process for ever, at its start. False if there is no mutation of that name.
    pub fn break_process(name: &str) -> bool {
        let found = Mutation::ALL.iter().find(|mutation| mutation.name() == name);
        found.is_some_and(|mutation| *PROCESS.get_or_init(|| *mutation) == *mutation)
    }

    /// Breaks the code of this thread while it lives.
    #[derive(Debug)]
    pub struct Scope {
        before: Option<Mutation>,
        /// It belongs to its thread.
        _thread: PhantomData<*const ()>,
    }

    impl Scope {
        /// From now on.
        pub fn new(mutation: Mutation) -> Self {
            Self { before: THREAD.replace(Some(mutation)), _thread: PhantomData }
        }
    }

    impl Drop for Scope {
        fn drop(&mut self) {
            THREAD.set(self.before);
        }
    }
}
