//! Draws what the page shows of a rollout, as SVG. Colours are those of the light theme, so that a chart stands by itself;
//! the page's style sheet finds each by its value, and puts the theme's in its place.

use std::fmt::Write as _;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, DefaultFormatting, KeyPointHint, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::control::history::{Latency, Slot, Slots, Totals};
use crate::track::Track;

/// In the order of [`Track`].
const TRACKS: [RGBColor; 2] = [RGBColor(0x2f, 0x5f, 0xd0), RGBColor(0xa8, 0x54, 0x00)];
const INK: RGBColor = RGBColor(0x5c, 0x65, 0x70);
const LINE: RGBColor = RGBColor(0xe2, 0xe5, 0xea);

/// Points of a line. More would be closer to each other than a screen can show.
const POINTS_MAX: usize = 100;

/// Buckets of a distribution. With more, chance would draw teeth.
const BUCKETS_MAX: usize = 40;

/// The width that a chart can have, in CSS pixels.
pub(super) const WIDTHS: std::ops::RangeInclusive<u32> = 200..=2000;

const HEIGHT: u32 = 170;

/// A chart is drawn so many times larger than shown: coordinates are whole numbers, and lines would have steps.
const SCALE: u32 = 4;

/// Standard deviations of 99 %.
const Z: f64 = 2.576;

/// Requests below which a track's share says nothing that a scale should follow.
const REQUESTS_MIN: f64 = 30.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Draws the requests of each track over time.
pub(super) fn traffic(slots: &Slots, width: u32) -> Result<String, String> {
    // The last slot is not over, and would look like a drop.
    let over = slots.slots.split_last().map_or(&[][..], |(_, over)| over);
    let group = over.len().div_ceil(POINTS_MAX).max(1);
    let seconds = slots.seconds * group as f64;
    let groups: Vec<[Totals; 2]> =
        over.rchunks(group).rev().map(|slots| Track::ALL.map(|track| sum(slots, track))).collect();
    let rates = |track: Track| groups.iter().map(move |group| group[track as usize].requests as f64 / seconds);
    let top = Track::ALL.iter().flat_map(|track| rates(*track)).fold(1.0, f64::max) * 1.15;
    let span = seconds * groups.len() as f64;
    let now = |track: Track| rates(track).next_back().unwrap_or(0.0);
    let title = format!(
        "Requests per second over the last {}: stable {:.1} now, canary {:.1}",
        ago(span),
        now(Track::Stable),
        now(Track::Canary)
    );
    draw(width, &title, |area| {
        let mut chart = plot(area, BeforeNow::new(span), 0.0..top)?;
        mesh(&mut chart, &time, &|rate| number(rate))?;
        for track in Track::ALL {
            let line = || rates(track).enumerate().map(|(index, rate)| (seconds * (index as f64 + 0.5) - span, rate));
            let colour = TRACKS[track as usize];
            chart.draw_series(AreaSeries::new(line(), 0.0, colour.mix(0.12)))?;
            chart.draw_series(LineSeries::new(line(), colour.stroke_width(stroke(track))))?;
        }
        Ok(())
    })
}

/// Draws each track's share of failed requests, as it came to be over time, with what it may really be.
pub(super) fn failures(slots: &Slots, width: u32) -> Result<String, String> {
    let group = slots.slots.len().div_ceil(POINTS_MAX).max(1);
    let seconds = slots.seconds * group as f64;
    let groups: Vec<&[Slot]> = slots.slots.chunks(group).collect();
    let span = seconds * groups.len() as f64;
    let lines = Track::ALL.map(|track| {
        let mut totals = Totals::default();
        groups
            .iter()
            .enumerate()
            .filter_map(|(index, slots)| {
                let more = sum(slots, track);
                totals.counted += more.counted;
                totals.failures += more.failures;
                let share = Share::of(totals)?;
                Some((seconds * (index as f64 + 1.0) - span, share))
            })
            .collect::<Vec<_>>()
    });
    // The first requests may be anything; the scale is that of what is known by now.
    let known = lines.iter().flatten().filter(|(_, share)| share.requests >= REQUESTS_MIN);
    let by_now = lines.iter().filter_map(|line| line.last()).map(|(_, share)| share.high);
    let top = known.map(|(_, share)| share.estimate).chain(by_now).fold(0.005, f64::max).min(1.0) * 1.15;
    let mut title = format!("Share of failed requests over the last {}", ago(span));
    for (track, line) in Track::ALL.iter().zip(&lines) {
        match line.last() {
            Some((_, Share { estimate, low, high, .. })) => {
                let _ =
                    write!(title, "; {track} {}, between {} and {}", percent(*estimate), percent(*low), percent(*high));
            }
            None => drop(write!(title, "; {track} had no requests")),
        }
    }
    draw(width, &title, |area| {
        let mut chart = plot(area, BeforeNow::new(span), 0.0..top)?;
        mesh(&mut chart, &time, &|share| percent(share))?;
        for (track, line) in Track::ALL.into_iter().zip(&lines) {
            let colour = TRACKS[track as usize];
            let edge = |of: fn(&Share) -> f64| line.iter().map(move |(at, share)| (*at, of(share).min(top)));
            let band: Vec<_> = edge(|share| share.high).chain(edge(|share| share.low).rev()).collect();
            if line.len() > 1 {
                chart.draw_series(std::iter::once(Polygon::new(band, colour.mix(0.16))))?;
            }
            chart.draw_series(LineSeries::new(edge(|share| share.estimate), colour.stroke_width(stroke(track))))?;
        }
        Ok(())
    })
}

/// Returns buckets that are wide enough to be drawn: neighbours are put together.
fn coarse(latency: &Latency, shown: &std::ops::Range<usize>) -> Latency {
    let group = shown.len().div_ceil(BUCKETS_MAX).max(1);
    let counts = latency.counts.each_ref().map(|counts| {
        let counts = counts.get(shown.clone()).unwrap_or_default();
        counts.chunks(group).map(|group| group.iter().sum()).collect()
    });
    let bounds = latency.bounds[shown.clone()].chunks(group).filter_map(|group| group.last().copied()).collect();
    Latency { counts, bounds }
}

/// Draws how long requests took on each track, and where the 99th of a hundred is.
pub(super) fn latency(latency: &Latency, width: u32) -> Result<String, String> {
    let used = |index: &usize| latency.counts.iter().any(|counts| counts.get(*index).is_some_and(|count| *count > 0));
    let mut all = 0..latency.bounds.len();
    let (first, last) = (all.clone().find(used).unwrap_or(0), all.rfind(used).unwrap_or(0));
    // A bucket to each side, where lines come down.
    let shown = first.saturating_sub(1)..(last + 2).min(latency.bounds.len());
    let drawn = coarse(latency, &shown);
    let bounds = &drawn.bounds;
    let lines = Track::ALL.map(|track| {
        let total = latency.total(track).max(1) as f64;
        let counts = drawn.counts[track as usize].iter();
        bounds.iter().zip(counts).map(|(bound, count)| (*bound, *count as f64 / total)).collect::<Vec<_>>()
    });
    let top = lines.iter().flatten().map(|(_, share)| *share).fold(0.01, f64::max) * 1.15;
    let mut title = "How long requests took".to_owned();
    for track in Track::ALL {
        if let (Some(half), Some(most)) = (latency.quantile(track, 0.5), latency.quantile(track, 0.99)) {
            let _ = write!(title, "; {track}: half of them up to {}, 99 % up to {}", duration(half), duration(most));
        }
    }
    draw(width, &title, |area| {
        let (from, to) = match bounds[..] {
            [from, .., to] => (from, to),
            _ => (0.001, 1.0),
        };
        let mut chart = plot(area, (from..to).log_scale(), 0.0..top)?;
        mesh(&mut chart, &|seconds| duration(*seconds), &|share| percent(share))?;
        for (track, line) in Track::ALL.into_iter().zip(lines) {
            let colour = TRACKS[track as usize];
            chart.draw_series(AreaSeries::new(line.iter().copied(), 0.0, colour.mix(0.12)))?;
            chart.draw_series(LineSeries::new(line, colour.stroke_width(stroke(track))))?;
            if let Some(most) = latency.quantile(track, 0.99) {
                let dashes =
                    DashedLineSeries::new([(most, 0.0), (most, top)], 4 * SCALE, 3 * SCALE, colour.stroke_width(SCALE));
                chart.draw_series(dashes)?;
            }
        }
        Ok(())
    })
}

/// A share, and what it may really be.
#[derive(Clone, Copy, Debug)]
struct Share {
    requests: f64,
    estimate: f64,
    low: f64,
    high: f64,
}

impl Share {
    /// Returns Wilson's interval, which is sensible also where nothing failed; none without requests.
    fn of(totals: Totals) -> Option<Self> {
        let requests = totals.counted as f64;
        if totals.counted == 0 {
            return None;
        }
        let estimate = totals.failures.min(totals.counted) as f64 / requests;
        let spread = Z * Z / requests;
        let middle = (estimate + spread / 2.0) / (1.0 + spread);
        let half = Z * (estimate * (1.0 - estimate) / requests + spread / (4.0 * requests)).sqrt() / (1.0 + spread);
        Some(Self { requests, estimate, low: (middle - half).max(0.0), high: (middle + half).min(1.0) })
    }
}

fn sum(slots: &[Slot], track: Track) -> Totals {
    slots.iter().map(|slot| slot.track(track)).fold(Totals::default(), |sum, more| Totals {
        requests: sum.requests + more.requests,
        counted: sum.counted + more.counted,
        failures: sum.failures + more.failures,
    })
}

/// The canary is drawn stronger: it is what one looks for, and colours are not everybody's.
const fn stroke(track: Track) -> u32 {
    match track {
        Track::Stable => 3 * SCALE / 2,
        Track::Canary => 5 * SCALE / 2,
    }
}

fn draw(width: u32, title: &str, content: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String, String> {
    let width = width.clamp(*WIDTHS.start(), *WIDTHS.end());
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width * SCALE, HEIGHT * SCALE)).into_drawing_area();
        content(&area).and_then(|()| area.present()).map_err(|error| format!("cannot draw a chart: {error}"))?;
    }
    // The first element is what screen readers say, and what is shown where the pointer rests.
    Ok(match svg.split_once('>') {
        Some((head, rest)) => format!("{head}><title>{}</title>{rest}", escape(title)),
        None => svg,
    })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn plot<'a, 'b, X>(
    area: &'a Area<'b>,
    x: X,
    y: std::ops::Range<f64>,
) -> Result<Chart<'a, 'b, X::CoordDescType>, DrawingAreaErrorKind<std::io::Error>>
where
    X: AsRangedCoord<Value = f64>,
{
    ChartBuilder::on(area)
        .margin_top(4 * SCALE)
        .margin_right(16 * SCALE)
        .set_label_area_size(LabelAreaPosition::Left, 46 * SCALE)
        .set_label_area_size(LabelAreaPosition::Bottom, 20 * SCALE)
        .build_cartesian_2d(x, y)
}

type Chart<'a, 'b, X> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, RangedCoordf64>>;

fn mesh<X>(chart: &mut Chart<'_, '_, X>, x: &dyn Fn(&f64) -> String, y: &dyn Fn(f64) -> String) -> Drawn
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let ink = ("sans-serif", 14 * SCALE).into_font().color(&INK);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(LINE.stroke_width(SCALE))
        .axis_style(LINE.stroke_width(SCALE))
        .label_style(ink)
        .x_labels(5)
        .y_labels(4)
        .x_label_formatter(x)
        .y_label_formatter(&|value| y(*value))
        .draw()
}

/// Seconds before now, with labels at times that people count in.
struct BeforeNow {
    span: f64,
}

impl BeforeNow {
    const STEPS: [f64; 13] =
        [1.0, 5.0, 10.0, 15.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 10_800.0, 21_600.0, 86_400.0];

    const fn new(span: f64) -> Self {
        Self { span: span.max(1.0) }
    }
}

impl Ranged for BeforeNow {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, at: &f64, (from, to): (i32, i32)) -> i32 {
        from + ((1.0 + at / self.span) * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        let few = |step: &f64| self.span / step <= 4.0;
        // Days come in any number.
        let days = || (self.span / 4.0 / 86_400.0).ceil() * 86_400.0;
        let step = Self::STEPS.into_iter().find(few).unwrap_or_else(days);
        (0..=4).map(|number| -step * f64::from(number)).filter(|at| *at >= -self.span).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        -self.span..0.0
    }
}

/// Returns how long ago a time is, given in seconds before now.
fn time(before: &f64) -> String {
    if *before > -0.5 { "now".to_owned() } else { format!("−{}", ago(-before)) }
}

fn ago(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.0} h", seconds / 3600.0),
        seconds => format!("{:.0} d", seconds / 86_400.0),
    }
}

fn duration(seconds: f64) -> String {
    let of = |value: f64, unit: &str| {
        let digits = usize::from(value < 10.0 && (value - value.round()).abs() > 0.05);
        format!("{value:.digits$} {unit}")
    };
    match seconds {
        seconds if seconds < 0.000_999_5 => of(seconds * 1e6, "µs"),
        seconds if seconds < 0.999_5 => of(seconds * 1e3, "ms"),
        seconds => of(seconds, "s"),
    }
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let digits = match percent {
        percent if percent == 0.0 || percent >= 10.0 => 0,
        percent if percent >= 1.0 => 1,
        _ => 2,
    };
    format!("{percent:.digits$} %")
}

fn number(value: f64) -> String {
    match value {
        value if value >= 10_000.0 => format!("{:.0}k", value / 1000.0),
        value if value >= 10.0 || value.fract() == 0.0 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::history::{History, Span};
    use crate::control::time::Timestamp;
    use lockgate_config::units::Weight;

    fn history(seconds: u64) -> Slots {
        let mut history = History::new(Timestamp::from_millis(0), Default::default());
        for second in 0..seconds {
            let stable = Totals { requests: 190 * second, counted: 190 * second, failures: 2 * second };
            let canary = Totals { requests: 10 * second, counted: 10 * second, failures: second };
            history.observe(Timestamp::from_millis(second * 1000), [stable, canary], Weight::ZERO);
        }
        history.slots(Span::Recent)
    }

    #[test]
    fn a_chart_says_in_words_what_it_shows() {
        let svg = failures(&history(250), 400).unwrap();
        assert!(svg.contains("<title>Share of failed requests over the last 4 min; stable 1.1 %, between "), "{svg}");
        assert!(svg.contains("canary 10 %, between "), "{svg}");
        let svg = traffic(&history(250), 400).unwrap();
        assert!(svg.contains("stable 190.0 now, canary 10.0</title>"), "{svg}");
    }

    #[test]
    fn every_track_has_its_colour_and_no_other_is_used() {
        let buckets = Latency {
            counts: [vec![0, 50, 900, 50, 0], vec![0, 0, 50, 40, 10]],
            bounds: vec![0.001, 0.002, 0.004, 0.008, 0.016],
        };
        let slots = history(60);
        for svg in [traffic(&slots, 400), failures(&slots, 400), latency(&buckets, 400)].map(Result::unwrap) {
            for colour in ["2F5FD0", "A85400", "5C6570", "E2E5EA"] {
                assert!(svg.contains(colour), "{colour} in {svg}");
            }
            let colours = svg.matches("\"#").count();
            let known = ["2F5FD0", "A85400", "5C6570", "E2E5EA"].map(|known| svg.matches(known).count());
            assert_eq!(colours, known.iter().sum::<usize>(), "{svg}");
        }
    }

    #[test]
    fn nothing_to_show_is_an_empty_chart() {
        let none = Slots { seconds: 1.0, slots: Vec::new() };
        assert!(traffic(&none, 400).unwrap().contains("<svg"));
        assert!(failures(&none, 400).unwrap().contains("stable had no requests"));
        assert!(latency(&Latency::default(), 400).unwrap().contains("<svg"));
    }

    #[test]
    fn the_interval_holds_the_estimate_and_narrows_with_requests() {
        let share = |counted, failures| Share::of(Totals { requests: counted, counted, failures }).unwrap();
        let (few, many) = (share(100, 5), share(10_000, 500));
        assert!(few.low < 0.05 && 0.05 < few.high);
        assert!(many.high - many.low < few.high - few.low);
        assert!(share(50, 0).low == 0.0 && share(50, 0).high > 0.05);
        assert!(share(u64::MAX, u64::MAX).high <= 1.0);
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([0.0, 0.0005, 0.012, 0.5].map(percent), ["0 %", "0.05 %", "1.2 %", "50 %"]);
        assert_eq!([0.000_05, 0.001, 0.0025, 12.0].map(duration), ["50 µs", "1 ms", "2.5 ms", "12 s"]);
        assert_eq!([0.5, 3.0, 250.0, 12_500.0].map(number), ["0.5", "3", "250", "12k"]);
    }
}
