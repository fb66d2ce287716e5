//! Charts as SVG: lines over a logarithmic scale of times.

use std::fmt::Write;

/// Size of a chart, with its margins.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;

/// Told apart without red and green alone.
const COLORS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#555555"];

/// One line.
pub struct Line {
    /// Its name, in the legend.
    pub name: String,
    /// Which colour.
    pub color: usize,
    /// Thin lines are the other rounds, without a legend.
    pub is_thin: bool,
    /// Places on the horizontal axis, and microseconds.
    pub points: Vec<(f64, f64)>,
}

/// A horizontal axis.
pub struct Axis {
    /// What it is.
    pub title: String,
    /// Where it begins and ends.
    pub from: f64,
    /// Its end.
    pub to: f64,
    /// Marks, with their names.
    pub marks: Vec<(f64, String)>,
}

/// A place for a quantile, so that each further nine is as far as the one before.
pub fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).max(1e-9).log10()
}

/// The axis of quantiles, up to those that so many values can show.
pub fn quantiles(count: u64) -> Axis {
    let to = (count.max(10) as f64).log10();
    let named = [(0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")];
    let further = [(0.9999, "99.99 %"), (0.99999, "99.999 %"), (0.999_999, "99.9999 %")];
    let marks = named.iter().chain(&further).map(|(at, name)| (nines(*at), (*name).to_owned()));
    let marks = marks.filter(|(at, _)| *at <= to).collect();
    Axis { title: "part of all records that took no longer".to_owned(), from: 0.0, to, marks }
}

/// The axis of a run's seconds.
pub fn seconds(to: f64) -> Axis {
    let step = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0];
    let step = step.into_iter().find(|step| to / step <= 12.0).unwrap_or(7200.0);
    let marks = (0..=12).map(|index| f64::from(index) * step).take_while(|at| *at <= to);
    let marks = marks.map(|at| (at, format!("{at} s"))).collect();
    Axis { title: "time".to_owned(), from: 0.0, to, marks }
}

/// Draws lines.
pub fn chart(axis: &Axis, lines: &[Line]) -> String {
    let times = || lines.iter().flat_map(|line| &line.points).map(|point| point.1.max(1.0));
    let least = times().fold(f64::INFINITY, f64::min).min(1e6);
    let most = times().fold(10.0, f64::max);
    let (low, high) = (least.log10().floor(), most.log10().ceil());
    let high = if high > low { high } else { low + 1.0 };
    let x = |at: f64| {
        let part = (at - axis.from) / (axis.to - axis.from).max(f64::EPSILON);
        LEFT + part.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    };
    let y = |time: f64| {
        let part = (time.max(1.0).log10() - low) / (high - low);
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    };
    let mut svg = String::new();
    let mut add = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    add(format!(r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">"#));
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for power in low as i32..=high as i32 {
        let at = y(10_f64.powi(power));
        add(format!(
            r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1}" y2="{at:.1}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            LEFT - 6.0,
            at + 4.0,
            time_name(power)
        ));
    }
    for (place, name) in &axis.marks {
        let at = x(*place);
        add(format!(
            r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{TOP}" y2="{bottom}"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{name}</text>"#,
            bottom + 16.0
        ));
    }
    add(format!(
        r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
        f64::midpoint(LEFT, right),
        HEIGHT - 6.0,
        escape(&axis.title)
    ));
    let mut named = 0;
    for line in lines.iter().filter(|line| !line.points.is_empty()) {
        let color = COLORS[line.color % COLORS.len()];
        let points = line.points.iter().fold(String::new(), |mut text, point| {
            write!(text, "{:.1},{:.1} ", x(point.0), y(point.1)).expect("memory takes all");
            text
        });
        let class = if line.is_thin { "thin" } else { "line" };
        add(format!(
            r#"<polyline class="{class}" stroke="{color}" points="{}"/>"#,
            points.trim_end()
        ));
        if !line.is_thin {
            let at = TOP + 16.0 + f64::from(named) * 18.0;
            named += 1;
            add(format!(
                r#"<line x1="{:.1}" x2="{:.1}" y1="{at}" y2="{at}" stroke="{color}" stroke-width="3"/><text x="{:.1}" y="{:.1}">{}</text>"#,
                right + 12.0,
                right + 34.0,
                right + 40.0,
                at + 4.0,
                escape(&line.name)
            ));
        }
    }
    add("</svg>".to_owned());
    svg
}

/// Of a power of ten of microseconds.
fn time_name(power: i32) -> String {
    match power {
        ..3 => format!("{} µs", 10_f64.powi(power)),
        3..6 => format!("{} ms", 10_f64.powi(power - 3)),
        6.. => format!("{} s", 10_f64.powi(power - 6)),
    }
}

/// For text between tags and in attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_nine_is_as_far_as_the_one_before() {
        let far = |quantile: f64| nines(quantile);
        assert!((far(0.99) - far(0.9) - 1.0).abs() < 1e-9);
        assert!((far(0.9999) - far(0.999) - 1.0).abs() < 1e-9);
        assert!(far(1.0).is_finite());
        let marks = quantiles(60_000).marks;
        assert_eq!(marks.last().map(|mark| mark.1.as_str()), Some("99.99 %"));
    }

    #[test]
    fn a_line_rises_with_its_times() {
        let points = vec![(0.0, 100.0), (1.0, 1000.0), (2.0, 10_000.0)];
        let line = Line { name: "a<b".to_owned(), color: 0, is_thin: false, points };
        let svg = chart(&quantiles(100), &[line]);
        let points = svg.split("points=\"").nth(1).and_then(|rest| rest.split('"').next());
        let heights: Vec<f64> = points
            .expect("a line")
            .split(' ')
            .map(|point| point.split_once(',').expect("two").1.parse().expect("a number"))
            .collect();
        assert!(heights[0] > heights[1] && heights[1] > heights[2], "{heights:?}");
        let steps = [heights[0] - heights[1], heights[1] - heights[2]];
        assert!((steps[0] - steps[1]).abs() < 0.2, "a power of ten is always as high: {steps:?}");
        assert!(svg.contains("a&lt;b") && svg.contains("10 ms") && svg.contains("100 µs"));
    }

    #[test]
    fn nothing_to_draw_is_drawn_all_the_same() {
        assert!(chart(&seconds(0.0), &[]).ends_with("</svg>\n"));
    }
}
