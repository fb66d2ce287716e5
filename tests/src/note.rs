//! What a run of the tests has to say although it passes: cargo hides what such tests print.
//!
//! `tests/run` names a file in `TIDEMILL_TEST_NOTES` and shows it at its end.

use std::fs::OpenOptions;
use std::io::Write;

/// A test, or a part of one, that this machine cannot run, and why.
pub fn skipped(what: &str, why: &str) {
    note(&format!("SKIPPED {what}: {why}"));
}

/// How much a test tried.
pub fn figures(text: &str) {
    note(text);
}

fn note(line: &str) {
    eprintln!("{line}");
    let Some(path) = std::env::var_os("TIDEMILL_TEST_NOTES") else { return };
    let file = OpenOptions::new().append(true).create(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        panic!("TIDEMILL_TEST_NOTES: {}: {error}", path.display());
    }
}
