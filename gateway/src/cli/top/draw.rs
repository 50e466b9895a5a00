//! Draws a page on a terminal, however narrow it is: columns that matter less go first, and then the names are cut.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::Screen;
use super::pages::{PAGES, Page, Tone};

/// Between two columns.
const GAP: usize = 2;

/// A name is cut down to this many characters, and no further.
const NAME_MIN: usize = 8;

/// Draws everything.
pub(super) fn screen(frame: &mut Frame<'_>, screen: &Screen) {
    let rows = [
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ];
    let [summary, tabs, _, table, keys] = Layout::vertical(rows).areas(frame.area());
    let (text, style) = match &screen.trouble {
        Some(trouble) => (trouble.lines().next().unwrap_or_default(), Style::new().fg(Color::Red)),
        None => (screen.pages.summary.as_str(), Style::new()),
    };
    frame.render_widget(Paragraph::new(Span::styled(text, style)), summary);
    frame.render_widget(Paragraph::new(titles(screen)), tabs);
    draw_page(frame, table, screen.shown(), screen.above);
    let state = if screen.paused { "paused - p goes on" } else { "p stops" };
    let hint = Style::new().add_modifier(Modifier::DIM);
    frame.render_widget(Paragraph::new(Span::styled(format!("tab turns the page, {state}, q leaves"), hint)), keys);
}

fn titles(screen: &Screen) -> Line<'_> {
    let title = |(index, name): (usize, &'static str)| {
        let style = match index == screen.page {
            true => Style::new().add_modifier(Modifier::REVERSED),
            false => Style::new().add_modifier(Modifier::DIM),
        };
        [Span::styled(format!(" {name} "), style), Span::raw(" ")]
    };
    Line::from(PAGES.into_iter().enumerate().flat_map(title).collect::<Vec<_>>())
}

fn draw_page(frame: &mut Frame<'_>, area: Rect, page: &Page, above: usize) {
    let height = usize::from(area.height);
    if page.rows.is_empty() {
        return frame.render_widget(Paragraph::new("none"), area);
    }
    let columns = fitting(page, usize::from(area.width));
    let head = columns.iter().map(|column| page.columns[column.index].head);
    let mut lines = vec![Line::styled(line(page, &columns, head), Style::new().add_modifier(Modifier::BOLD))];
    // A table that has become shorter is not scrolled past its end.
    let above = above.min(page.rows.len() - 1);
    for row in page.rows.iter().skip(above).take(height.saturating_sub(1)) {
        let cells = columns.iter().map(|column| row.cells.get(column.index).map_or("", String::as_str));
        lines.push(Line::styled(line(page, &columns, cells), style(row.tone)));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn style(tone: Tone) -> Style {
    match tone {
        Tone::Quiet => Style::new().add_modifier(Modifier::DIM),
        Tone::Normal => Style::new(),
        Tone::Warning => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red),
    }
}

/// A column that is shown.
struct Fitting {
    index: usize,
    width: usize,
}

/// Returns the columns that a width has room for.
fn fitting(page: &Page, width: usize) -> Vec<Fitting> {
    let wide = |index: usize| {
        let cells = page.rows.iter().filter_map(|row| row.cells.get(index)).map(|cell| cell.chars().count());
        cells.chain([page.columns[index].head.chars().count()]).max().unwrap_or(0)
    };
    let mut columns: Vec<Fitting> =
        (0..page.columns.len()).map(|index| Fitting { index, width: wide(index) }).collect();
    let total =
        |columns: &[Fitting]| columns.iter().map(|column| column.width + GAP).sum::<usize>().saturating_sub(GAP);
    loop {
        let over = total(&columns).saturating_sub(width);
        if over == 0 {
            return columns;
        }
        let least = columns.iter().enumerate().max_by_key(|(_, column)| page.columns[column.index].rank);
        let least = least.filter(|(_, column)| page.columns[column.index].rank > 0).map(|(at, _)| at);
        // A long name is cut before a column goes that somebody reads.
        let spare = columns.first().map_or(0, |name| name.width.saturating_sub(NAME_MIN));
        match least {
            _ if over <= spare / 2 => cut(&mut columns, over),
            Some(least) => drop(columns.remove(least)),
            None if spare > 0 => cut(&mut columns, over.min(spare)),
            None => return columns,
        }
    }
}

/// Makes the names' column narrower.
fn cut(columns: &mut [Fitting], by: usize) {
    if let Some(names) = columns.first_mut() {
        names.width -= by;
    }
}

fn line<'a>(page: &Page, columns: &[Fitting], cells: impl Iterator<Item = &'a str>) -> String {
    let mut line = String::new();
    for (column, cell) in columns.iter().zip(cells) {
        let width = column.width;
        let cell = match cell.chars().count() {
            0 => "-".to_owned(),
            length if length > width => cell.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
            _ => cell.to_owned(),
        };
        let padded =
            if page.columns[column.index].right { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
        line.push_str(&padded);
        line.push_str(&" ".repeat(GAP));
    }
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::pages::tests::pages;
    use super::*;

    fn drawn(width: u16, height: u16, page: usize, above: usize) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let shown = Screen { pages: pages(), page, above, ..Screen::default() };
        terminal.draw(|frame| screen(frame, &shown)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_page_fills_a_wide_terminal() {
        insta::assert_snapshot!(drawn(100, 9, 1, 0), @r"
        generation 3, up 2 h, 1000 req/s, 12 connections, 1 old snapshot draining
         Routes   Filters   Rollouts   Upstreams

        FILTER          VERSION               TRACK   CALLS/S  FAILED  P50   P99  INSTANCES   MEMORY
        auth            7ae9ca.26ee0c.e3b0c4  stable      950      0%  5us  10us          2  2.0 MiB
        auth            7ae9ca.11aa0c.e3b0c4  canary       50     10%    -     -          2  2.0 MiB
        function hello  0a1b2c.26ee0c.e3b0c4  stable      0.0       -    -     -          2  2.0 MiB

        tab turns the page, p stops, q leaves
        ");
    }

    #[test]
    fn a_narrow_terminal_has_what_matters() {
        insta::assert_snapshot!(drawn(40, 8, 0, 0), @r"
        generation 3, up 2 h, 1000 req/s, 12 con
         Routes   Filters   Rollouts   Upstreams

        ROUTE                REQ/S  FAILED   P99
        app                   1000    1.0%  98ms
        GET api.example.co…    0.0       -     -

        tab turns the page, p stops, q leaves
        ");
    }

    #[test]
    fn every_size_can_be_drawn_on() {
        for width in 1..60 {
            for height in 1..12 {
                for page in 0..PAGES.len() {
                    drawn(width, height, page, 50);
                }
            }
        }
    }
}
