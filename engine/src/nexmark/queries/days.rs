//! Days and hours of event time, in UTC.

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// The hour of the day.
pub(super) fn hour(time_ms: i64) -> i64 {
    time_ms.rem_euclid(DAY_MS) / HOUR_MS
}

/// Hour and minute, `HH:mm`.
pub(super) fn minute_text(time_ms: i64) -> String {
    format!("{:02}:{:02}", hour(time_ms), time_ms.rem_euclid(HOUR_MS) / 60_000)
}

/// The day, `yyyy-MM-dd`.
pub(super) fn day_text(time_ms: i64) -> String {
    // Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is their last;
    // 146,097 days are 400 years, and 719,468 days lie between March of the year 0 and 1970.
    let days = time_ms.div_euclid(DAY_MS) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(day_text(0), "1970-01-01");
        assert_eq!(day_text(-1), "1969-12-31");
        assert_eq!(day_text(951_782_400_000), "2000-02-29");
        assert_eq!(day_text(951_868_800_000), "2000-03-01");
        assert_eq!(day_text(1_767_225_599_999), "2025-12-31");
        assert_eq!(day_text(1_767_225_600_000), "2026-01-01");
        assert_eq!(day_text(super::super::super::END_MS), "9999-12-31");
    }

    #[test]
    fn hours_and_minutes_begin_with_the_day() {
        assert_eq!((hour(1_767_225_599_999), hour(1_767_225_600_000)), (23, 0));
        assert_eq!(minute_text(1_767_225_599_999), "23:59");
        assert_eq!(minute_text(1_767_225_600_000 + 61 * 60_000), "01:01");
    }
}
