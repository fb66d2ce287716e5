//! Runs of one command, put together: for each scenario and system the median of its rounds, how
//! far they spread, and the ratio to one system.

use std::fmt::Write;

use crate::run::Run;

/// How kinds of runs begin that are about what topologies take.
pub const PROCESSING: &str = "processing, ";

/// Acknowledgements beside many keys of state: with settling and snapshots, and without.
pub const STATE: &str = "state";
pub const STATE_QUIET: &str = "state, quiet";

/// The keys, when they are made; and there again after a kill.
pub const STATE_BUILT: &str = "state, built";
pub const STATE_RECOVERED: &str = "state, recovered";

/// A figure over the rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one; of an even number the mean of the two.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

/// What is compared of a run, and how it is written.
pub struct Column {
    /// Its name with the unit.
    pub name: &'static str,
    /// Digits behind the point.
    pub digits: usize,
    /// The figure, if the run has it.
    pub of: fn(&Run) -> Option<f64>,
}

/// Rows of one scenario.
pub struct Table<'a> {
    /// What was measured.
    pub title: String,
    /// What of it is compared.
    pub columns: Vec<Column>,
    /// The systems, in the order in which they came.
    pub rows: Vec<Row<'a>>,
}

/// A system in a scenario.
pub struct Row<'a> {
    /// Its name.
    pub system: &'a str,
    /// Its runs that came to an end.
    pub runs: Vec<&'a Run>,
    /// How many did not, or did not keep up.
    pub failed: usize,
}

impl Spread {
    /// Of some figures; none of none.
    pub fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let (least, most) = (*figures.first()?, *figures.last()?);
        let half = figures.len() / 2;
        let is_even = figures.len().is_multiple_of(2);
        let median =
            if is_even { f64::midpoint(figures[half - 1], figures[half]) } else { figures[half] };
        Some(Self { median, least, most })
    }
}

impl Row<'_> {
    /// A figure of this row.
    pub fn spread(&self, column: &Column) -> Option<Spread> {
        Spread::of(self.runs.iter().filter_map(|run| (column.of)(run)).collect())
    }
}

/// Whether a run came to an end.
pub fn is_whole(run: &Run) -> bool {
    run.result.records > 0
}

/// Whether it was asked for a rate and fell behind it, so that its latencies only say for how long
/// the load ran.
pub fn fell_behind(run: &Run) -> bool {
    let asked = run.load.requests_per_second.unwrap_or(0.0) * run.result.seconds;
    run.result.unanswered > 0 || (run.result.requests as f64) < asked * 0.99 - 1.0
}

/// The scenario of a run.
pub fn title(run: &Run) -> String {
    let load = &run.load;
    let size = load.record_size;
    match (run.kind.as_str(), load.requests_per_second) {
        ("latency", Some(rate)) => {
            format!("Acknowledgement at {} records/s of {size} B", thousands(rate))
        }
        ("sweep", _) => {
            let bound =
                run.figures.get("bound_ms").map_or("the bound".to_owned(), |it| format!("{it} ms"));
            format!("Highest rate with a 99th percentile below {bound}, batching clients")
        }
        ("end-to-end", Some(rate)) => {
            format!("Due to result consumed, at {} records/s of {size} B", thousands(rate))
        }
        ("end-to-end, repartitioned", Some(rate)) => format!(
            "Due to result consumed by way of another shard, at {} records/s of {size} B",
            thousands(rate)
        ),
        ("plain", Some(rate)) => {
            format!(
                "Acknowledgement of what nobody counts, at {} records/s of {size} B",
                thousands(rate)
            )
        }
        (kind, _) if let Some(work) = kind.strip_prefix(PROCESSING) => {
            let way = if load.arrivals == "live" { "as they come" } else { "of a backlog" };
            let keys = match load.keys {
                0 => String::new(),
                keys => format!(", {} keys", thousands(keys as f64)),
            };
            format!("Topology {work}: records {way}, {size} B{keys}, shards: {}", load.shards)
        }
        (kind @ (STATE | STATE_QUIET), Some(rate)) => {
            let with = if kind == STATE { "with" } else { "without" };
            format!(
                "Acknowledgement at {} records/s of {} keys of state, {with} settling and snapshots",
                thousands(rate),
                thousands(load.keys as f64)
            )
        }
        (STATE_BUILT, _) => format!("{} keys of state made", thousands(load.keys as f64)),
        (STATE_RECOVERED, _) => {
            format!("{} keys of state there after kill -9", thousands(load.keys as f64))
        }
        ("franz", _) => "Most records a second, 20,000 in flight, by franz-go".to_owned(),
        (kind, Some(rate)) => format!(
            "{kind} at {} requests/s of {} records of {size} B",
            thousands(rate),
            load.records_per_request
        ),
        (kind, None) => format!("{kind}, records of {size} B"),
    }
}

/// The figures that a kind of run is about.
pub fn columns(kind: &str) -> Vec<Column> {
    let cost = [
        Column {
            name: "server CPU s per million records",
            digits: 2,
            of: |run| run.result.cost.server_cpu_seconds_per_million_records,
        },
        Column {
            name: "device bytes per byte",
            digits: 2,
            of: |run| run.result.cost.device_bytes_per_accepted_byte,
        },
        Column {
            name: "device flushes per 1000 records",
            digits: 1,
            of: |run| {
                let flushes = run.result.cost.device_flushes? as f64;
                Some(flushes * 1e3 / run.result.records.max(1) as f64)
            },
        },
    ];
    let rate =
        Column { name: "records/s", digits: 0, of: |run| Some(run.result.records_per_second) };
    let p50 =
        Column { name: "p50 µs", digits: 0, of: |run| Some(run.result.latency.percentiles.p50) };
    let p99 =
        Column { name: "p99 µs", digits: 0, of: |run| Some(run.result.latency.percentiles.p99) };
    let p999 =
        Column {
            name: "p99.9 µs", digits: 0, of: |run| Some(run.result.latency.percentiles.p999)
        };
    let max =
        Column { name: "max µs", digits: 0, of: |run| Some(run.result.latency.percentiles.max) };
    let mut columns = match kind {
        "sweep" => vec![rate, p50, p99],
        "end-to-end" | "end-to-end, repartitioned" => vec![
            p50,
            p99,
            p999,
            max,
            Column {
                name: "p50 to plain",
                digits: 2,
                of: |run| run.figures.get("p50_to_plain").copied(),
            },
            Column {
                name: "p99 to plain",
                digits: 2,
                of: |run| run.figures.get("p99_to_plain").copied(),
            },
            rate,
        ],
        STATE | STATE_QUIET => vec![
            p50,
            p99,
            p999,
            max,
            Column {
                name: "p99.9 to that without",
                digits: 2,
                of: |run| run.figures.get("p999_to_quiet").copied(),
            },
            Column {
                name: "settling rounds",
                digits: 0,
                of: |run| run.figures.get("settling_rounds").copied(),
            },
            Column {
                name: "snapshots",
                digits: 0,
                of: |run| run.figures.get("snapshots").copied(),
            },
            rate,
        ],
        STATE_BUILT | STATE_RECOVERED => vec![
            Column { name: "keys/s", digits: 0, of: |run| Some(run.result.records_per_second) },
            Column { name: "seconds", digits: 2, of: |run| Some(run.result.seconds) },
            Column {
                name: "MiB resident",
                digits: 0,
                of: |run| Some(run.figures.get("resident_bytes")? / f64::from(1 << 20)),
            },
            Column {
                name: "MiB of state",
                digits: 0,
                of: |run| Some(run.figures.get("state_bytes")? / f64::from(1 << 20)),
            },
        ],
        _ if kind.starts_with(PROCESSING) => vec![
            rate,
            Column {
                name: "of the second half",
                digits: 0,
                of: |run| run.figures.get("records_per_second_of_the_second_half").copied(),
            },
            Column {
                name: "shard threads busy",
                digits: 2,
                of: |run| run.figures.get("shard_threads_busy").copied(),
            },
            Column {
                name: "records per frame",
                digits: 0,
                of: |run| run.figures.get("records_per_frame").copied(),
            },
            Column {
                name: "device bytes per record",
                digits: 0,
                of: |run| run.figures.get("device_bytes_per_record").copied(),
            },
        ],
        "franz" => vec![
            rate,
            Column {
                name: "consumed records/s",
                digits: 0,
                of: |run| run.figures.get("consumed_records_per_second").copied(),
            },
            Column {
                name: "server CPU s per million produced and consumed",
                digits: 2,
                of: |run| run.figures.get("both_cpu_seconds_per_million").copied(),
            },
        ],
        _ => {
            let limit = Column {
                name: "p50 to the machine's limit",
                digits: 2,
                of: |run| run.ratio_to_limit?.p50,
            };
            vec![p50, p99, p999, max, limit, rate]
        }
    };
    columns.extend(cost);
    columns
}

/// One table for each scenario, in the order in which they came.
pub fn tables(runs: &[Run]) -> Vec<Table<'_>> {
    let mut tables: Vec<Table<'_>> = Vec::new();
    for run in runs {
        let Some(title) = title_of(run, runs) else { continue };
        let index = tables.iter().position(|table| table.title == title).unwrap_or_else(|| {
            tables.push(Table { title, columns: columns(&run.kind), rows: Vec::new() });
            tables.len() - 1
        });
        let rows = &mut tables[index].rows;
        let at = rows.iter().position(|row| row.system == run.system).unwrap_or_else(|| {
            rows.push(Row { system: &run.system, runs: Vec::new(), failed: 0 });
            rows.len() - 1
        });
        let row = &mut rows[at];
        if is_whole(run) {
            row.runs.push(run);
        }
        if !is_whole(run) || fell_behind(run) {
            row.failed += 1;
        }
    }
    tables
}

/// The scenario of a run; one that failed before its load was known goes with those of its kind.
fn title_of(run: &Run, runs: &[Run]) -> Option<String> {
    if is_whole(run) || run.load.record_size > 0 && run.kind != "sweep" {
        return Some(title(run));
    }
    runs.iter().find(|other| other.kind == run.kind && is_whole(other)).map(title)
}

/// All tables as text, each figure also as a ratio to the system `to`.
pub fn text(runs: &[Run], to: &str) -> String {
    let mut text = String::new();
    for table in tables(runs) {
        let base = table.rows.iter().find(|row| row.system == to);
        writeln!(text, "{}", table.title).expect("memory takes all");
        for row in &table.rows {
            write!(text, "  {:<12}", row.system).expect("memory takes all");
            for column in &table.columns {
                let Some(spread) = row.spread(column) else { continue };
                let digits = column.digits;
                write!(
                    text,
                    " | {} {:.digits$} ({:.digits$}..{:.digits$})",
                    column.name, spread.median, spread.least, spread.most
                )
                .expect("memory takes all");
                if let Some(ratio) = ratio(row, base, column) {
                    write!(text, " x{ratio:.2}").expect("memory takes all");
                }
            }
            if row.failed > 0 {
                write!(text, " | fell behind or failed: {}", row.failed).expect("memory takes all");
            }
            text.push('\n');
        }
    }
    text
}

/// A row's median over that of another row.
pub fn ratio(row: &Row<'_>, base: Option<&Row<'_>>, column: &Column) -> Option<f64> {
    let base = base.filter(|base| base.system != row.system)?.spread(column)?.median;
    let ours = row.spread(column)?.median;
    (base > 0.0).then_some(ours / base)
}

/// One run in a line.
pub fn line(run: &Run) -> String {
    let head = format!("round {} {:<12} {}", run.round, run.system, title(run));
    if !is_whole(run) {
        return format!("{head}: {}", run.notes.join("; "));
    }
    let mut line = head + ":";
    for column in columns(&run.kind) {
        if let Some(figure) = (column.of)(run) {
            let digits = column.digits;
            write!(line, " {} {figure:.digits$},", column.name).expect("memory takes all");
        }
    }
    if fell_behind(run) {
        write!(line, " FELL BEHIND: {} unanswered,", run.result.unanswered).expect("memory");
    }
    line.pop();
    line
}

/// With separators.
pub fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
