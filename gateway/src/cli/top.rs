//! `lockgate top`: what the running gateway does right now, again and again.

mod draw;
mod pages;
mod samples;

use std::io::{IsTerminal as _, stdout};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use clap::Args;
use http::Method;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::Value;

use super::Failure;
use super::client::Gateway;
use super::output::{Table, print};
use pages::{PAGES, Page, Pages};
use samples::Samples;

/// How long a key may wait to be seen.
const TICK: Duration = Duration::from_millis(50);

/// Lines that a page moves by at once.
const SCREEN: usize = 10;

/// Watch the running gateway: requests, failures and latencies of routes, filters, functions and upstreams, and how far
/// the rollouts are.
///
/// Rates, failures and latencies are those of the last interval.
#[derive(Debug, Args)]
#[command(after_help = "\
Keys:
  tab, left, right    another page
  up, down, page up, page down, home    other lines
  p                   stop and go on
  q                   leave")]
pub(super) struct Top {
    #[command(flatten)]
    gateway: Gateway,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
    /// Look twice, print what happened in between as text, and end.
    #[arg(long)]
    once: bool,
}

/// What the gateway says at one moment.
#[derive(Debug)]
struct Look {
    at: Instant,
    status: Value,
    samples: Samples,
}

impl Look {
    fn at(gateway: &Gateway) -> Result<Self, Failure> {
        let status = gateway.call(Method::GET, "/api/v1/status", None)?;
        let samples = Samples::read(&gateway.text(Method::GET, "/metrics", None)?);
        Ok(Self { at: Instant::now(), status, samples })
    }
}

impl Top {
    pub(super) fn run(self) -> Result<(), Failure> {
        let every = Duration::from_secs(self.every);
        // The first look says whether there is a gateway, before anything is drawn.
        let first = Look::at(&self.gateway)?;
        if self.once {
            std::thread::sleep(every);
            let second = Look::at(&self.gateway)?;
            return print(&text(&Pages::between(&first, &second)));
        }
        if !stdout().is_terminal() {
            return Err(Failure::input("standard output is no terminal\nhint: `lockgate top --once` prints text"));
        }
        let (sender, looks) = mpsc::channel();
        let gateway = self.gateway;
        std::thread::Builder::new()
            .name("looks".into())
            .spawn(move || look_again(&gateway, first, every, &sender))
            .map_err(|error| Failure::failed(format_args!("cannot start a thread: {error}")))?;
        let mut terminal = ratatui::try_init()
            .map_err(|error| Failure::failed(format_args!("cannot draw on the terminal: {error}")))?;
        let shown = show(&mut terminal, &looks);
        ratatui::restore();
        shown.map_err(|error| Failure::failed(format_args!("cannot draw on the terminal: {error}")))
    }
}

/// What came of a look: pages, or why there are none.
type Looked = Result<Pages, String>;

/// Looks, until nobody asks any more.
fn look_again(gateway: &Gateway, first: Look, every: Duration, sender: &Sender<Looked>) {
    let mut last = first;
    if sender.send(Ok(Pages::between(&last, &last))).is_err() {
        return;
    }
    loop {
        std::thread::sleep(every);
        let looked = match Look::at(gateway) {
            Ok(look) => {
                let pages = Pages::between(&last, &look);
                last = look;
                Ok(pages)
            }
            Err(Failure::Input(why) | Failure::Failed(why)) => Err(why),
        };
        if sender.send(looked).is_err() {
            return;
        }
    }
}

/// What is on the screen.
#[derive(Debug, Default)]
struct Screen {
    pages: Pages,
    /// An index into [`PAGES`].
    page: usize,
    /// Lines above the first one shown.
    above: usize,
    paused: bool,
    /// Why the last look came to nothing.
    trouble: Option<String>,
}

fn show(terminal: &mut ratatui::DefaultTerminal, looks: &Receiver<Looked>) -> std::io::Result<()> {
    let mut screen = Screen::default();
    loop {
        // Only the last one counts.
        while let Ok(looked) = looks.try_recv() {
            screen.take(looked);
        }
        terminal.draw(|frame| draw::screen(frame, &screen))?;
        let until = Instant::now() + TICK;
        while event::poll(until.saturating_duration_since(Instant::now()))? {
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
                && screen.press(key)
            {
                return Ok(());
            }
        }
    }
}

impl Screen {
    fn take(&mut self, looked: Looked) {
        match looked {
            _ if self.paused => {}
            Ok(pages) => {
                self.pages = pages;
                self.trouble = None;
            }
            Err(why) => self.trouble = Some(why),
        }
    }

    /// Does what a key asks for. Returns whether that is to leave.
    fn press(&mut self, key: KeyEvent) -> bool {
        let last = self.shown().rows.len().saturating_sub(1);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Tab | KeyCode::Right => self.turn(1),
            KeyCode::BackTab | KeyCode::Left => self.turn(PAGES.len() - 1),
            KeyCode::Down => self.above = (self.above + 1).min(last),
            KeyCode::Up => self.above = self.above.saturating_sub(1),
            KeyCode::PageDown => self.above = (self.above + SCREEN).min(last),
            KeyCode::PageUp => self.above = self.above.saturating_sub(SCREEN),
            KeyCode::Home => self.above = 0,
            _ => {}
        }
        false
    }

    fn turn(&mut self, by: usize) {
        self.page = (self.page + by) % PAGES.len();
        self.above = 0;
    }

    fn shown(&self) -> &Page {
        self.pages.page(self.page)
    }
}

/// Returns all pages as text.
fn text(pages: &Pages) -> String {
    let mut text = format!("{}\n", pages.summary);
    for (name, page) in PAGES.iter().zip(pages.all()).filter(|(_, page)| !page.rows.is_empty()) {
        let mut table = Table::new(&page.columns.iter().map(|column| column.head).collect::<Vec<_>>());
        for row in &page.rows {
            table.row(row.cells.iter().cloned());
        }
        text.push_str(&format!("\n{name}\n{}", table.render()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(screen: &mut Screen, code: KeyCode) -> bool {
        screen.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn keys_turn_pages_and_leave() {
        let mut screen = Screen::default();
        for page in [1, 2, 3, 0] {
            assert!(!press(&mut screen, KeyCode::Tab));
            assert_eq!(screen.page, page);
        }
        press(&mut screen, KeyCode::Left);
        assert_eq!(screen.page, 3);
        assert!(press(&mut screen, KeyCode::Char('q')));
        assert!(screen.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(!press(&mut screen, KeyCode::Char('c')));
    }

    #[test]
    fn what_is_paused_does_not_change() {
        let mut screen = Screen::default();
        screen.take(Err("gone".to_owned()));
        assert_eq!(screen.trouble.as_deref(), Some("gone"));
        press(&mut screen, KeyCode::Char('p'));
        screen.take(Ok(Pages::default()));
        assert_eq!(screen.trouble.as_deref(), Some("gone"));
        press(&mut screen, KeyCode::Char('p'));
        screen.take(Ok(Pages::default()));
        assert_eq!(screen.trouble, None);
    }
}
