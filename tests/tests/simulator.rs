//! The simulator itself: some seeds pass, a seed is always the same run, and deliberate breaks of
//! durability are found.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tidemill_tests::sim::{Counts, Sabotage, run_seed};

/// Seeds of the bounded run.
const SEEDS: u64 = 300;

/// Seeds within which a break has to be found.
const SABOTAGE_SEEDS: u64 = 400;

#[test]
fn a_bounded_set_of_seeds_passes_and_everything_happens_in_it() {
    let mut total = Counts::default();
    for seed in 0..SEEDS {
        let outcome = run_seed(seed, None, false);
        if let Err(failure) = outcome.result {
            panic!("seed {seed}, step {}: {}", failure.step, failure.why);
        }
        total += outcome.counts;
    }
    for (what, count) in [
        ("crashes", total.crashes),
        ("clean stops", total.stops),
        ("torn frames", total.torn),
        ("settle rounds", total.settles),
        ("snapshots", total.snapshots),
        ("merges", total.merges),
        ("reads of extents", total.cold_reads),
        ("full disks", total.full_disks),
        ("records", total.records),
    ] {
        assert!(count > 0, "no {what} in {SEEDS} seeds: {total:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 17, 80] {
        let (first, second) = (run_seed(seed, None, false), run_seed(seed, None, false));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.counts, second.counts, "seed {seed}");
    }
    assert_ne!(run_seed(1, None, false).trace, run_seed(2, None, false).trace);
}

/// Some seed shows the break: by a broken promise, a refused start, or an assertion of the engine.
fn expect_found(sabotage: Sabotage) {
    let is_found = |seed: &u64| {
        let run = || run_seed(*seed, Some(sabotage), false).result;
        !matches!(catch_unwind(AssertUnwindSafe(run)), Ok(Ok(())))
    };
    let found = (0..SABOTAGE_SEEDS).find(is_found);
    assert!(found.is_some(), "{sabotage:?} is not found within {SABOTAGE_SEEDS} seeds");
}

#[test]
fn an_acknowledgement_before_the_write_is_durable_is_found() {
    expect_found(Sabotage::AcknowledgeAtSubmit);
}

#[test]
fn a_skipped_sync_of_files_is_found() {
    expect_found(Sabotage::SkipFileSync);
}

#[test]
fn a_skipped_sync_of_directories_is_found() {
    expect_found(Sabotage::SkipDirectorySync);
}

#[test]
fn a_segment_recycled_before_its_manifest_is_durable_is_found() {
    expect_found(Sabotage::ReportJobsEarly);
}

#[test]
fn a_start_without_a_durable_seal_is_found() {
    expect_found(Sabotage::SkipStartSeal);
}
