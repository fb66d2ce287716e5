//! A short torture of the real node with real clients; `--bin torture` goes on for as long as asked.

use std::collections::BTreeSet;

use tidemill_tests::clients::Client;
use tidemill_tests::note;
use tidemill_tests::torture::plan::Fault;
use tidemill_tests::torture::{Options, run};

/// Enough rounds for each fault to have its turn with this seed.
const ROUNDS: u64 = 4;
const SEED: u64 = 1;

#[test]
fn what_was_promised_under_torture_is_kept() {
    let options = Options {
        seed: SEED,
        lasts: None,
        rounds: Some(ROUNDS),
        faults: Fault::ALL.into(),
        clients: vec![Client::Confluent, Client::Java, Client::FranzGo],
        data_dir: None,
    };
    let report = run(&options).unwrap_or_else(|failure| panic!("{failure}"));
    note::figures(&format!("torture: {report}"));
    let had: BTreeSet<Fault> = report.faults.keys().chain(report.skipped.keys()).copied().collect();
    assert_eq!(had, Fault::ALL.into_iter().collect(), "every fault has its turn, or says why not");
    assert!(report.acknowledged > 10_000, "only {} records", report.acknowledged);
    assert!(report.read_back >= report.acknowledged, "every record is read back at least once");
    assert!(report.commits > 0, "the offsets of our own group are committed");
}
