//! What the demonstration shows: one block that is written over each second on a terminal, a line a
//! second elsewhere.

use std::collections::VecDeque;
use std::fmt::Write as _;

use super::alerts::Alert;
use super::traffic::HotItem;

/// Latencies of so many seconds are shown together.
const SECONDS: usize = 10;

/// What is shown of one second.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures {
    /// Events that were acknowledged in it.
    pub(super) written: u64,
    /// Results that were read in it.
    pub(super) read: u64,
    /// Events so far.
    pub(super) total: u64,
    /// Latencies of its results, in microseconds.
    pub(super) latencies_us: Vec<u64>,
    /// Bytes of keyed state now.
    pub(super) state: u64,
    /// Durable writes of all shards in it.
    pub(super) syncs: u64,
    /// The newest row of q5.
    pub(super) hottest: Option<HotItem>,
    /// The newest alert.
    pub(super) alert: Option<Alert>,
}

/// Makes the text of one second after the other.
#[derive(Debug)]
pub(super) struct Screen {
    is_terminal: bool,
    /// What stands above and below the figures.
    head: String,
    tail: String,
    recent: VecDeque<Vec<u64>>,
    /// Lines of the block that is there now.
    lines: usize,
}

impl Screen {
    /// Nothing was shown.
    pub(super) fn new(is_terminal: bool, head: String, tail: String) -> Self {
        Self { is_terminal, head, tail, recent: VecDeque::new(), lines: 0 }
    }

    /// The text to write for one second.
    pub(super) fn show(&mut self, mut figures: Figures) -> String {
        self.recent.push_back(std::mem::take(&mut figures.latencies_us));
        if self.recent.len() > SECONDS {
            self.recent.pop_front();
        }
        let mut latencies: Vec<u64> = self.recent.iter().flatten().copied().collect();
        latencies.sort_unstable();
        let [p50, p99, p999] =
            [500, 990, 999].map(|rank| milliseconds(percentile(&latencies, rank)));
        let Figures { written, read, total, state, syncs, .. } = figures;
        let state = format!("{:.1} MiB", state as f64 / f64::from(1 << 20));
        if !self.is_terminal {
            return format!(
                "{written} records/s in, {read} out; latency p50 {p50} p99 {p99} p99.9 {p999}; \
                 state {state}; {syncs} syncs/s; {total} records\n"
            );
        }
        let hottest = figures.hottest.map_or_else(String::new, |HotItem { auction, num }| {
            format!("auction {auction} with {num} bids in 10 s")
        });
        let block = format!(
            "{}\n\n  \
             records    {written} a second in, {read} out, {total} so far\n  \
             latency    p50 {p50}  p99 {p99}  p99.9 {p999}  due to read\n  \
             state      {state}\n  \
             syncs      {syncs} a second\n  \
             hottest    {hottest}\n  \
             alert      {}\n\n\
             {}\n",
            self.head,
            figures.alert.as_ref().map_or_else(String::new, words),
            self.tail
        );
        self.over(&block)
    }

    /// The block in the place of the one before.
    fn over(&mut self, block: &str) -> String {
        // A line that is longer than the terminal is cut off: two lines of it would shift the block.
        let mut text = String::from("\x1b[?7l");
        if self.lines > 0 {
            // Up to the first line of what is there.
            let _ = write!(text, "\x1b[{}A", self.lines);
        }
        for line in block.lines() {
            // Clears the line first: what was there may be longer.
            let _ = writeln!(text, "\x1b[2K{line}");
        }
        self.lines = block.lines().count();
        text + "\x1b[?7h"
    }
}

fn words(alert: &Alert) -> String {
    match alert {
        Alert::UnusualPrice { bidder, price, usual, .. } => {
            format!("bidder {bidder} bids {price} and {usual} otherwise")
        }
        Alert::Spree { bidder, bids, lasted_ms, .. } => {
            format!("bidder {bidder} made {bids} bids in {:.1} s", *lasted_ms as f64 / 1000.0)
        }
    }
}

/// The value that so many of a thousand are at most; `None` of none.
fn percentile(sorted: &[u64], of_thousand: usize) -> Option<u64> {
    let rank = (sorted.len() * of_thousand).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied()
}

fn milliseconds(latency_us: Option<u64>) -> String {
    match latency_us {
        Some(latency_us) => format!("{:.2} ms", latency_us as f64 / 1000.0),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn figures() -> Figures {
        Figures {
            written: 5000,
            read: 412,
            total: 15_000,
            latencies_us: (1..=1000).rev().collect(),
            state: 3 << 19,
            syncs: 1893,
            hottest: Some(HotItem { auction: 1200, num: 532 }),
            alert: Some(Alert::Spree { bidder: 7, bids: 120, total: 9, lasted_ms: 1250 }),
        }
    }

    #[test]
    fn a_file_gets_a_line_a_second() {
        let mut screen = Screen::new(false, "head".into(), "tail".into());
        let expected = expect![[r#"
            5000 records/s in, 412 out; latency p50 0.50 ms p99 0.99 ms p99.9 1.00 ms; state 1.5 MiB; 1893 syncs/s; 15000 records
        "#]];
        expected.assert_eq(&screen.show(figures()));
        let nothing = screen.show(Figures { latencies_us: Vec::new(), ..figures() });
        assert!(nothing.contains("p50 0.50 ms"), "latencies of some seconds together: {nothing}");
    }

    #[test]
    fn a_terminal_gets_one_block_that_is_written_over() {
        let mut screen = Screen::new(true, "head".into(), "tail".into());
        let first = screen.show(figures());
        let expected = expect![[r#"
            [?7lhead

              records    5000 a second in, 412 out, 15000 so far
              latency    p50 0.50 ms  p99 0.99 ms  p99.9 1.00 ms  due to read
              state      1.5 MiB
              syncs      1893 a second
              hottest    auction 1200 with 532 bids in 10 s
              alert      bidder 7 made 120 bids in 1.2 s

            tail
            [?7h"#]];
        expected.assert_eq(&first.replace("\x1b[2K", ""));
        let second = screen.show(Figures::default());
        assert!(second.starts_with("\x1b[?7l\x1b[10A\x1b[2Khead"), "{second:?}");
    }

    #[test]
    fn percentiles_are_values_that_were_there() {
        assert_eq!(percentile(&[], 500), None);
        assert_eq!(percentile(&[7], 999), Some(7));
        assert_eq!(percentile(&[1, 2, 3, 4], 500), Some(2));
        assert_eq!(percentile(&[1, 2, 3, 4], 990), Some(4));
    }
}
