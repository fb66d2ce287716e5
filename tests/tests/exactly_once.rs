//! Topologies under `kill -9`; `--bin exactly_once` goes on for as long as asked.

use std::time::Duration;

use tidemill_tests::exactly_once::{Options, run};
use tidemill_tests::note;

#[test]
fn topologies_that_are_killed_again_and_again_make_everything_once() {
    for (seed, shards) in [(1, 2), (2, 4)] {
        let options = Options {
            seed,
            shards,
            rate: 4_000_000,
            kills: 5,
            lasts: Duration::ZERO,
            records_max: 4000,
        };
        let report = run(&options).unwrap_or_else(|why| panic!("{shards} shards: {why}"));
        assert!(report.records > 1000, "{report}");
        note::figures(&format!("exactly once, {shards} shards: {report}"));
    }
}
