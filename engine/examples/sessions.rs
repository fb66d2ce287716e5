//! Cuts the clicks of each user into sessions: reads them from the topic `clicks`, and writes to
//! `sessions` how long each session was and how many clicks it had, once its user was silent for
//! half an hour. A click that comes when its session was told already goes to `late-clicks`.
//!
//! ```sh
//! cargo run --release --example sessions -- --data-dir sessions-data
//! kcat -b 127.0.0.1:9092 -P -t clicks <<END
//! {"user":"ann","page":"/","at_ms":0}
//! {"user":"ann","page":"/cart","at_ms":60000}
//! {"user":"bob","page":"/","at_ms":7200000}
//! END
//! kcat -b 127.0.0.1:9092 -C -t sessions -e -K =
//! ```
//!
//! Time is the clicks' own: Ann's session ends because Bob's click is two hours later.

use std::process;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidemill::daemon::Daemon;
use tidemill::topology::{Json, SideOutput, Topology, Utf8, Windows};

/// Silence that ends a session.
const GAP: Duration = Duration::from_mins(30);

/// How much later than a newer one a click may come.
const LATENESS: Duration = Duration::from_mins(1);

/// A partition without clicks for this long holds up no session.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// What is read.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Click {
    user: String,
    page: String,
    /// Milliseconds since 1970.
    at_ms: i64,
}

/// What is known of a session while it lasts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Visit {
    clicks: u64,
    first_ms: i64,
    last_ms: i64,
    /// Page of the first click.
    landing: String,
}

impl Visit {
    fn add(&mut self, click: Click) {
        let at_ms = click.at_ms;
        self.merge(Self { clicks: 1, first_ms: at_ms, last_ms: at_ms, landing: click.page });
    }

    /// A click between two sessions makes one of them.
    fn merge(&mut self, other: Self) {
        if self.clicks == 0 {
            *self = other;
            return;
        }
        if other.first_ms < self.first_ms {
            self.first_ms = other.first_ms;
            self.landing = other.landing;
        }
        self.last_ms = self.last_ms.max(other.last_ms);
        self.clicks += other.clicks;
    }
}

/// What is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Session {
    user: String,
    start_ms: i64,
    /// From the first click to the last.
    duration_ms: i64,
    clicks: u64,
    landing: String,
}

impl Session {
    fn of(user: &str, visit: Visit) -> Self {
        Self {
            user: user.to_owned(),
            start_ms: visit.first_ms,
            duration_ms: visit.last_ms - visit.first_ms,
            clicks: visit.clicks,
            landing: visit.landing,
        }
    }
}

/// Partitions of the topics, which are made at the first start.
const PARTITIONS: u32 = 4;

fn topology() -> Topology {
    let topology = Topology::new("sessions");
    // Time goes as the slowest partition does that is not idle: with one, as the clicks come.
    topology.create("clicks", 1);
    topology.create("sessions", PARTITIONS);
    topology.create("late-clicks", PARTITIONS);
    let late = SideOutput::new();
    let sessions = topology
        .source("clicks", Json::<Click>::new())
        .event_time(|click| click.at_ms, LATENESS, Some(IDLE_AFTER))
        .key_by("user", Utf8, Json::new(), |click| click.user.clone())
        .window(Windows::session(GAP))
        .late_to(&late)
        .aggregate("sessions", Json::new(), Visit::default, Visit::add, Visit::merge);
    sessions.map(|user, window| Session::of(user, window.value)).sink("sessions", Json::new());
    late.stream(&sessions).sink("late-clicks", Json::new());
    topology
}

fn main() -> process::ExitCode {
    Daemon::from_args().topology(topology()).run()
}

#[cfg(test)]
mod tests {
    use tidemill::driver::{TestDriver, TestRecord};

    use super::*;

    const MINUTE_MS: i64 = 60_000;

    fn driver() -> TestDriver {
        TestDriver::new(2, vec![topology()]).expect("good")
    }

    fn click(user: &str, page: &str, at_ms: i64) -> TestRecord {
        let click = format!(r#"{{"user":"{user}","page":"{page}","at_ms":{at_ms}}}"#);
        TestRecord::new(user, &click, at_ms)
    }

    fn texts(driver: &mut TestDriver, topic: &str) -> Vec<String> {
        let mut texts: Vec<String> = driver.pipe_out(topic).iter().map(TestRecord::text).collect();
        texts.sort();
        texts
    }

    fn day() -> Vec<TestRecord> {
        vec![
            click("ann", "/", 0),
            click("bob", "/buy", 5 * MINUTE_MS),
            click("ann", "/cart", 10 * MINUTE_MS),
            click("ann", "/pay", 12 * MINUTE_MS),
            // More than half an hour after the last of each.
            click("bob", "/", 60 * MINUTE_MS),
            click("cid", "/", 120 * MINUTE_MS),
        ]
    }

    const SESSIONS_OF_DAY: [&str; 3] = [
        r#"ann={"user":"ann","start_ms":0,"duration_ms":720000,"clicks":3,"landing":"/"}"#,
        r#"bob={"user":"bob","start_ms":300000,"duration_ms":0,"clicks":1,"landing":"/buy"}"#,
        r#"bob={"user":"bob","start_ms":3600000,"duration_ms":0,"clicks":1,"landing":"/"}"#,
    ];

    #[test]
    fn a_session_is_told_when_its_user_was_silent_for_the_gap() {
        let mut driver = driver();
        let day = day();
        driver.pipe_in("clicks", &day[..4]).expect("the power is there");
        assert_eq!(texts(&mut driver, "sessions"), [""; 0], "both may go on");
        driver.pipe_in("clicks", &day[4..]).expect("the power is there");
        assert_eq!(texts(&mut driver, "sessions"), SESSIONS_OF_DAY);
        assert_eq!(driver.paused(), []);
    }

    #[test]
    fn a_click_between_two_sessions_makes_one_of_them() {
        let mut driver = driver();
        let clicks = [
            click("ann", "/", 0),
            click("ann", "/pay", 30 * MINUTE_MS + 20_000),
            // It comes after a newer one, within a minute.
            click("ann", "/cart", 29 * MINUTE_MS + 40_000),
            click("bob", "/", 120 * MINUTE_MS),
        ];
        driver.pipe_in("clicks", &clicks).expect("the power is there");
        let whole =
            r#"ann={"user":"ann","start_ms":0,"duration_ms":1820000,"clicks":3,"landing":"/"}"#;
        assert_eq!(texts(&mut driver, "sessions"), [whole]);
    }

    #[test]
    fn a_click_of_a_session_that_was_told_is_late() {
        let mut driver = driver();
        driver.pipe_in("clicks", &day()).expect("the power is there");
        driver.pipe_in("clicks", &[click("ann", "/", MINUTE_MS)]).expect("the power is there");
        assert_eq!(texts(&mut driver, "sessions"), SESSIONS_OF_DAY);
        let late = r#"ann={"user":"ann","page":"/","at_ms":60000}"#;
        assert_eq!(texts(&mut driver, "late-clicks"), [late]);
    }

    #[test]
    fn no_power_cut_loses_or_doubles_a_session() {
        let clicks = day();
        let mut cuts = 0;
        for write in 1.. {
            let mut driver = driver();
            driver.crash_at_write(write);
            if driver.pipe_in("clicks", &clicks).is_ok() {
                break;
            }
            cuts += 1;
            driver.restart().expect("it comes back");
            // What was not acknowledged may be there all the same.
            let there = driver.pipe_out("clicks").len();
            driver.pipe_in("clicks", &clicks[there..]).expect("the power is there");
            assert_eq!(texts(&mut driver, "sessions"), SESSIONS_OF_DAY, "a cut at write {write}");
        }
        assert!(cuts > 5, "{cuts} cuts");
    }
}
