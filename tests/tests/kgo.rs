//! franz-go's own test suite of `pkg/kgo`, against the daemon.

use std::process::{Command, Stdio};

use tidemill_tests::daemon::{Daemon, Options, repository};

/// Every test that needs no transactions, KIP-848 groups or share groups passes: the script names
/// what it leaves out.
#[test]
fn franz_go_s_own_suite_passes() {
    let daemon = Daemon::start(Options::default());
    let run = Command::new(repository().join("tests/clients/kgo-suite/run"))
        .arg(daemon.kafka().to_string())
        .stdin(Stdio::null())
        .output()
        .expect("the script is in the repository");
    let output = String::from_utf8_lossy(&run.stdout);
    println!("{output}");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    for test in ["TestGroupETL/cooperative-sticky", "TestGroupETL/range", "TestClient_Produce"] {
        let line = format!("--- PASS: {test} ");
        assert!(output.contains(&line), "{test} did not run");
    }
}
