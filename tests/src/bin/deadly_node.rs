//! The node that `deadly_records` starts: `tidemill` with topologies over the topic `words`, one of
//! which ends the process at some words. What it is, `DEADLY_NODE` says: `plain` without topologies,
//! `deadly`, or `mended`.

use std::hint::black_box;
use std::process::ExitCode;

use tidemill::daemon::Daemon;
use tidemill::topology::{Topology, Utf8};

/// Calls itself more often than any stack has room for.
fn overflow(depth: u64) -> u64 {
    let room = black_box([depth; 64]);
    match depth {
        u64::MAX => 0,
        _ => room[0] ^ overflow(black_box(depth + 1)) ^ black_box(room[63]),
    }
}

fn main() -> ExitCode {
    let kind = std::env::var("DEADLY_NODE").unwrap_or_default();
    if kind == "plain" {
        return Daemon::from_args().run();
    }
    let is_deadly = kind == "deadly";
    let dying = Topology::new("dying");
    dying
        .source("words", Utf8)
        .inspect(move |word| match &word[..] {
            "abort" if is_deadly => std::process::abort(),
            "overflow" if is_deadly => _ = black_box(overflow(0)),
            _ => {}
        })
        .key_by("word", Utf8, Utf8, String::clone)
        .count("count")
        .map(|word, count| format!("{word} {count}"))
        .sink("counts", Utf8);
    let copying = Topology::new("copying");
    copying.source("words", Utf8).sink("copies", Utf8);
    Daemon::from_args().topology(dying).topology(copying).run()
}
