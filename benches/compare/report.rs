//! What was measured, as tables in Markdown: medians, and how they stand to each other.

use std::fmt;

use crate::contender::Contender;

/// One measurement of one contender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) requests_per_second: f64,
    pub(crate) cpu_us_per_request: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// At the end.
    pub(crate) resident_mib: f64,
    /// Requests that were answered with an error, or not at all.
    pub(crate) failed: u64,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} requests/s, {:.2} µs CPU/request, p50 {:.2} ms, p99 {:.2} ms, {:.0} MiB",
            self.requests_per_second, self.cpu_us_per_request, self.p50_ms, self.p99_ms, self.resident_mib
        )?;
        if self.failed > 0 {
            write!(f, ", {} failed", self.failed)?;
        }
        Ok(())
    }
}

/// A promise about contenders, by their names.
#[derive(Clone, Copy, Debug)]
enum Budget {
    /// CPU time per request, in µs.
    Cpu { of: &'static str, us_max: f64 },
    /// CPU time per request above another's, in µs.
    CpuAbove { of: &'static str, base: &'static str, us_max: f64 },
    /// Requests per second, in those of another.
    Rate { of: &'static str, base: &'static str, ratio_min: f64 },
}

const BUDGETS: &[Budget] = &[
    Budget::Cpu { of: "lockgate", us_max: 25.0 },
    Budget::Rate { of: "lockgate", base: "pingora", ratio_min: 1.0 },
    Budget::CpuAbove { of: "lockgate-1-reused", base: "lockgate", us_max: 1.5 },
    Budget::Rate { of: "lockgate-1-reused", base: "envoy-1", ratio_min: 1.8 },
    Budget::CpuAbove { of: "lockgate-3-reused", base: "lockgate", us_max: 4.0 },
    Budget::Rate { of: "lockgate-3-reused", base: "envoy-3", ratio_min: 2.0 },
    Budget::CpuAbove { of: "lockgate-1-request", base: "lockgate", us_max: 15.0 },
    Budget::Rate { of: "lockgate-1-request", base: "envoy-1", ratio_min: 1.0 },
    Budget::CpuAbove { of: "lockgate-3-request", base: "lockgate", us_max: 40.0 },
    Budget::Rate { of: "lockgate-3-request", base: "envoy-3", ratio_min: 1.0 },
    Budget::Cpu { of: "lockgate-function-request", us_max: 35.0 },
    Budget::Rate { of: "lockgate-function-request", base: "wasmtime-serve-request", ratio_min: 2.0 },
    Budget::Cpu { of: "lockgate-function-reused", us_max: 20.0 },
    Budget::Rate { of: "lockgate-function-reused", base: "wasmtime-serve-reused", ratio_min: 0.9 },
    Budget::Rate { of: "lockgate-function-0.3-request", base: "wasmtime-serve-0.3-request", ratio_min: 2.0 },
    Budget::Rate { of: "lockgate-function-0.3-reused", base: "wasmtime-serve-0.3-reused", ratio_min: 0.9 },
];

/// All measurements.
#[derive(Debug)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    samples: Vec<Sample>,
}

impl Row {
    fn values(&self, field: impl Fn(&Sample) -> f64) -> impl Iterator<Item = f64> {
        self.samples.iter().map(field)
    }

    fn median(&self, field: impl Fn(&Sample) -> f64) -> f64 {
        median(self.values(field).collect())
    }
}

impl Report {
    /// Returns a report on contenders that have not been measured yet.
    pub(crate) fn new(contenders: &[Contender]) -> Self {
        let row = |contender: &Contender| Row { name: contender.to_string(), samples: Vec::new() };
        Self { rows: contenders.iter().map(row).collect() }
    }

    /// Adds a measurement of a contender, by its index. Every round has one of each.
    pub(crate) fn add(&mut self, index: usize, sample: Sample) {
        if let Some(row) = self.rows.get_mut(index) {
            row.samples.push(sample);
        }
    }

    fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// Returns the median over the rounds of `compute`, which gets both samples of a round: what slows a round down slows
    /// both.
    fn paired(&self, of: &str, base: &str, compute: impl Fn(&Sample, &Sample) -> f64) -> Option<f64> {
        let (of, base) = (self.row(of)?, self.row(base)?);
        Some(median(of.samples.iter().zip(&base.samples).map(|(of, base)| compute(of, base)).collect()))
    }

    /// Returns a budget in words, what was measured, and whether it is met; none where a contender did not take part.
    fn judge(&self, budget: Budget) -> Option<(String, String, bool)> {
        Some(match budget {
            Budget::Cpu { of, us_max } => {
                let us = self.row(of)?.median(|sample| sample.cpu_us_per_request);
                (format!("{of}: at most {us_max} µs CPU"), format!("{us:.2} µs"), us <= us_max)
            }
            Budget::CpuAbove { of, base, us_max } => {
                let us = self.paired(of, base, |of, base| of.cpu_us_per_request - base.cpu_us_per_request)?;
                (format!("{of}: at most {us_max} µs CPU more than {base}"), format!("{us:.2} µs"), us <= us_max)
            }
            Budget::Rate { of, base, ratio_min } => {
                let ratio = self.paired(of, base, |of, base| of.requests_per_second / base.requests_per_second)?;
                let words = format!("{of}: at least {ratio_min:.1} × the requests/s of {base}");
                (words, format!("{ratio:.2} ×"), ratio >= ratio_min)
            }
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| | requests/s | × nginx | × pingora | CPU µs/request (least–most) | p50 ms | p99 ms | MiB |")?;
        writeln!(f, "|---|--:|--:|--:|--:|--:|--:|--:|")?;
        for row in &self.rows {
            let name = &row.name;
            let rate = row.median(|sample| sample.requests_per_second);
            let cpu = row.median(|sample| sample.cpu_us_per_request);
            let least = row.values(|sample| sample.cpu_us_per_request).fold(f64::INFINITY, f64::min);
            let most = row.values(|sample| sample.cpu_us_per_request).fold(0.0, f64::max);
            let p50 = row.median(|sample| sample.p50_ms);
            let p99 = row.median(|sample| sample.p99_ms);
            let resident = row.median(|sample| sample.resident_mib);
            write!(f, "| {name} | {rate:.0} ")?;
            for base in ["nginx", "pingora"] {
                match self.paired(name, base, |of, base| of.requests_per_second / base.requests_per_second) {
                    Some(ratio) => write!(f, "| {ratio:.2} ")?,
                    None => write!(f, "| ")?,
                }
            }
            writeln!(f, "| {cpu:.1} ({least:.1}–{most:.1}) | {p50:.2} | {p99:.2} | {resident:.0} |")?;
        }
        for row in &self.rows {
            let failed: u64 = row.samples.iter().map(|sample| sample.failed).sum();
            if failed > 0 {
                writeln!(f, "\n{}: {failed} requests failed; its row is not to be trusted.", row.name)?;
            }
        }
        let judged: Vec<_> = BUDGETS.iter().filter_map(|budget| self.judge(*budget)).collect();
        if !judged.is_empty() {
            writeln!(f, "\n| budget | measured | met |\n|---|--:|---|")?;
        }
        for (words, measured, met) in judged {
            writeln!(f, "| {words} | {measured} | {} |", if met { "yes" } else { "no" })?;
        }
        Ok(())
    }
}

/// Returns the median; 0 of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(requests_per_second: f64, cpu_us_per_request: f64) -> Sample {
        Sample { requests_per_second, cpu_us_per_request, p50_ms: 1.0, p99_ms: 2.0, resident_mib: 3.0, failed: 0 }
    }

    fn report(rows: &[(&str, &[Sample])]) -> Report {
        let row = |(name, samples): &(&str, &[Sample])| Row { name: (*name).to_owned(), samples: samples.to_vec() };
        Report { rows: rows.iter().map(row).collect() }
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 100.0]), 3.0);
        assert_eq!(median(vec![3.0, 1.0, 100.0, 5.0]), 4.0);
    }

    #[test]
    fn a_round_that_was_slow_for_both_changes_no_ratio() {
        let report = report(&[
            ("lockgate", &[sample(100.0, 20.0), sample(50.0, 40.0), sample(100.0, 20.0)]),
            ("pingora", &[sample(80.0, 25.0), sample(40.0, 50.0), sample(80.0, 25.0)]),
        ]);
        let budget = Budget::Rate { of: "lockgate", base: "pingora", ratio_min: 1.3 };
        let (_, measured, met) = report.judge(budget).expect("both took part");
        assert_eq!((measured.as_str(), met), ("1.25 ×", false));
    }

    #[test]
    fn every_budget_names_contenders() {
        let names: Vec<String> = Contender::all().iter().map(Contender::to_string).collect();
        for budget in BUDGETS {
            let (of, base) = match *budget {
                Budget::Cpu { of, .. } => (of, of),
                Budget::CpuAbove { of, base, .. } | Budget::Rate { of, base, .. } => (of, base),
            };
            assert!(names.iter().any(|name| name == of) && names.iter().any(|name| name == base), "{budget:?}");
        }
    }

    #[test]
    fn who_failed_requests_is_named() {
        let failing = Sample { failed: 7, ..sample(1.0, 1.0) };
        let text = report(&[("nginx", &[failing])]).to_string();
        assert!(text.contains("nginx: 7 requests failed"), "{text}");
    }
}
