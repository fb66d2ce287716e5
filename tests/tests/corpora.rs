//! The fuzzers' corpora, run again with every test run, through the very functions that are fuzzed.

use std::fs;
use std::path::{Path, PathBuf};

use tidemill_tests::fuzz::allocation::{Counting, bounded};
use tidemill_tests::fuzz::{TARGETS, Target, seeds};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// All files of all corpora together.
const SIZE_MAX: u64 = 2 << 20;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora")
}

fn files(target: &str) -> Vec<PathBuf> {
    let directory = root().join(target);
    let entries =
        fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has a corpus");
    files
}

fn run(name: &str) {
    let target: Target = TARGETS.iter().find(|target| target.0 == name).expect("a target").1;
    target(&[]);
    for file in files(name) {
        let bytes = fs::read(&file).expect("it can be read");
        // The name of the file stands above the message of an assertion in it.
        println!("{}", file.display());
        target(&bytes);
    }
}

macro_rules! corpora {
    ($($target:ident)+) => {
        $(#[test]
        fn $target() {
            run(stringify!($target));
        })+

        #[test]
        fn every_target_is_run_and_has_a_fuzzer() {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.0).collect();
            assert_eq!(names, [$(stringify!($target)),+]);
            for name in names {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
                let text = fs::read_to_string(path.join(format!("{name}.rs"))).expect("a fuzzer");
                assert!(text.contains(&format!("fuzz::{name}(data)")), "{name}");
            }
        }
    };
}

corpora!(request session batch entries log extent state_file manifest configuration);

#[test]
fn the_corpora_stay_small() {
    let sizes = TARGETS.iter().flat_map(|target| files(target.0)).map(|file| {
        let size = fs::metadata(&file).expect("it is there").len();
        assert!(size <= 64 << 10, "{}: {size} bytes", file.display());
        size
    });
    assert!(sizes.sum::<u64>() <= SIZE_MAX);
}

/// Most targets put checksums right; what a shard wrote is accepted because of its contents.
#[test]
fn seeds_reach_behind_the_checks() {
    let accepted = |target: &str, is_accepted: &dyn Fn(&[u8]) -> bool| {
        let seeds = seeds::all();
        let own: Vec<_> = seeds.iter().filter(|(own, _, _)| *own == target).collect();
        assert!(!own.is_empty(), "{target} has seeds");
        own.iter().filter(|(_, _, bytes)| is_accepted(bytes)).count() * 2 > own.len()
    };
    assert!(accepted("manifest", &|bytes| {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        tidemill_wal::manifest::Manifest::decode(&bytes).is_ok()
    }));
    assert!(accepted("entries", &|bytes| tidemill_wal::format::entries(bytes).all(|e| e.is_ok())));
    assert!(accepted("extent", &|bytes| {
        let (header, rest) = bytes.split_at(128);
        let mut bytes = header.to_vec();
        bytes.resize(4096, 0);
        bytes.extend_from_slice(rest);
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        tidemill_wal::extent::ExtentView::open(&bytes).is_ok()
    }));
    assert!(accepted("state_file", &|bytes| bytes.len() > 128 && bytes[8..15] == *b"TMSTATE"));
}

#[test]
#[should_panic(expected = "1024 are allowed")]
fn an_allocation_beyond_its_bound_is_seen() {
    bounded(1024, || drop(std::hint::black_box(vec![0_u8; 5000])));
}

#[test]
fn an_allocation_within_its_bound_is_not() {
    for _ in 0..100 {
        bounded(6000, || drop(std::hint::black_box(vec![0_u8; 5000])));
    }
}
