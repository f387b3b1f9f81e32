//! What the live view looks like, on a terminal of any size.

use super::follower::TopScreen;
use super::sight::TopSnapshot;
use super::words::{cells, lines, TITLES};
use crate::base::line::for_terminal;
use crate::control::roster::Condition;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table};
use ratatui::Frame;

/// Columns that the titles of the table need, and most of what stands below them. The first one
/// gets what is left.
const WIDTHS: [usize; TITLES.len()] = [12, 9, 9, 7, 8, 11, 9];
/// Reasons of refusals that a line has room for.
const REASONS_MAX: usize = 3;
/// From so many rows on there are empty ones between the parts.
const AIRY_ROWS: u16 = 16;

/// What is shown.
#[derive(Default)]
pub struct TopView {
    snapshot: Option<TopSnapshot>,
    processes: usize,
    notices: Vec<String>,
    /// Rows of the table above the first one that is shown.
    skipped: usize,
}

impl TopView {
    /// Shows this from now on. Where there is nothing to show, what was there last stays, and a
    /// line says why.
    pub fn take(&mut self, screen: TopScreen) {
        self.snapshot = screen.snapshot.or(self.snapshot.take());
        (self.processes, self.notices) = (screen.processes, screen.notices);
    }

    /// Moves the table.
    pub fn scroll(&mut self, rows: isize) {
        self.skipped = self.skipped.saturating_add_signed(rows);
    }
}

/// Draws all of it.
pub fn draw(frame: &mut Frame, view: &mut TopView) {
    let area = frame.area();
    let gap = u16::from(area.height >= AIRY_ROWS);
    let head = view.snapshot.as_ref().map(|it| lines(it, REASONS_MAX)).unwrap_or_default();
    let head_rows = u16::try_from(head.len()).unwrap_or(u16::MAX).saturating_add(gap * 2);
    let parts = [Constraint::Length(head_rows), Constraint::Min(0), Constraint::Length(1)];
    let [top, middle, bottom] = Layout::vertical(parts).areas(area);
    let mut text = Text::default();
    for (at, line) in head.into_iter().enumerate() {
        let style = if at == 0 { Modifier::BOLD } else { Modifier::empty() };
        text.push_line(Line::styled(fitted(&line, top.width, Cut::End), style));
        // The second line is the last one about the process.
        if at == 1 && gap > 0 {
            text.push_line("");
        }
    }
    frame.render_widget(Paragraph::new(text), top);
    let below = match &view.snapshot {
        Some(snapshot) => {
            let rows = usize::from(middle.height.saturating_sub(1));
            let most = snapshot.backends.len().saturating_sub(rows);
            view.skipped = view.skipped.min(most);
            frame.render_widget(table(snapshot, view.skipped, middle.width), middle);
            most.saturating_sub(view.skipped)
        }
        None => 0,
    };
    frame.render_widget(footer(view, below, bottom), bottom);
}

fn table(snapshot: &TopSnapshot, skipped: usize, width: u16) -> Table<'static> {
    let widths = widths(usize::from(width));
    let aligned = |at: usize, text: String| {
        let width = widths.get(at).copied().unwrap_or_default();
        let side = if at < 2 { Alignment::Left } else { Alignment::Right };
        Text::from(fitted(&text, width, Cut::Middle)).alignment(side)
    };
    let titles = TITLES.iter().take(widths.len()).enumerate();
    let titles = Row::new(titles.map(|(at, title)| Cell::from(aligned(at, (*title).to_owned()))))
        .style(Modifier::UNDERLINED);
    let rows = snapshot.backends.iter().skip(skipped).map(|backend| {
        let style = state_style(backend.state);
        let cells = cells(backend).into_iter().take(widths.len()).enumerate();
        Row::new(cells.map(|(at, text)| {
            let cell = Cell::from(aligned(at, text));
            if at == 1 {
                cell.style(style)
            } else {
                cell
            }
        }))
    });
    let columns = widths.iter().map(|width| Constraint::Length(*width));
    Table::new(rows.collect::<Vec<_>>(), columns.collect::<Vec<_>>()).header(titles)
}

/// As many columns as there is room for, each with a blank before the next one; the first one takes
/// what is left.
fn widths(room: usize) -> Vec<u16> {
    let mut widths = Vec::new();
    let mut left = room;
    for width in WIDTHS {
        let wanted = width + usize::from(!widths.is_empty());
        if wanted > left && !widths.is_empty() {
            break;
        }
        left = left.saturating_sub(wanted);
        widths.push(u16::try_from(width).unwrap_or(u16::MAX));
    }
    if let Some(first) = widths.first_mut() {
        *first = first.saturating_add(u16::try_from(left).unwrap_or(u16::MAX));
    }
    widths
}

fn state_style(state: Condition) -> Style {
    Style::from(match state {
        Condition::Up => Color::Green,
        Condition::Starting | Condition::Full => Color::Yellow,
        Condition::Ejected | Condition::Unhealthy => Color::Red,
        Condition::Drained | Condition::Leaving => Color::Cyan,
        Condition::Other => Color::Reset,
    })
}

/// What somebody should know, or else the keys.
fn footer(view: &TopView, below: usize, area: Rect) -> Paragraph<'static> {
    if !view.notices.is_empty() {
        let told = for_terminal(&view.notices.join("; "));
        let style = Style::from((Color::Black, Color::Yellow));
        return Paragraph::new(fitted(&told, area.width, Cut::End)).style(style);
    }
    let mut told = "q ends".to_owned();
    if view.snapshot.is_none() {
        told += "; asking ...";
    }
    if view.processes > 1 {
        told += &format!("; Tab: the next of {} processes", view.processes);
    }
    if below > 0 || view.skipped > 0 {
        told += &format!("; arrows: {} backends above, {below} below", view.skipped);
    }
    Paragraph::new(fitted(&told, area.width, Cut::End)).style(Modifier::DIM)
}

/// Where a text loses what does not fit.
#[derive(Clone, Copy)]
enum Cut {
    End,
    /// Names of engines differ at their ends.
    Middle,
}

/// As much of a text as fits, with a mark where something is missing. Some characters take two
/// columns.
fn fitted(text: &str, width: u16, cut: Cut) -> String {
    const MARK: char = '\u{2026}';
    let width = usize::from(width);
    let columns = |text: &[char]| Line::from(text.iter().collect::<String>()).width();
    let chars: Vec<char> = text.chars().collect();
    if columns(&chars) <= width {
        return text.to_owned();
    }
    // No character takes less than a column, but for those that are part of another one.
    let mut kept = chars.len().min(width);
    loop {
        let behind = match cut {
            Cut::End => 0,
            Cut::Middle => kept / 2,
        };
        let (first, last) = (chars.get(..kept - behind), chars.get(chars.len() - behind..));
        let mut short = first.unwrap_or_default().to_vec();
        short.push(MARK);
        short.extend_from_slice(last.unwrap_or_default());
        if kept == 0 || columns(&short) <= width {
            return if width == 0 { String::new() } else { short.into_iter().collect() };
        }
        kept -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::sight::tests::busy;
    use super::*;
    use ratatui::backend::TestBackend;
    use ratatui::Terminal;

    fn drawn(view: &mut TopView, (width, height): (u16, u16)) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let buffer = terminal.backend().buffer();
        let symbols: Vec<&str> = buffer.content().iter().map(|cell| cell.symbol()).collect();
        symbols
            .chunks(usize::from(width).max(1))
            .map(|row| row.concat().trim_end().to_owned())
            .collect()
    }

    fn view(snapshot: Option<TopSnapshot>, notices: &[&str]) -> TopView {
        let notices = notices.iter().map(|notice| (*notice).to_owned()).collect();
        let mut view = TopView::default();
        view.take(TopScreen { snapshot, processes: 1, notices });
        view
    }

    /// Catches: a part that is not there on the terminal that everybody has, or stands elsewhere.
    #[test]
    fn all_is_seen_on_eighty_by_twenty_four() {
        let rows = drawn(&mut view(Some(busy()), &[]), (80, 24));
        let wanted = "\
llmproxy 1.2.3, process 7, up 2h 5m, workers 4 (io_uring)
connections 12, in flight 3, queued 1

requests     5.0/s (110)
tokens       in 50.0/s (1100), out 125/s (2250)
first token  p50 15 ms, p95 20 ms; between tokens p50 15 ms, p95 20 ms
refused      1.5/s (13): rate_limited 1.0/s (4), backends_full 0.5/s (9)
journal      8 records wait, the oldest for 1m 30s; away: ho\u{fffd}k

BACKEND               STATE     IN FLIGHT TRIES/S FAILED/S FIRST TOKEN    WEIGHT
gpu-1                 up          3 of 16     4.0        0       15 ms        10
gpu\u{fffd}[2J               ejected           0     1.0      0.5           - 2.5 of 10";
        assert_eq!(rows[..12].join("\n"), wanted);
        assert_eq!(rows[23], "q ends");
    }

    /// Catches: a small window in which the table is pushed out, or the program breaks.
    #[test]
    fn what_counts_is_seen_on_forty_by_ten() {
        let mut small = view(Some(busy()), &[]);
        let rows = drawn(&mut small, (40, 10));
        assert_eq!(rows[0], "llmproxy 1.2.3, process 7, up 2h 5m, wo\u{2026}");
        assert_eq!(rows[7], "BACKEND      STATE     IN FLIGHT TRIES/S");
        assert_eq!(rows[8], "gpu-1        up          3 of 16     4.0");
        assert_eq!(rows[9], "q ends; arrows: 0 backends above, 1 bel\u{2026}");
        small.scroll(99);
        let rows = drawn(&mut small, (40, 10));
        assert!(rows[8].starts_with("gpu\u{fffd}[2J") && rows[9].contains("1 backends above, 0"));
        small.scroll(isize::MIN);
        assert!(drawn(&mut small, (40, 10))[8].starts_with("gpu-1"));
        for size in [(1, 1), (3, 2), (200, 60), (12, 9), (40, 0), (0, 10)] {
            drawn(&mut small, size);
        }
    }

    /// Catches: an end that nobody is told of, or that takes what was last seen away.
    #[test]
    fn a_gateway_that_is_gone_is_said_and_its_figures_stay() {
        let mut gone = view(Some(busy()), &[]);
        let notices = vec!["no gateway\u{1b} runs".to_owned()];
        gone.take(TopScreen { snapshot: None, processes: 0, notices });
        let rows = drawn(&mut gone, (80, 24));
        assert!(rows[0].contains("process 7"), "{}", rows[0]);
        assert_eq!(rows[23], "no gateway\u{fffd} runs");
        let first = drawn(&mut view(None, &[]), (80, 24));
        assert_eq!(first[23], "q ends; asking ...");
        let mut two = view(Some(busy()), &[]);
        two.processes = 2;
        assert_eq!(drawn(&mut two, (80, 24))[23], "q ends; Tab: the next of 2 processes");
    }

    /// Catches: names that are told apart by their ends and look the same, half a character.
    #[test]
    fn names_are_cut_in_their_middle() {
        assert_eq!(fitted("gpu-node-rack-17", 12, Cut::Middle), "gpu-no\u{2026}ck-17");
        assert_eq!(fitted("gpu-node-rack-17", 16, Cut::Middle), "gpu-node-rack-17");
        let wide = "\u{6a21}\u{578b}\u{670d}\u{52a1}\u{5668}";
        assert_eq!(fitted(wide, 7, Cut::Middle), "\u{6a21}\u{578b}\u{2026}\u{5668}");
        assert_eq!(fitted("abc", 0, Cut::End), "");
        assert_eq!(fitted("abc", 1, Cut::End), "\u{2026}");
    }
}
