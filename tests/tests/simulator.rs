//! The simulator itself: some seeds pass, a seed is always the same run, and deliberate breaks of
//! durability are found.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use tidemill_tests::sim::{Counts, Sabotage, known_seeds, run_seed, trace_seed};

/// Seeds of the bounded run.
const SEEDS: u64 = 400;

/// Seeds within which a break has to be found.
const SABOTAGE_SEEDS: u64 = 400;

/// What is too rare to be sure to happen in the bounded run.
const RARE: [&str; 3] = ["crashes_in_second_recovery", "doubtful_frames", "early_batches"];

fn expect_to_pass(seed: u64) -> Counts {
    let outcome = run_seed(seed, None, false);
    if let Err(failure) = outcome.result {
        panic!("seed {seed}, step {}: {}", failure.step, failure.why);
    }
    outcome.counts
}

#[test]
fn a_bounded_set_of_seeds_passes_and_everything_happens_in_it() {
    let mut total = Counts::default();
    for seed in 0..SEEDS {
        total += expect_to_pass(seed);
    }
    for (what, count) in total.all() {
        assert!(count > 0 || RARE.contains(&what), "no {what} in {SEEDS} seeds: {total}");
    }
}

#[test]
fn the_seeds_that_once_failed_pass() {
    let seeds = known_seeds();
    assert!(!seeds.is_empty(), "the table of seeds is read");
    for seed in seeds {
        expect_to_pass(seed);
    }
}

/// Everything that happens with a seed, as text.
fn trace_of(seed: u64) -> String {
    let trace = Rc::new(RefCell::new(String::new()));
    let lines = trace.clone();
    let sink = move |line: &str| {
        let mut lines = lines.borrow_mut();
        lines.push_str(line);
        lines.push('\n');
    };
    let outcome = trace_seed(seed, None, Some(Box::new(sink)));
    trace.borrow_mut().push_str(&outcome.counts.to_string());
    trace.take()
}

#[test]
fn the_same_seed_is_the_same_run_byte_for_byte() {
    for seed in [1, 2, 17, 80] {
        let (first, second) = (trace_of(seed), trace_of(seed));
        let differs = first.lines().zip(second.lines()).find(|(first, second)| first != second);
        assert_eq!(differs, None, "seed {seed}");
        assert!(first == second, "seed {seed}: one trace goes on where the other ends");
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
