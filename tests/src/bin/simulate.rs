//! Runs the simulator over a range of seeds and says what it found.

use std::cell::Cell;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use tidemill_tests::sim::{Counts, known_seeds, run_seed};

/// Simulates whole nodes with crashes and faulty disks, one for each seed.
#[derive(Debug, Parser)]
struct Arguments {
    /// Seeds to run, the end excluded.
    #[arg(long, value_parser = parse_range, default_value = "0..1000")]
    seeds: Range<u64>,
    /// One seed only.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// The seeds that once showed a defect, from `tests/seeds.md`.
    #[arg(long, conflicts_with_all = ["seeds", "seed"])]
    known: bool,
    /// Print everything that happens.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Stop after so many minutes; goes on behind the last seed until then.
    #[arg(long)]
    minutes: Option<u64>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
}

/// What to run, in order.
enum Seeds {
    Range(Range<u64>),
    /// As long as there is time.
    From(u64),
    Known(Vec<u64>),
}

impl Seeds {
    fn of(arguments: &Arguments) -> Self {
        match (arguments.seed, arguments.minutes) {
            _ if arguments.known => Self::Known(known_seeds()),
            (Some(seed), _) => Self::Range(seed..seed + 1),
            (None, Some(_)) => Self::From(arguments.seeds.start),
            (None, None) => Self::Range(arguments.seeds.clone()),
        }
    }

    fn get(&self, index: u64) -> Option<u64> {
        match self {
            Self::Range(range) => Some(range.start + index).filter(|seed| range.contains(seed)),
            Self::From(first) => Some(first + index),
            Self::Known(seeds) => seeds.get(index as usize).copied(),
        }
    }
}

thread_local! {
    /// The seed at hand, for the message of a failed assertion.
    static SEED: Cell<u64> = const { Cell::new(0) };
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("a range is written A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    let range = number(from)?..number(to)?;
    if range.is_empty() { Err("the range is empty".to_owned()) } else { Ok(range) }
}

fn main() -> ExitCode {
    #[cfg(feature = "mutations")]
    if let Ok(name) = std::env::var("MUTATION") {
        assert!(
            tidemill_wal::mutation::break_process(&name),
            "MUTATION is {name:?}, which is none"
        );
    }
    let arguments = Arguments::parse();
    let seeds = Seeds::of(&arguments);
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        println!("seed {} FAILED: an assertion", SEED.get());
        report(panic);
        std::process::exit(1);
    }));
    let started = Instant::now();
    let until = arguments.minutes.map(|minutes| started + Duration::from_secs(minutes * 60));
    let next = AtomicU64::new(0);
    let failures = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    let total = Mutex::new(Counts::default());
    thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            scope.spawn(|| {
                let mut counts = Counts::default();
                while !is_over.load(Ordering::Relaxed)
                    && until.is_none_or(|until| Instant::now() < until)
                {
                    let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    SEED.set(seed);
                    let outcome = run_seed(seed, None, arguments.trace);
                    counts += outcome.counts;
                    done.fetch_add(1, Ordering::Relaxed);
                    if let Err(failure) = outcome.result {
                        println!("seed {seed} FAILED at step {}: {}", failure.step, failure.why);
                        failures.fetch_add(1, Ordering::Relaxed);
                        is_over.store(!arguments.keep_going, Ordering::Relaxed);
                    }
                }
                *total.lock().expect("no thread panics with it") += counts;
            });
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    let (done, failures) = (done.into_inner(), failures.into_inner());
    let total = total.into_inner().expect("no thread panics with it");
    let simulated = total.simulated_us as f64 / 1e6;
    print!("{total}");
    println!(
        "{done} seeds in {seconds:.1} s, {:.0} a second, {failures} failures; simulated {:.1} h, \
         {:.0} times as fast as real time",
        done as f64 / seconds,
        simulated / 3600.0,
        simulated / seconds
    );
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
