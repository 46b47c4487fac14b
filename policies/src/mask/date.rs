//! Dates and timestamps cut to their month or year, in text (ISO) and binary form.
//!
//! Owns the calendar arithmetic over PostgreSQL's whole range, which is wider than a date library's. Answers
//! `None` for anything it does not read (other date styles, infinity); the caller then redacts.

use crate::api::access_policy::DateUnit;

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Cuts a date in ISO text form: `2024-05-17`, perhaps with ` BC` behind it.
pub(super) fn date_text(text: &str, unit: DateUnit) -> Option<String> {
    let (day, rest) = cut_day(text, unit)?;
    matches!(rest, "" | " BC").then(|| format!("{day}{rest}"))
}

/// Cuts a timestamp in ISO text form: `2024-05-17 13:45:12.5+02`. An offset stays as it is.
pub(super) fn timestamp_text(text: &str, unit: DateUnit) -> Option<String> {
    let (day, rest) = cut_day(text, unit)?;
    let (rest, era) = match rest.strip_suffix(" BC") {
        Some(rest) => (rest, " BC"),
        None => (rest, ""),
    };
    let time = rest.strip_prefix([' ', 'T'])?;
    let clock = time.find(['+', '-', 'Z']).unwrap_or(time.len());
    let (clock, offset) = time.split_at_checked(clock)?;
    let numbers = |text: &str, others: &[u8]| text.bytes().all(|b| b.is_ascii_digit() || others.contains(&b));
    let readable = !clock.is_empty() && numbers(clock, b":.") && numbers(offset, b"+-:Z") && offset.len() <= 9;
    readable.then(|| format!("{day} 00:00:00{offset}{era}"))
}

/// The cut day and what follows it.
fn cut_day(text: &str, unit: DateUnit) -> Option<(String, &str)> {
    let (year, rest) = text.split_once('-')?;
    let (month, rest) = rest.split_once('-')?;
    let (day, rest) = rest.split_at_checked(2)?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let readable = (4..=7).contains(&year.len()) && month.len() == 2 && digits(year) && digits(month) && digits(day);
    let month = match unit {
        DateUnit::Month => month,
        DateUnit::Year => "01",
    };
    readable.then(|| (format!("{year}-{month}-01"), rest))
}

/// Cuts a binary date: days from 2000-01-01.
pub(super) fn date_binary(cell: &[u8], unit: DateUnit) -> Option<[u8; 4]> {
    let days = i32::from_be_bytes(cell.try_into().ok()?);
    let cut = cut_days(finite(days.into(), i32::MIN.into(), i32::MAX.into())?, unit)?;
    Some(i32::try_from(cut).ok()?.to_be_bytes())
}

/// Cuts a binary timestamp: microseconds from 2000-01-01, UTC.
pub(super) fn timestamp_binary(cell: &[u8], unit: DateUnit) -> Option<[u8; 8]> {
    let micros = i64::from_be_bytes(cell.try_into().ok()?);
    let days = finite(micros, i64::MIN, i64::MAX)?.div_euclid(MICROS_PER_DAY);
    Some(cut_days(days, unit)?.checked_mul(MICROS_PER_DAY)?.to_be_bytes())
}

/// Both ends of the range stand for infinity.
fn finite(value: i64, least: i64, most: i64) -> Option<i64> {
    (value != least && value != most).then_some(value)
}

/// Days from 2000-01-01, cut to the first of the month or year.
fn cut_days(days: i64, unit: DateUnit) -> Option<i64> {
    // Counted in years that begin on 1 March and in 400-year cycles, so that leap days fall at the end of both.
    const DAYS_2000_03_01: i64 = 60;
    const CYCLE: i64 = 146_097;
    let shifted = days.checked_sub(DAYS_2000_03_01)?;
    let (cycle, day) = (shifted.div_euclid(CYCLE), shifted.rem_euclid(CYCLE));
    let century = (day / 36_524).min(3);
    let day = day.checked_sub(century.checked_mul(36_524)?)?;
    let four = day / 1_461;
    let day = day.checked_sub(four.checked_mul(1_461)?)?;
    let year = (day / 365).min(3);
    let day_of_year = day.checked_sub(year.checked_mul(365)?)?;
    // Where each month from March on begins.
    const MONTHS: [i64; 12] = [0, 31, 61, 92, 122, 153, 184, 214, 245, 275, 306, 337];
    let start_of_year = days.checked_sub(day_of_year)?;
    match unit {
        DateUnit::Month => {
            let start = MONTHS.iter().rev().find(|start| **start <= day_of_year)?;
            start_of_year.checked_add(*start)
        }
        DateUnit::Year if day_of_year >= 306 => start_of_year.checked_add(306),
        DateUnit::Year => {
            // Back to the January before this March: 59 days, one more in a leap year.
            let in_cycle = century
                .checked_mul(100)?
                .checked_add(four.checked_mul(4)?)?
                .checked_add(year)?;
            let calendar_year = cycle.checked_mul(400)?.checked_add(in_cycle)?;
            let leap = calendar_year.rem_euclid(4) == 0
                && (calendar_year.rem_euclid(100) != 0 || calendar_year.rem_euclid(400) == 0);
            start_of_year.checked_sub(if leap { 60 } else { 59 })
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn binary_dates_cut_like_a_calendar() {
        let epoch = jiff::civil::date(2000, 1, 1);
        let mut day = jiff::civil::date(1890, 1, 1);
        while day.year() < 2110 {
            let days = (day - epoch).get_days();
            let cell = days.to_be_bytes();
            for (unit, wanted) in [
                (DateUnit::Month, jiff::civil::date(day.year(), day.month(), 1)),
                (DateUnit::Year, jiff::civil::date(day.year(), 1, 1)),
            ] {
                let cut = i32::from_be_bytes(date_binary(&cell, unit).unwrap());
                assert_eq!(cut, (wanted - epoch).get_days(), "{day} {unit:?}");
                assert_eq!(date_text(&day.to_string(), unit).unwrap(), wanted.to_string());
            }
            day = day.tomorrow().unwrap();
        }
    }

    #[test]
    fn timestamps_lose_their_clock_and_keep_their_offset() {
        let cut = |text| timestamp_text(text, DateUnit::Month);
        assert_eq!(cut("2024-05-17 13:45:12.5").unwrap(), "2024-05-01 00:00:00");
        assert_eq!(cut("2024-05-17 13:45:12+05:30").unwrap(), "2024-05-01 00:00:00+05:30");
        assert_eq!(cut("0044-03-15 12:00:00 BC").unwrap(), "0044-03-01 00:00:00 BC");
        for other in ["17.05.2024 13:45:12", "infinity", "2024-05-17", "2024-05-17 x", ""] {
            assert_eq!(cut(other), None, "{other}");
        }
        let micros = (8_903 * MICROS_PER_DAY + 12_345).to_be_bytes();
        let cut = i64::from_be_bytes(timestamp_binary(&micros, DateUnit::Month).unwrap());
        assert_eq!(cut % MICROS_PER_DAY, 0);
        assert_eq!(timestamp_binary(&i64::MAX.to_be_bytes(), DateUnit::Year), None);
    }
}
