//! How a setting's value is written: one text form for flags, environment, file and display.
//!
//! Every value prints in a form that parses back to itself.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

/// A value that a setting can have.
pub(super) trait Value: Sized + Clone + PartialEq {
    /// What to type, with an example; completes "write …".
    const FORM: &'static str;

    /// The word for "not set", if the value may be absent.
    const ABSENT: &'static str = "none";

    /// Reads what a person wrote.
    fn parse(text: &str) -> Option<Self>;

    /// Writes it so that `parse` reads it back.
    fn print(&self) -> String;

    /// Whether it lies between two others; values without an order lie everywhere.
    fn is_within(&self, _low: &Self, _high: &Self) -> bool {
        true
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

impl Size {
    /// The number.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, bytes) = SIZE_UNITS
            .into_iter()
            .find(|(_, bytes)| self.0 >= *bytes && self.0.is_multiple_of(*bytes))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

impl Value for Size {
    const FORM: &'static str =
        "a whole number of bytes with a unit (B, KiB, MiB, GiB or TiB), such as 64MiB";
    const ABSENT: &'static str = "unlimited";

    fn parse(text: &str) -> Option<Self> {
        let (number, unit) = split_number(text)?;
        if unit.is_empty() {
            return Some(Self(number));
        }
        // The decimal units (MB) are refused on purpose: they would be a wrong guess half the time.
        let (_, bytes) =
            SIZE_UNITS.into_iter().find(|(name, _)| unit.eq_ignore_ascii_case(name))?;
        number.checked_mul(bytes).map(Self)
    }

    fn print(&self) -> String {
        self.to_string()
    }

    fn is_within(&self, low: &Self, high: &Self) -> bool {
        (low..=high).contains(&self)
    }
}

/// Bytes in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(pub u64);

impl Rate {
    /// The number.
    pub const fn bytes_per_second(self) -> u64 {
        self.0
    }
}

impl Value for Rate {
    const FORM: &'static str = "bytes in a second, such as 8MiB/s";
    const ABSENT: &'static str = "unlimited";

    fn parse(text: &str) -> Option<Self> {
        let size = text.strip_suffix("/s").unwrap_or(text);
        Size::parse(size).map(|size| Self(size.0))
    }

    fn print(&self) -> String {
        format!("{}/s", Size(self.0))
    }

    fn is_within(&self, low: &Self, high: &Self) -> bool {
        (low..=high).contains(&self)
    }
}

const DURATION_UNITS: [(&str, Duration); 6] = [
    ("d", Duration::from_hours(24)),
    ("h", Duration::from_hours(1)),
    ("m", Duration::from_mins(1)),
    ("s", Duration::from_secs(1)),
    ("ms", Duration::from_millis(1)),
    ("us", Duration::from_micros(1)),
];

impl Value for Duration {
    const FORM: &'static str =
        "whole numbers with a unit (us, ms, s, m, h or d), such as 500us, 7d or 1h30m";
    const ABSENT: &'static str = "unlimited";

    fn parse(text: &str) -> Option<Self> {
        if text == "0" {
            return Some(Self::ZERO);
        }
        let mut rest = text;
        let mut total = Self::ZERO;
        while !rest.is_empty() {
            let (number, after) = split_number(rest)?;
            let unit_size = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
            let (unit, next) = after.split_at(unit_size);
            let unit = unit.trim();
            let (_, one) = DURATION_UNITS.into_iter().find(|(name, _)| unit == *name)?;
            // Microseconds are the finest unit, so the arithmetic is exact.
            let micros = one.as_micros().checked_mul(u128::from(number))?;
            total = total.checked_add(Self::from_micros(u64::try_from(micros).ok()?))?;
            rest = next;
        }
        (!text.is_empty()).then_some(total)
    }

    fn print(&self) -> String {
        let micros = self.as_micros();
        let (unit, one) = DURATION_UNITS
            .into_iter()
            .map(|(unit, one)| (unit, one.as_micros()))
            .find(|(_, one)| micros >= *one && micros.is_multiple_of(*one))
            .unwrap_or(("s", 1_000_000));
        format!("{}{unit}", micros / one)
    }

    fn is_within(&self, low: &Self, high: &Self) -> bool {
        (low..=high).contains(&self)
    }
}

/// Splits leading digits (underscores allowed between them) from the unit.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let digits_size = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (digits, rest) = text.split_at(digits_size);
    let number = digits.replace('_', "").parse().ok()?;
    Some((number, rest.trim()))
}

impl Value for u32 {
    const FORM: &'static str = "a whole number, such as 1000";
    const ABSENT: &'static str = "unlimited";

    fn parse(text: &str) -> Option<Self> {
        text.replace('_', "").parse().ok()
    }

    fn print(&self) -> String {
        self.to_string()
    }

    fn is_within(&self, low: &Self, high: &Self) -> bool {
        (low..=high).contains(&self)
    }
}

impl Value for bool {
    const FORM: &'static str = "true or false";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Value for PathBuf {
    const FORM: &'static str = "a path, such as /var/lib/tidemill";

    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::from(text))
    }

    fn print(&self) -> String {
        // Paths come in as text, so nothing is lost here.
        self.to_string_lossy().into_owned()
    }
}

impl Value for SocketAddr {
    const FORM: &'static str = "an IP address and a port, such as 127.0.0.1:9092 or [::1]:9092";
    const ABSENT: &'static str = "off";

    fn parse(text: &str) -> Option<Self> {
        let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
        numeric.as_deref().unwrap_or(text).parse().ok()
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

/// A value that may be absent is written as the kind's word for that, or as `-1` where Kafka's
/// users expect it.
impl<T: Value> Value for Option<T> {
    const FORM: &'static str = T::FORM;
    const ABSENT: &'static str = T::ABSENT;

    fn parse(text: &str) -> Option<Self> {
        if text == T::ABSENT || (T::ABSENT == "unlimited" && text == "-1") {
            return Some(None);
        }
        T::parse(text).map(Some)
    }

    fn print(&self) -> String {
        self.as_ref().map_or_else(|| T::ABSENT.to_owned(), Value::print)
    }

    fn is_within(&self, low: &Self, high: &Self) -> bool {
        match (self, low, high) {
            (Some(value), Some(low), Some(high)) => value.is_within(low, high),
            _ => true,
        }
    }
}

/// How many shards a new data directory gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardCount {
    /// As many as the process may use cores when the directory is made.
    Auto,
    /// This many.
    Count(u16),
}

/// Most shards of one node: a two-byte shard id with room, and the mesh has a ring for each pair.
pub const SHARD_COUNT_MAX: u16 = 256;

impl ShardCount {
    /// The number for a new data directory on this machine.
    pub fn resolve(self) -> u16 {
        match self {
            Self::Count(count) => count,
            Self::Auto => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                u16::try_from(cores).unwrap_or(SHARD_COUNT_MAX).min(SHARD_COUNT_MAX)
            }
        }
    }
}

impl Value for ShardCount {
    const FORM: &'static str = "auto, or a number from 1 to 256";

    fn parse(text: &str) -> Option<Self> {
        if text == "auto" {
            return Some(Self::Auto);
        }
        let count = text.parse().ok()?;
        (1..=SHARD_COUNT_MAX).contains(&count).then_some(Self::Count(count))
    }

    fn print(&self) -> String {
        match self {
            Self::Auto => "auto".to_owned(),
            Self::Count(count) => count.to_string(),
        }
    }
}

/// What clients are told to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertised {
    /// Name or address as clients know it; brackets of an IPv6 address are removed.
    pub host: String,
    /// Port of shard 0; without one, the listening port.
    pub port: Option<u16>,
}

/// Longest host name of DNS.
const HOST_SIZE_MAX: usize = 253;

impl Value for Advertised {
    const FORM: &'static str = "a host and, if it differs, a port: broker.example.net:9092";

    fn parse(text: &str) -> Option<Self> {
        let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
            let (host, after) = bracketed.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        } else {
            match text.split_once(':') {
                None => (text, None),
                Some((host, port)) => (host, Some(port)),
            }
        };
        let port = match port {
            None => None,
            Some(port) => Some(port.parse::<u16>().ok().filter(|port| *port != 0)?),
        };
        let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
        let is_host = (1..=HOST_SIZE_MAX).contains(&host.len()) && host.bytes().all(is_host_byte);
        is_host.then(|| Self { host: host.to_owned(), port })
    }

    fn print(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match self.port {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    }
}

/// The directives of `tracing`'s filter, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLevel(pub String);

impl Value for LogLevel {
    const FORM: &'static str =
        "error, warn, info, debug or trace, or directives such as info,tidemill::kafka=debug";

    fn parse(text: &str) -> Option<Self> {
        // The filter's own parser panics inside characters of several bytes.
        let is_sound =
            !text.is_empty() && text.is_ascii() && EnvFilter::builder().parse(text).is_ok();
        // A mistyped level would be taken for the name of a target, and silence everything else.
        let is_level = |word: &str| {
            ["off", "error", "warn", "info", "debug", "trace"]
                .iter()
                .any(|level| word.eq_ignore_ascii_case(level))
        };
        let is_named =
            text.split(',').all(|word| word.contains(['=', '[', ':']) || is_level(word.trim()));
        (is_sound && is_named).then(|| Self(text.to_owned()))
    }

    fn print(&self) -> String {
        self.0.clone()
    }
}

macro_rules! words {
    ($(#[doc = $type_doc:literal])+ $name:ident, $form:literal {
        $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+
    }) => {
        $(#[doc = $type_doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Value for $name {
            const FORM: &'static str = $form;

            fn parse(text: &str) -> Option<Self> {
                match text {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }

            fn print(&self) -> String {
                match self {
                    $(Self::$variant => $word.to_owned(),)+
                }
            }
        }
    };
}

words! {
    /// What clients see as brokers.
    Advertise, "node or shards" {
        /// One broker; shards share its port.
        Node = "node",
        /// Each shard is a broker on a port of its own.
        Shards = "shards",
    }
}

words! {
    /// How a frame is made durable.
    SyncChoice, "dsync or fdatasync" {
        /// Every write carries O_DSYNC.
        Dsync = "dsync",
        /// Every write is followed by `fdatasync`.
        Fdatasync = "fdatasync",
    }
}

words! {
    /// How log lines look.
    LogFormat, "text or json" {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check<T: Value>(texts: &[&str], expected: Expect) {
        let trace: String = texts
            .iter()
            .map(|text| {
                let outcome = T::parse(text).map_or_else(|| "refused".to_owned(), |v| v.print());
                format!("{text:?} -> {outcome}\n")
            })
            .collect();
        expected.assert_eq(&trace);
    }

    #[test]
    fn sizes_are_binary_and_print_in_the_largest_exact_unit() {
        check::<Size>(
            &[
                "64MiB",
                "64 mib",
                "65536KiB",
                "1_000",
                "0",
                "1536KiB",
                "64MB",
                "1.5GiB",
                "",
                "MiB",
                "-1",
                "99999999TiB",
            ],
            expect![[r#"
                "64MiB" -> 64MiB
                "64 mib" -> 64MiB
                "65536KiB" -> 64MiB
                "1_000" -> 1000B
                "0" -> 0B
                "1536KiB" -> 1536KiB
                "64MB" -> refused
                "1.5GiB" -> refused
                "" -> refused
                "MiB" -> refused
                "-1" -> refused
                "99999999TiB" -> refused
            "#]],
        );
    }

    #[test]
    fn durations_need_a_unit_and_may_be_sums() {
        check::<Duration>(
            &[
                "500us",
                "7d",
                "1h30m",
                "90 s",
                "0",
                "0s",
                "60000ms",
                "10",
                "1w",
                "1h 30m",
                "",
                "h",
                "99999999999999d",
            ],
            expect![[r#"
                "500us" -> 500us
                "7d" -> 7d
                "1h30m" -> 90m
                "90 s" -> 90s
                "0" -> 0s
                "0s" -> 0s
                "60000ms" -> 1m
                "10" -> refused
                "1w" -> refused
                "1h 30m" -> 90m
                "" -> refused
                "h" -> refused
                "99999999999999d" -> refused
            "#]],
        );
    }

    #[test]
    fn absent_values_have_a_word() {
        check::<Option<Size>>(
            &["unlimited", "-1", "1MiB", "none"],
            expect![[r#"
                "unlimited" -> unlimited
                "-1" -> unlimited
                "1MiB" -> 1MiB
                "none" -> refused
            "#]],
        );
        check::<Option<SocketAddr>>(
            &["off", "localhost:9644", "-1", "0.0.0.0", ":9092"],
            expect![[r#"
                "off" -> off
                "localhost:9644" -> 127.0.0.1:9644
                "-1" -> refused
                "0.0.0.0" -> refused
                ":9092" -> refused
            "#]],
        );
    }

    #[test]
    fn advertised_addresses_are_hosts_with_an_optional_port() {
        check::<Option<Advertised>>(
            &[
                "none",
                "broker.example.net",
                "broker:19092",
                "[::1]:9092",
                "[::1]",
                "::1",
                "a b",
                "broker:0",
                "broker:",
                ":9092",
                "[::1]9092",
            ],
            expect![[r#"
                "none" -> none
                "broker.example.net" -> broker.example.net
                "broker:19092" -> broker:19092
                "[::1]:9092" -> [::1]:9092
                "[::1]" -> [::1]
                "::1" -> refused
                "a b" -> refused
                "broker:0" -> refused
                "broker:" -> refused
                ":9092" -> refused
                "[::1]9092" -> refused
            "#]],
        );
    }

    #[test]
    fn a_mistyped_log_level_is_not_taken_for_a_target() {
        check::<LogLevel>(
            &["info", "INFO", "info,tidemill::kafka=debug", "inof", "tidemill=loud", ""],
            expect![[r#"
                "info" -> info
                "INFO" -> INFO
                "info,tidemill::kafka=debug" -> info,tidemill::kafka=debug
                "inof" -> refused
                "tidemill=loud" -> refused
                "" -> refused
            "#]],
        );
    }

    #[test]
    fn a_log_level_in_other_letters_is_refused() {
        assert!(LogLevel::parse("=\u{1193d}x\u{10599}").is_none());
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(number: u64, micros in 0..=u64::MAX / 2) {
            prop_assert_eq!(Size::parse(&Size(number).print()), Some(Size(number)));
            prop_assert_eq!(Rate::parse(&Rate(number).print()), Some(Rate(number)));
            let duration = Duration::from_micros(micros);
            prop_assert_eq!(Duration::parse(&duration.print()), Some(duration));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in any::<String>()) {
            let _ = Size::parse(&text);
            let _ = Duration::parse(&text);
            let _ = Option::<Advertised>::parse(&text);
            let _ = LogLevel::parse(&text);
        }
    }
}
