//! The checks are checked: each deliberate break of the code is found by the test that has its name.
//!
//! The breaks are in the real code of the log and the engine, see `wal/src/mutation.rs`; the table
//! `tests/mutations.md` says what each does and how it is found.

mod log;
mod mesh;
mod node;
mod shard;
mod streams;

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::Instant;

use tidemill_tests::daemon::repository;
use tidemill_tests::sim::plan::Plan;
use tidemill_tests::sim::run_seed;
use tidemill_tests::sim::streams::Flow;
use tidemill_wal::mutation::{Mutation, Scope};

/// What finds a mutation: each of these that there is.
#[derive(Clone, Copy)]
struct Found {
    /// A scenario, which ends well without the mutation.
    scenario: Option<fn()>,
    /// The simulator, with one of those of its first seeds that can show it.
    by_simulator: Option<fn(&Plan) -> bool>,
}

impl Found {
    const fn scenario(scenario: fn()) -> Self {
        Self { scenario: Some(scenario), by_simulator: None }
    }

    const fn simulator() -> Self {
        Self::simulator_of(|_| true)
    }

    const fn simulator_of(can_show: fn(&Plan) -> bool) -> Self {
        Self { scenario: None, by_simulator: Some(can_show) }
    }

    const fn and_simulator(self) -> Self {
        Self { scenario: self.scenario, ..Self::simulator() }
    }
}

/// Seeds within which the simulator finds a mutation; most take fewer than forty.
const SEEDS: u64 = 400;

/// Effects in all lives of a seed that takes little time, about.
const SHORT_EFFECTS_MAX: u64 = 2000;

/// Found by another program: the file and the test in it.
const ELSEWHERE: [(Mutation, &str, &str); 1] =
    [(Mutation::ForgetWakeUp, "engine/src/runtime/ring.rs", "a_forgotten_wake_up_is_found")];

macro_rules! table {
    ($($test:ident: $mutation:ident, $found:expr;)+) => {
        const TABLE: &[(Mutation, &str)] = &[$((Mutation::$mutation, stringify!($test))),+];

        $(
            #[test]
            fn $test() {
                expect_found(Mutation::$mutation, $found);
            }
        )+
    };
}

table! {
    an_open_without_o_dsync: OpenWithoutDsync, Found::scenario(log::a_segment_is_open_with_o_dsync);
    a_skipped_sync_of_a_file: SkipFileSync, Found::simulator();
    a_skipped_sync_of_a_segment: SkipSegmentSync, Found::simulator();
    a_skipped_sync_of_names: SkipNamesSync, Found::scenario(log::a_manifest_follows_the_names_in_it);
    a_skipped_sync_of_a_manifests_name: SkipManifestSync, Found::simulator();
    a_skipped_seal_at_the_start: SkipStartSeal, Found::simulator();
    a_skipped_seal_at_the_end: SkipStopSeal, Found::scenario(shard::damage_before_a_stop_is_told);
    a_skipped_idle_frame: SkipIdleFrame, Found::scenario(shard::damage_before_an_idle_time_is_told);
    a_frame_body_without_checksum: TrustFrameBody, Found::simulator();
    a_frame_header_without_checksum: TrustFrameHeader, Found::scenario(log::a_changed_header_is_told);
    an_extent_without_checksum: TrustExtent, Found::scenario(log::a_changed_extent_is_told);
    a_state_file_without_checksum: TrustStateFile, Found::scenario(log::changed_state_files_are_told);
    a_manifest_without_checksum: TrustManifest, Found::scenario(log::a_changed_manifest_is_told);
    a_cut_of_what_was_known_durable: CutKnownDurable, Found::scenario(log::a_known_durable_frame_is_missed);
    a_cut_before_other_frames: CutBeforeOthers, Found::scenario(log::a_frame_before_others_is_missed).and_simulator();
    a_snapshot_loaded_from_its_end: LoadFromSnapshotEnd, Found::scenario(log::a_snapshot_is_loaded_from_its_first_frame);
    a_settle_round_that_goes_too_far: SettleTooFar, Found::simulator();
    a_removal_before_the_manifest: RemoveBeforeManifest, Found::simulator();
    a_segment_recycled_too_early: RecycleEarly, Found::simulator();
    a_merge_that_loses_a_run: MergeLosesRun, Found::simulator();
    an_answer_before_its_frame: AnswerBeforeDurable, Found::simulator();
    an_answer_to_a_duplicate_before_its_frame: AnswerDuplicateEarly, Found::scenario(shard::a_duplicate_waits_for_its_frame).and_simulator();
    a_fetch_before_the_frame: ServeBeforeDurable, Found::simulator();
    a_forgotten_reader: ForgetReader, Found::scenario(shard::a_reader_is_woken);
    a_forgotten_end_of_a_log: ForgetLogEnd, Found::simulator();
    a_forgotten_producer: ForgetProducer, Found::simulator();
    a_forgotten_group_offset: ForgetGroupOffset, Found::simulator();
    a_snapshot_with_old_ends: SnapshotOldEnds, Found::scenario(shard::a_snapshot_has_the_ends_of_now);
    forgotten_producer_ids: ForgetGrantedIds, Found::simulator();
    a_forgotten_outbox_filter: ForgetOutboxFilter, Found::simulator();
    an_outbox_that_begins_again: RestartOutbox, Found::simulator();
    an_outbox_trimmed_when_sent: TrimOutboxOnSend, Found::simulator();
    an_entry_confirmed_too_early: ConfirmEntryEarly, Found::simulator();
    an_entry_sent_before_the_hello: SendBeforeHello, Found::scenario(shard::nothing_is_sent_before_the_hello);
    a_frame_that_counts_alone: CountAlone, Found::simulator_of(has_streams);
    a_frame_that_does_not_say_what_it_rests_on: ForgetEarly, Found::simulator_of(has_streams);
    a_frame_kept_without_what_it_rests_on: KeepEnds, Found::simulator_of(has_streams);
    a_catalog_change_answered_too_early: AnswerCatalogEarly, Found::simulator();
    an_old_producer_epoch: TakeOldProducerEpoch, Found::scenario(shard::an_old_producer_epoch_is_refused).and_simulator();
    a_producer_that_begins_anywhere: BeginAnywhere, Found::scenario(shard::a_new_producer_begins_at_zero);
    an_old_generation: TakeOldGeneration, Found::scenario(shard::an_old_generation_is_refused);
    offsets_of_an_unknown_topic: TakeOffsetsOfUnknown, Found::scenario(shard::offsets_that_were_taken_stay);
    a_drop_before_its_frame: DropBeforeDurable, Found::scenario(shard::records_stay_until_their_deletion_is_durable);
    retention_of_nothing: RetainNothing, Found::scenario(shard::retention_keeps_the_newest).and_simulator();
    a_settled_topic_that_is_gone: SettleDeletedTopic, Found::scenario(shard::nothing_of_a_deleted_topic_is_settled);
    a_spent_reserve: SpendReserve, Found::scenario(shard::a_full_log_takes_deletions);
    an_answer_out_of_order: AnswerOutOfOrder, Found::simulator();
    a_forgotten_held_fetch: ForgetHeldFetch, Found::simulator();
    results_in_another_order: MixResults, Found::simulator();
    a_drain_that_waits_for_room: DrainOnlyWithRoom, Found::scenario(mesh::full_rings_are_drained);
    forgotten_progress: ForgetProgress, Found::simulator_of(has_streams);
    a_step_in_two_frames: SplitStep, Found::simulator_of(has_streams);
    forgotten_operator_state: ForgetOperatorState, Found::simulator_of(has_streams);
    a_fired_timer_that_stays: KeepFiredTimer, Found::simulator_of(has_timers);
    a_failed_call_that_is_kept: KeepFailedCall, Found::simulator_of(has_streams);
    a_forgotten_dead_letter: ForgetDeadLetter, Found::simulator_of(has_streams);
    forgotten_event_time: ForgetEventTime, Found::scenario(streams::what_was_late_stays_late);
    a_forgotten_position: ForgetPosition, Found::scenario(streams::what_another_shard_sent_is_taken_once);
    a_taken_arrival_that_stays: KeepTakenArrival, Found::simulator_of(has_arrivals);
    an_arrival_taken_again: TakeArrivalAgain, Found::simulator_of(has_arrivals);
    a_mark_before_its_records: MarkBeforeRecords, Found::simulator_of(has_marks);
}

/// The seeds that can show something, those that take little time before the others.
fn seeds_of(can_show: fn(&Plan) -> bool) -> Vec<u64> {
    let plans = (0..SEEDS).map(|seed| (seed, Plan::of_seed(seed).0));
    let seeds = plans.filter(|(_, plan)| can_show(plan));
    let mut seeds: Vec<(bool, u64)> = seeds.map(|(seed, plan)| (is_long(&plan), seed)).collect();
    seeds.sort_unstable();
    seeds.into_iter().map(|(_, seed)| seed).collect()
}

/// Whether a seed takes much time; one with topologies takes about three times as much for each.
fn is_long(plan: &Plan) -> bool {
    plan.effects * plan.lives * (1 + 2 * plan.streams.flows.len() as u64) > SHORT_EFFECTS_MAX
}

/// Whether a seed has topologies.
fn has_streams(plan: &Plan) -> bool {
    !plan.streams.flows.is_empty()
}

/// Whether a seed has timers by the clock.
fn has_timers(plan: &Plan) -> bool {
    plan.streams.flows.contains(&Flow::Timers)
}

/// Whether shards of a seed send records to each other.
fn has_arrivals(plan: &Plan) -> bool {
    let sends = |flow: &Flow| match flow {
        Flow::Rekey | Flow::Chain => true,
        Flow::Windows => plan.streams.rules.is_keyed_anew,
        Flow::Count | Flow::Timers => false,
    };
    plan.shard_count > 1 && plan.streams.flows.iter().any(sends)
}

/// Whether event time of a seed depends on other shards.
fn has_marks(plan: &Plan) -> bool {
    plan.shard_count > 1 && plan.streams.flows.contains(&Flow::Windows)
}

fn expect_found(mutation: Mutation, found: Found) {
    let started = Instant::now();
    let mut how = String::new();
    if let Some(scenario) = found.scenario {
        scenario();
        let found = while_broken(mutation, scenario).err();
        how = found.unwrap_or_else(|| panic!("{mutation:?} is not found by its scenario"));
    }
    if let Some(can_show) = found.by_simulator {
        let broken = seeds_of(can_show).into_iter().find_map(|seed| {
            let why = failure_of(mutation, seed)?;
            // A seed that fails by itself says nothing.
            run_seed(seed, None, false).result.is_ok().then(|| format!("seed {seed}: {why}"))
        });
        how = broken.unwrap_or_else(|| panic!("{mutation:?} is not found with {SEEDS} seeds"));
    }
    let how: String = how.lines().next().unwrap_or_default().chars().take(160).collect();
    println!("{} is found in {} ms: {how}", mutation.name(), started.elapsed().as_millis());
}

/// What the simulator says of a seed: a broken promise, a refused start, or an assertion.
fn failure_of(mutation: Mutation, seed: u64) -> Option<String> {
    match while_broken(mutation, || run_seed(seed, None, false).result) {
        Ok(result) => result.err().map(|failure| failure.why),
        Err(why) => Some(why),
    }
}

thread_local! {
    static IS_BROKEN: Cell<bool> = const { Cell::new(false) };
}

/// Runs something with the mutation; an assertion that fails is what is hoped for, so it is
/// returned and not reported.
fn while_broken<R>(mutation: Mutation, run: impl FnOnce() -> R) -> Result<R, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_BROKEN.get() {
                report(panic);
            }
        }));
    });
    let _broken = Scope::new(mutation);
    IS_BROKEN.set(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    IS_BROKEN.set(false);
    result.map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

#[test]
fn every_mutation_is_in_the_table_once() {
    for mutation in Mutation::ALL {
        let here = TABLE.iter().filter(|(known, _)| known == mutation).count();
        let elsewhere = ELSEWHERE.iter().filter(|(known, ..)| known == mutation).count();
        assert_eq!(here + elsewhere, 1, "{mutation:?}");
    }
    for (mutation, file, test) in ELSEWHERE {
        let text = std::fs::read_to_string(repository().join(file)).expect("a file of ours");
        assert!(text.contains(&format!("fn {test}()")), "{mutation:?}: {test} is not in {file}");
        assert!(text.contains(&format!("Mutation::{}", mutation.name())), "{mutation:?}");
    }
}

#[test]
fn the_written_table_is_this_one() {
    let path = repository().join("tests/mutations.md");
    let text = std::fs::read_to_string(path).expect("a file of ours");
    let elsewhere = ELSEWHERE.iter().map(|(mutation, _, test)| (mutation, test));
    for (mutation, test) in TABLE.iter().map(|(mutation, test)| (mutation, test)).chain(elsewhere) {
        let begin = format!("| `{}` |", mutation.name());
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(&begin)).collect();
        assert!(
            matches!(lines[..], [line] if line.contains(&format!("`{test}`"))),
            "{begin} {test}"
        );
    }
}
