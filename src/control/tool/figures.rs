//! How figures and tables are written for people.

use std::ops::RangeInclusive;

/// Characters of a cell. What is longer is cut.
const CELL_CHARS_MAX: usize = 48;

/// A time in its two largest units.
pub fn span(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86_400);
    match () {
        () if seconds < 10.0 => format!("{seconds:.1} s"),
        () if whole < 60 => format!("{whole} s"),
        () if minutes < 60 => format!("{minutes}m {}s", whole % 60),
        () if hours < 24 => format!("{hours}h {}m", minutes % 60),
        () => format!("{days}d {}h", hours % 24),
    }
}

/// What fits into a cell.
pub fn cut(cell: &str) -> String {
    if cell.chars().count() <= CELL_CHARS_MAX {
        return cell.to_owned();
    }
    cell.chars().take(CELL_CHARS_MAX - 3).chain("...".chars()).collect()
}

/// Rows whose cells stand below each other, each with a line end. Columns of numbers end below each
/// other, all others begin so.
pub fn aligned(rows: &[Vec<String>], numbers: RangeInclusive<usize>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let widths = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        widths.max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let padded =
            row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                match numbers.contains(&column) {
                    true => format!("{cell:>width$}"),
                    false => format!("{cell:<width$}"),
                }
            });
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_cut_and_times_have_two_units() {
        assert_eq!(cut(&"ü".repeat(48)), "ü".repeat(48));
        assert_eq!(cut(&"ü".repeat(49)), "ü".repeat(45) + "...");
        let spans = [0.0, 9.94, 10.0, 59.6, 3599.0, 3600.0, 90_061.0].map(span);
        assert_eq!(spans, ["0.0 s", "9.9 s", "10 s", "1m 0s", "59m 59s", "1h 0m", "1d 1h"]);
    }

    #[test]
    fn names_begin_and_numbers_end_below_each_other() {
        let rows = [["NAME", "N"], ["a", "12"], ["bcdefg", "3"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&rows, 1..=1), "NAME     N\na       12\nbcdefg   3\n");
    }
}
