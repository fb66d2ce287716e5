//! Retention: how far the start of a log moves, by age and by size.
//!
//! Pure arithmetic over the pieces a log is made of, oldest first. A piece goes whole: an extent's
//! run, or a batch of the tail.

use tidemill_wal::mutation::{self, Mutation};

use crate::command::TopicConfig;

/// A piece of a log that is kept or dropped whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First offset after it.
    pub end: u64,
    /// Stored bytes.
    pub size: u64,
    /// Largest timestamp of its records, in milliseconds since 1970.
    pub max_timestamp_ms: i64,
}

/// The new start, if pieces have to go. Size drops a piece only if what stays is at least the
/// limit, as Kafka does, so that the limit is a minimum kept; age drops pieces from the oldest on
/// until one is young enough.
pub fn new_start(config: &TopicConfig, pieces: &[Piece], now_ms: i64) -> Option<u64> {
    let too_old = config.retention_ms.map_or(0, |retention_ms| {
        let oldest_kept = now_ms.saturating_sub_unsigned(retention_ms);
        pieces.iter().take_while(|piece| piece.max_timestamp_ms < oldest_kept).count()
    });
    let too_much = config.retention_bytes.map_or(0, |retention_bytes| {
        let mut kept: u64 = pieces.iter().map(|piece| piece.size).sum();
        pieces
            .iter()
            .take_while(|piece| {
                let goes = kept - piece.size >= retention_bytes;
                kept -= piece.size;
                goes
            })
            .count()
    });
    let mut dropped = too_old.max(too_much);
    if mutation::is_on(Mutation::RetainNothing) && dropped > 0 {
        dropped = pieces.len();
    }
    dropped.checked_sub(1).map(|last| pieces[last].end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(retention_ms: Option<u64>, retention_bytes: Option<u64>) -> TopicConfig {
        TopicConfig {
            retention_ms,
            retention_bytes,
            batch_size_max: 1 << 20,
            append_time: false,
            overrides: Default::default(),
        }
    }

    /// Three pieces of 100 bytes ending at 10, 20, 30, with times 1000, 2000, 3000.
    fn check(retention_ms: Option<u64>, retention_bytes: Option<u64>, now_ms: i64) -> Option<u64> {
        let pieces: Vec<Piece> = (1..=3)
            .map(|n| Piece { end: n * 10, size: 100, max_timestamp_ms: n as i64 * 1000 })
            .collect();
        new_start(&config(retention_ms, retention_bytes), &pieces, now_ms)
    }

    #[test]
    fn age_drops_from_the_oldest_on() {
        assert_eq!(check(Some(1000), None, 2000), None);
        assert_eq!(check(Some(1000), None, 2001), Some(10));
        assert_eq!(check(Some(1000), None, 10_000), Some(30));
        assert_eq!(check(None, None, 10_000), None);
    }

    #[test]
    fn size_keeps_at_least_the_limit() {
        assert_eq!(check(None, Some(300), 0), None);
        assert_eq!(check(None, Some(250), 0), None);
        assert_eq!(check(None, Some(200), 0), Some(10));
        assert_eq!(check(None, Some(1), 0), Some(20));
        assert_eq!(check(None, Some(0), 0), Some(30));
    }

    #[test]
    fn the_stricter_rule_wins() {
        assert_eq!(check(Some(1000), Some(100), 2001), Some(20));
    }
}
