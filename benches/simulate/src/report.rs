//! Results as a table, and as a plot.

use std::fmt::Write as _;
use std::path::Path;

use plotters::prelude::*;

use crate::checks;
use crate::scenario::{Outcome, Scenario};
use crate::world::{RATE, WEIGHT};

pub(crate) struct Result {
    pub(crate) scenario: Scenario,
    pub(crate) outcomes: Vec<Outcome>,
}

/// Returns the value that half of all runs stay below; none if fewer than half have one.
fn median(values: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    let mut values: Vec<_> = values.map(|value| value.unwrap_or(u64::MAX)).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().filter(|value| *value != u64::MAX)
}

fn or_dash(value: Option<u64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}

/// One cell for a watcher: in how many runs it rolled back, and after how many seconds in the middle one.
fn cell(outcomes: &[Outcome], seconds: impl Fn(&Outcome) -> Option<f64>) -> String {
    let back = outcomes.iter().filter(|outcome| seconds(outcome).is_some()).count();
    let mut cell = back.to_string();
    let tenths = median(outcomes.iter().map(|outcome| seconds(outcome).map(|seconds| (seconds * 10.0).round() as u64)));
    if let Some(tenths) = tenths {
        let _ = write!(cell, " ({} s)", tenths as f64 / 10.0);
    }
    cell
}

fn judge_seconds(outcome: &Outcome) -> Option<f64> {
    outcome.judge.map(|moment| moment.requests as f64 / RATE as f64)
}

/// Two tables in Markdown.
pub(crate) fn table(results: &[Result], seed: u64) -> String {
    let mut text = format!(
        "Seed {seed}. In each cell: runs that were rolled back, and the seconds after which half of all runs were.\n\n\
         | scenario | runs × requests | rollback is | judge | {} | {} | {} |\n|---|--:|---|--:|--:|--:|--:|\n",
        checks::FLAGGER.name,
        checks::ARGO.name,
        checks::TOLD.name
    );
    for Result { scenario, outcomes } in results {
        let right = if scenario.is_bad { "right" } else { "wrong" };
        let judge = cell(outcomes, judge_seconds);
        let millions = scenario.requests as f64 / 1e6;
        let _ = write!(text, "| {} | {} × {millions} M | {right} | **{judge}** |", scenario.text, outcomes.len());
        for (index, check) in checks::ALL.iter().enumerate() {
            // Of times, the first two have bounds that have nothing to do with this world.
            if scenario.latency.is_some() && check.name != checks::TOLD.name {
                text.push_str(" – |");
            } else {
                let _ =
                    write!(text, " {} |", cell(outcomes, |outcome| outcome.fixed[index].map(|second| second as f64)));
            }
        }
        text.push('\n');
    }
    text.push_str(
        "\nCanary requests until half of all runs were rolled back:\n\n\
         | scenario | judge: all | judge: counted | Wald's test: counted | ratio | told the edge: all |\n|---|--:|--:|--:|--:|--:|\n",
    );
    for Result { scenario, outcomes } in results.iter().filter(|result| result.scenario.is_bad) {
        let all = median(outcomes.iter().map(|outcome| outcome.judge.map(|moment| moment.canary)));
        let counted = median(outcomes.iter().map(|outcome| outcome.judge.map(|moment| moment.counted)));
        let sprt = if scenario.latency.is_none() { median(outcomes.iter().map(|outcome| outcome.sprt)) } else { None };
        let ratio = counted.zip(sprt).map_or_else(|| "–".to_owned(), |(a, b)| format!("{:.2}", a as f64 / b as f64));
        let told = median(outcomes.iter().map(|outcome| outcome.fixed[2]));
        let told = told.map(|second| (second as f64 * RATE as f64 * WEIGHT) as u64);
        let (all, counted, sprt, told) = (or_dash(all), or_dash(counted), or_dash(sprt), or_dash(told));
        let _ = writeln!(text, "| {} | {all} | {counted} | {sprt} | {ratio} | {told} |", scenario.text);
    }
    text
}

type Points = Vec<(f64, f64)>;

/// A line that rises by one run at each value.
fn rising(outcomes: &[Outcome], from: f64, to: f64, value: impl Fn(&Outcome) -> Option<f64>) -> Points {
    let mut values: Vec<f64> = outcomes.iter().filter_map(value).collect();
    values.sort_by(f64::total_cmp);
    let share = |count: usize| count as f64 / outcomes.len() as f64 * 100.0;
    let steps =
        values.iter().enumerate().flat_map(|(index, value)| [(*value, share(index)), (*value, share(index + 1))]);
    let mut points = vec![(from, 0.0)];
    points.extend(steps.filter(|(value, _)| *value <= to));
    let last = points.last().map_or(0.0, |(_, share)| *share);
    points.push((to, last));
    points
}

const BLUE: RGBColor = RGBColor(31, 119, 180);
const GREY: RGBColor = RGBColor(90, 90, 90);
const ORANGE: RGBColor = RGBColor(224, 122, 31);
const GREEN: RGBColor = RGBColor(44, 140, 60);
const PURPLE: RGBColor = RGBColor(140, 80, 170);

/// Draws how many runs were rolled back by when: above where it is right, below where it is wrong.
pub(crate) fn plot(results: &[Result], path: &Path) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let find = |name| results.iter().find(|result| result.scenario.name == name);
    let (Some(bad), Some(equal)) = (find("bad"), find("equal")) else {
        return Ok(());
    };
    let root = SVGBackend::new(path, (900, 760)).into_drawing_area();
    root.fill(&WHITE)?;
    let (above, below) = root.split_vertically(380);
    let canary = |seconds: u64| seconds as f64 * RATE as f64 * WEIGHT;
    let found = [
        ("Wald's test, told both shares", GREY, rising(&bad.outcomes, 10.0, 2e5, |run| run.sprt.map(|at| at as f64))),
        ("judge", BLUE, rising(&bad.outcomes, 10.0, 2e5, |run| run.judge.map(|at| at.counted as f64))),
        (checks::TOLD.name, GREEN, rising(&bad.outcomes, 10.0, 2e5, |run| run.fixed[2].map(canary))),
        (checks::FLAGGER.name, ORANGE, rising(&bad.outcomes, 10.0, 2e5, |run| run.fixed[0].map(canary))),
        (checks::ARGO.name, PURPLE, rising(&bad.outcomes, 10.0, 2e5, |run| run.fixed[1].map(canary))),
    ];
    draw(&above, "Canary fails 5 %, stable 1 %: runs rolled back", "canary requests", &found)?;
    let most = equal.scenario.requests as f64;
    let of_all = |second: u64| second as f64 * RATE as f64;
    let wrong = [
        ("judge", BLUE, rising(&equal.outcomes, 1e3, most, |run| run.judge.map(|at| at.requests as f64))),
        (checks::TOLD.name, GREEN, rising(&equal.outcomes, 1e3, most, |run| run.fixed[2].map(of_all))),
        (checks::FLAGGER.name, ORANGE, rising(&equal.outcomes, 1e3, most, |run| run.fixed[0].map(of_all))),
        (checks::ARGO.name, PURPLE, rising(&equal.outcomes, 1e3, most, |run| run.fixed[1].map(of_all))),
    ];
    draw(&below, "Canary and stable fail 1 %: runs rolled back, wrongly", "requests of both tracks", &wrong)?;
    root.present()?;
    Ok(())
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    unit: &str,
    lines: &[(&str, RGBColor, Points)],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let ends = lines.iter().flat_map(|(_, _, points)| points).map(|(x, _)| *x);
    let (from, to) = ends.fold((f64::MAX, 0.0_f64), |(from, to), x| (from.min(x), to.max(x)));
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d((from..to).log_scale(), 0.0..102.0)?;
    chart.configure_mesh().x_desc(unit).y_desc("% of runs").x_label_formatter(&|x| format!("{x}")).draw()?;
    for (name, colour, points) in lines {
        let style = colour.stroke_width(2);
        let legend = move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style);
        chart.draw_series(LineSeries::new(points.iter().copied(), style))?.label(*name).legend(legend);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(GREY.mix(0.4))
        .draw()?;
    Ok(())
}
