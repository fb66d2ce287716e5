//! Writes the fuzzers' first inputs into `tests/corpora`, beside what they found later.

use std::path::Path;
use std::process::ExitCode;
use std::{fs, io};

use tidemill_tests::fuzz::{TARGETS, seeds};

fn main() -> ExitCode {
    match write() {
        Ok(count) => {
            println!("{count} seeds");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn write() -> io::Result<usize> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora");
    for (target, _) in TARGETS {
        fs::create_dir_all(root.join(target))?;
    }
    let seeds = seeds::all();
    for (target, name, bytes) in &seeds {
        fs::write(root.join(target).join(format!("seed-{name}")), bytes)?;
    }
    Ok(seeds.len())
}
