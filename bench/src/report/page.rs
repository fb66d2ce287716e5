//! The page: for each scenario a table and its charts, then where and with what it was measured.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::chart::{Line, chart, escape, nines, quantiles, seconds};
use crate::run::{Machine, Run};
use crate::summary::{Column, Row, Table, ratio, tables};

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; }
th, td { border: 1px solid #ccc; padding: 4px 8px; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
th { background: #f4f4f4; font-weight: 600; }
small { color: #666; display: block; }
.ratio { color: #0072b2; }
.warning { color: #b00; }
svg { width: 100%; height: auto; font-size: 11px; }
svg .grid { stroke: #e4e4e4; }
svg .line { fill: none; stroke-width: 2; }
svg .thin { fill: none; stroke-width: 0.7; opacity: 0.45; }
code { font-size: 12px; overflow-wrap: anywhere; }
";

/// All of it.
pub fn page(title: &str, runs: &[Run], base: &str) -> String {
    let systems = systems(runs);
    let mut page = Page(String::new());
    page.add(&format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{0}</h1>",
        escape(title)
    ));
    page.add(
        "<p>Load is open-loop: a request's time begins when it was due, not when the client got \
         round to it, so a stall counts for all that came during it. Figures are medians of the \
         rounds, with the least and the most below them; what is blue is the ratio to the \
         compared system.</p>",
    );
    for table in tables(runs) {
        page.scenario(&table, base, &systems);
    }
    page.machines(runs);
    page.configurations(runs);
    page.notes(runs);
    page.add("</body></html>");
    page.0
}

/// Systems in the order in which they came; a system has its colour by its place.
fn systems(runs: &[Run]) -> Vec<&str> {
    let mut systems: Vec<&str> = Vec::new();
    for run in runs {
        if !systems.contains(&run.system.as_str()) {
            systems.push(&run.system);
        }
    }
    systems
}

struct Page(String);

impl Page {
    fn add(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn scenario(&mut self, table: &Table<'_>, base: &str, systems: &[&str]) {
        self.add(&format!("<h2>{}</h2>", escape(&table.title)));
        self.table(table, base);
        let lines = lines(table, systems, |run| {
            run.result.latency.curve.iter().map(|(part, time)| (nines(*part), *time)).collect()
        });
        let runs = || table.rows.iter().flat_map(|row| &row.runs);
        let count = runs().map(|run| run.result.latency.count).max().unwrap_or(0);
        if lines.iter().any(|line| !line.points.is_empty()) {
            self.add("<h3>Percentiles</h3>");
            self.add(&chart(&quantiles(count), &lines));
        }
        let lines = lines_over_time(table, systems);
        let end = lines.iter().flat_map(|line| &line.points).map(|it| it.0).fold(0.0, f64::max);
        if end > 0.0 {
            self.add("<h3>99th percentile of each second</h3>");
            self.add(&chart(&seconds(end), &lines));
        }
    }

    fn table(&mut self, table: &Table<'_>, base: &str) {
        let base = table.rows.iter().find(|row| row.system == base);
        let heads = table.columns.iter().fold(String::new(), |mut heads, column| {
            write!(heads, "<th>{}</th>", escape(column.name)).expect("memory takes all");
            heads
        });
        self.add(&format!("<table><tr><th>system</th><th>acknowledged</th>{heads}</tr>"));
        for row in &table.rows {
            let promise = row.runs.first().map_or("", |run| run.sync_method.as_str());
            let rounds = row.runs.len();
            let mut cells = format!(
                "<td>{}<small>{rounds} rounds</small></td><td>{}</td>",
                escape(row.system),
                escape(promise)
            );
            for column in &table.columns {
                cells.push_str(&cell(row, base, column));
            }
            if row.failed > 0 {
                let failed = row.failed;
                write!(cells, "<td class=\"warning\">fell behind or failed in {failed}</td>")
                    .expect("memory takes all");
            }
            self.add(&format!("<tr>{cells}</tr>"));
        }
        self.add("</table>");
    }

    fn machines(&mut self, runs: &[Run]) {
        self.add("<h2>Where</h2><table>");
        let mut told: Vec<Vec<(&str, String)>> = Vec::new();
        for run in runs.iter().filter(|run| run.machine.cores > 0) {
            let facts = facts(&run.machine, &run.commit);
            if !told.contains(&facts) {
                for (name, value) in &facts {
                    self.add(&format!("<tr><th>{name}</th><td>{}</td></tr>", escape(value)));
                }
                told.push(facts);
            }
        }
        self.add("</table>");
    }

    fn configurations(&mut self, runs: &[Run]) {
        self.add("<h2>With what</h2><table><tr><th>system</th><th>settings</th></tr>");
        let mut told: BTreeMap<&str, &BTreeMap<String, String>> = BTreeMap::new();
        for run in runs {
            if told.insert(&run.system, &run.configuration) == Some(&run.configuration) {
                continue;
            }
            let settings = run.configuration.iter().fold(String::new(), |mut text, (name, it)| {
                write!(text, "<code>{} = {}</code><br>", escape(name), escape(it))
                    .expect("memory takes all");
                text
            });
            let settings = if settings.is_empty() { "its defaults".to_owned() } else { settings };
            self.add(&format!("<tr><td>{}</td><td>{settings}</td></tr>", escape(&run.system)));
        }
        self.add("</table>");
        if let Some(run) = runs.first() {
            self.add(&format!("<p><code>{}</code></p>", escape(&run.command.join(" "))));
        }
    }

    fn notes(&mut self, runs: &[Run]) {
        let mut notes: Vec<String> = Vec::new();
        for run in runs {
            for note in &run.notes {
                notes.push(format!("{}, round {}: {note}", run.system, run.round));
            }
        }
        if !notes.is_empty() {
            self.add("<h2>Notes</h2><ul>");
            for note in notes {
                self.add(&format!("<li>{}</li>", escape(&note)));
            }
            self.add("</ul>");
        }
    }
}

fn cell(row: &Row<'_>, base: Option<&Row<'_>>, column: &Column) -> String {
    let Some(spread) = row.spread(column) else { return "<td>–</td>".to_owned() };
    let shown = |figure: f64| {
        if column.digits == 0 {
            crate::summary::thousands(figure)
        } else {
            format!("{figure:.0$}", column.digits)
        }
    };
    let ratio = ratio(row, base, column)
        .map_or(String::new(), |ratio| format!("<small class=\"ratio\">× {ratio:.2}</small>"));
    let (median, least, most) = (shown(spread.median), shown(spread.least), shown(spread.most));
    format!("<td>{median}<small>{least} – {most}</small>{ratio}</td>")
}

/// For each system its run of the median 99th percentile as a thick line, and the others thin.
fn lines(
    table: &Table<'_>,
    systems: &[&str],
    points: impl Fn(&Run) -> Vec<(f64, f64)>,
) -> Vec<Line> {
    let mut lines = Vec::new();
    for row in &table.rows {
        let color = systems.iter().position(|system| *system == row.system).unwrap_or(0);
        let mut runs = row.runs.clone();
        runs.sort_by(|a, b| {
            let p99 = |run: &Run| run.result.latency.percentiles.p99;
            p99(a).total_cmp(&p99(b))
        });
        let middle = runs.len().saturating_sub(1) / 2;
        for (index, run) in runs.iter().enumerate() {
            let is_thin = index != middle;
            lines.push(Line { name: row.system.to_owned(), color, is_thin, points: points(run) });
        }
    }
    // Thick ones on top.
    lines.sort_by_key(|line| !line.is_thin);
    lines
}

fn lines_over_time(table: &Table<'_>, systems: &[&str]) -> Vec<Line> {
    let series = |run: &Run| -> Vec<(f64, f64)> {
        let points = run.result.series.iter().filter(|point| point.count > 0);
        points.map(|point| (point.until_seconds, point.percentiles.p99)).collect()
    };
    let mut lines = lines(table, systems, series);
    lines.retain(|line| !line.is_thin);
    lines
}

fn facts(machine: &Machine, commit: &str) -> Vec<(&'static str, String)> {
    let gibibytes = machine.memory_bytes as f64 / f64::from(1 << 30);
    let is_virtual = if machine.is_virtual { ", virtual" } else { "" };
    vec![
        ("commit", commit.to_owned()),
        ("processor", format!("{}, {} cores{is_virtual}", machine.processor, machine.cores)),
        ("memory", format!("{gibibytes:.0} GiB")),
        ("kernel", machine.kernel.clone()),
        ("file system", format!("{}, {}", machine.file_system, machine.mount_options)),
        (
            "disk",
            format!(
                "{} ({}), {}, scheduler {}",
                machine.disk, machine.disk_model, machine.disk_cache, machine.disk_scheduler
            ),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Latency, Load, Measured, Percentiles, Point};

    fn run(system: &str, round: u32, p50: f64) -> Run {
        let percentiles =
            Percentiles { p50, p99: p50 * 4.0, p999: p50 * 8.0, ..Default::default() };
        let curve = vec![(0.0, p50 / 2.0), (0.5, p50), (0.99, p50 * 4.0), (1.0, p50 * 9.0)];
        let point = Point { until_seconds: 1.0, count: 1000, percentiles, ..Default::default() };
        Run {
            format: crate::run::FORMAT,
            kind: "latency".to_owned(),
            system: system.to_owned(),
            round,
            commit: "abc".to_owned(),
            sync_method: "dsync".to_owned(),
            machine: Machine { cores: 2, disk: "vda".to_owned(), ..Default::default() },
            configuration: [("heap".to_owned(), format!("{system} <4g>"))].into(),
            load: Load {
                requests_per_second: Some(1000.0),
                record_size: 256,
                records_per_request: 1,
                ..Default::default()
            },
            result: Measured {
                seconds: 1.0,
                requests: 1000,
                records: 1000,
                records_per_second: 1000.0,
                latency: Latency { count: 1000, percentiles, curve },
                series: vec![point],
                ..Default::default()
            },
            ..Run::default()
        }
    }

    #[test]
    fn the_page_says_what_the_runs_say() {
        let mut runs = Vec::new();
        for round in 1..=3 {
            runs.push(run("tidemill", round, 100.0 + f64::from(round)));
            runs.push(run("kafka", round, 400.0 + f64::from(round)));
        }
        let mut failed = run("nats", 1, 1.0);
        failed.result = Measured::default();
        failed.notes.push("failed: it <fell>".to_owned());
        runs.push(failed);
        // As they are written and read again.
        let mut text = Vec::new();
        runs.iter().for_each(|run| run.write_to(&mut text).expect("memory takes all"));
        let runs = Run::read_all(text.as_slice()).expect("what was written");
        let page = page("A & B", &runs, "tidemill");
        for wanted in [
            "<h1>A &amp; B</h1>",
            "<h2>Acknowledgement at 1,000 records/s of 256 B</h2>",
            "<td>102<small>101 – 103</small></td>",
            "<td>402<small>401 – 403</small><small class=\"ratio\">× 3.94</small></td>",
            "fell behind or failed in 1",
            "kafka &lt;4g&gt;",
            "it &lt;fell&gt;",
            "<h3>99th percentile of each second</h3>",
            "vda",
        ] {
            assert!(page.contains(wanted), "{wanted} is not in\n{page}");
        }
        assert_eq!(page.matches("<polyline").count(), 6 + 2, "all rounds, then one of each");
        assert_eq!(page.matches("class=\"line\"").count(), 2 + 2);
        for tag in ["table", "tr", "td", "svg", "small", "h2", "ul", "html"] {
            let open = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(open, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        for foreign in ["<script", "http://", "https://", "src=", "href="] {
            assert!(!page.contains(foreign), "{foreign}: the page needs nothing but itself");
        }
    }
}
