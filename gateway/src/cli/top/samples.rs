//! What `/metrics` says: samples by name and labels, and what happened between two of them.

use std::collections::BTreeMap;

/// All samples of one moment.
#[derive(Debug, Default)]
pub(super) struct Samples(BTreeMap<Series, f64>);

/// What a sample is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    name: String,
    labels: Vec<(String, String)>,
}

impl Series {
    fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(label, _)| label == name).map_or("", |(_, value)| value)
    }

    /// Returns whether it is one of a family's, with these labels.
    fn is(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.name == name && labels.iter().all(|(label, value)| self.label(label) == *value)
    }
}

impl Samples {
    /// Reads Prometheus's text format. What is not understood is left out.
    pub(super) fn read(text: &str) -> Self {
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// Returns the sum of a gauge over all series with these labels.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        total(self.0.iter().filter(|(series, _)| series.is(name, labels)).map(|(_, value)| *value))
    }

    /// Returns what a counter has grown by since an earlier moment, over all series with these labels.
    pub(super) fn growth(&self, before: &Self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let grown = |(series, now): (&Series, &f64)| since(*now, before, series);
        total(self.0.iter().filter(|(series, _)| series.is(name, labels)).map(grown))
    }

    /// Returns the value that a share of what was observed since an earlier moment does not exceed, as exactly as the
    /// histogram's buckets tell; none where nothing was observed.
    pub(super) fn quantile(&self, before: &Self, name: &str, labels: &[(&str, &str)], share: f64) -> Option<f64> {
        let name = format!("{name}_bucket");
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for (series, now) in self.0.iter().filter(|(series, _)| series.is(&name, labels)) {
            let Some(bound) = number(series.label("le")) else { continue };
            let grown = since(*now, before, series);
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += grown,
                None => buckets.push((bound, grown)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all = buckets.last().map_or(0.0, |(_, count)| *count);
        if all <= 0.0 {
            return None;
        }
        let (mut below, mut lower) = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= share * all {
                // Of the last bucket no more is known than where it begins.
                let within = if count > below { (share * all - below) / (count - below) } else { 1.0 };
                return Some(if bound.is_finite() { lower + (bound - lower) * within } else { lower });
            }
            (below, lower) = (count, bound);
        }
        None
    }
}

/// Returns a sum; unlike the standard library's, that of nothing is 0 and not -0, which would be shown.
fn total(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |sum, value| sum + value)
}

/// Returns what a counter has grown by; one that is less than before has begun anew.
fn since(now: f64, before: &Samples, series: &Series) -> f64 {
    match before.0.get(series) {
        Some(then) if *then <= now => now - then,
        _ => now,
    }
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        text => text.parse().ok(),
    }
}

/// Reads `name{label="value"} 1`.
fn sample(line: &str) -> Option<(Series, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, behind) = rest.split_once("=\"")?;
            let (value, behind) = quoted(behind)?;
            labels.push((label.trim_start_matches(',').to_owned(), value));
            rest = behind;
        }
        rest = &rest[1..];
    }
    let value = number(rest.split_whitespace().next()?)?;
    Some((Series { name: name.to_owned(), labels }, value))
}

/// Reads to the closing quote, and returns what stands behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let samples = Samples::read(concat!(
            "# HELP a_total Things.\n",
            "a_total{route=\"x\",class=\"2xx\"} 3\n",
            "a_total{route=\"x\",class=\"5xx\"} 1\n",
            "a_total{route=\"a \\\"b\\\" \\\\{,}\",class=\"2xx\"} 5\n",
            "b 1.5\n",
            "nonsense\n",
        ));
        assert_eq!(samples.sum("a_total", &[]), 9.0);
        assert_eq!(samples.sum("a_total", &[("route", "x")]), 4.0);
        assert_eq!(samples.sum("a_total", &[("route", "a \"b\" \\{,}")]), 5.0);
        assert_eq!(samples.sum("b", &[]), 1.5);
        assert_eq!(samples.sum("c", &[]), 0.0);
    }

    #[test]
    fn counters_grow_and_may_begin_anew() {
        let before = Samples::read("a{x=\"1\"} 10\na{x=\"2\"} 10\n");
        let after = Samples::read("a{x=\"1\"} 12\na{x=\"2\"} 3\na{x=\"3\"} 4\n");
        assert_eq!(after.growth(&before, "a", &[]), 2.0 + 3.0 + 4.0);
        assert_eq!(after.growth(&before, "a", &[("x", "1")]), 2.0);
    }

    #[test]
    fn quantiles_are_those_of_what_happened_in_between() {
        let before = Samples::read("d_bucket{le=\"0.1\"} 100\nd_bucket{le=\"1\"} 100\nd_bucket{le=\"+Inf\"} 100\n");
        let after = Samples::read("d_bucket{le=\"0.1\"} 150\nd_bucket{le=\"1\"} 199\nd_bucket{le=\"+Inf\"} 200\n");
        let quantile = |share| after.quantile(&before, "d", &[], share).unwrap();
        assert!((quantile(0.25) - 0.05).abs() < 1e-9);
        assert!((quantile(0.5) - 0.1).abs() < 1e-9);
        assert!((0.9..=1.0).contains(&quantile(0.98)));
        assert_eq!(quantile(1.0), 1.0);
        assert_eq!(after.quantile(&after, "d", &[], 0.5), None);
    }
}
