//! The results: every value as JSON, medians as a table on screen, and docs/benchmarks.md with its plots.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::bars;
use crate::plot::{self, Panel};
use crate::scenario::Scenario;
use crate::target::{Setup, Target};

/// How the numbers are measured and what they mean: the part of the document that no run changes.
const METHOD: &str = include_str!("method.md");

/// A measure: its name in JSON, the head of its column, its digits after the point.
const MEASURES: [(&str, &str, usize); 17] = [
    ("cpu_us", "CPU µs per delivery", 2),
    ("per_second", "deliveries/s", 0),
    ("p50_ms", "p50 ms", 2),
    ("p99_ms", "p99 ms", 2),
    ("connect_us", "CPU µs per connection", 1),
    ("idle_kib", "KiB per stream, idle", 2),
    ("traffic_kib", "KiB per stream, after traffic", 2),
    ("left_kib", "KiB per stream, after all left", 2),
    ("base_kib", "KiB before the first stream", 0),
    ("storm_s", "s until all caught up", 2),
    ("wire_bytes", "bytes received per message", 0),
    ("peak_kib", "KiB more, peak", 0),
    ("after_kib", "KiB more, afterwards", 0),
    ("skipped", "messages missed, each", 0),
    ("told", "gaps received, each", 1),
    ("server_core", "server's core %", 1),
    ("load_core", "load's core %", 0),
];

/// Measures whose ratio to the bound is also shown.
const RATIOS: [&str; 3] = ["cpu_us", "storm_s", "wire_bytes"];

/// One step of one scenario, of one target in one round.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sample {
    /// [`Scenario::name`].
    pub scenario: String,
    /// The step's name.
    pub step: String,
    /// [`Target::name`].
    pub target: String,
    /// The number of the round, from 0.
    pub round: u32,
    /// The values, by the names of [`MEASURES`].
    pub values: BTreeMap<String, f64>,
}

/// A run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The processor and the kernel.
    pub machine: String,
    /// The versions of the targets, as they print them.
    pub versions: BTreeMap<String, String>,
    /// Rounds.
    pub rounds: u32,
    /// The options of each run that is included.
    pub commands: Vec<String>,
    /// Whether the scale was small, so that the numbers mean nothing.
    pub quick: bool,
    /// How long it took.
    pub minutes: f64,
    /// The failures.
    pub failures: Vec<String>,
    /// Everything.
    pub samples: Vec<Sample>,
}

impl Report {
    /// An empty one.
    pub fn new(targets: &[Target], setup: &Setup, rounds: u32, quick: bool) -> Self {
        let versions =
            targets.iter().map(|target| (target.name().to_owned(), target.version(setup))).collect();
        Report {
            machine: machine(),
            versions,
            rounds,
            commands: vec![std::env::args().skip(1).collect::<Vec<_>>().join(" ")],
            quick,
            minutes: 0.0,
            failures: Vec::new(),
            samples: Vec::new(),
        }
    }

    /// The report of an earlier run.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// Adds another run with other scenarios.
    pub fn join(&mut self, other: Report) {
        self.versions.extend(other.versions);
        self.rounds = self.rounds.min(other.rounds);
        self.commands.extend(other.commands);
        self.quick |= other.quick;
        self.minutes += other.minutes;
        self.failures.extend(other.failures);
        self.samples.extend(other.samples);
    }

    /// Adds steps.
    pub fn add(&mut self, samples: impl IntoIterator<Item = Sample>) {
        self.samples.extend(samples);
    }

    /// The median over the rounds.
    pub fn median(&self, scenario: &str, step: &str, target: Target, measure: &str) -> Option<f64> {
        median(self.rounds(scenario, step, target, measure).into_values().collect())
    }

    /// The median of the ratios of each round: a drift of the machine then affects both values.
    pub fn ratio(
        &self,
        over: (&str, &str, Target),
        under: (&str, &str, Target),
        measure: &str,
    ) -> Option<f64> {
        let under = self.rounds(under.0, under.1, under.2, measure);
        let over = self.rounds(over.0, over.1, over.2, measure);
        median(over.iter().filter_map(|(round, value)| Some(value / under.get(round)?)).collect())
    }

    fn rounds(&self, scenario: &str, step: &str, target: Target, measure: &str) -> BTreeMap<u32, f64> {
        let matching = self.samples.iter().filter(|sample| {
            sample.scenario == scenario && sample.step == step && sample.target == target.name()
        });
        matching.filter_map(|sample| Some((sample.round, *sample.values.get(measure)?))).collect()
    }

    /// The steps of a scenario, in order.
    fn steps(&self, scenario: &str) -> Vec<&str> {
        let mut steps: Vec<&str> = Vec::new();
        for sample in self.samples.iter().filter(|sample| sample.scenario == scenario) {
            if !steps.contains(&&*sample.step) {
                steps.push(&sample.step);
            }
        }
        steps
    }

    /// The tables for the screen, which the document has too.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for scenario in Scenario::ALL {
            let name = scenario.name();
            let steps = self.steps(&name);
            if steps.is_empty() {
                continue;
            }
            let _ = writeln!(out, "### {} (`{name}`)\n", scenario.title());
            for step in steps {
                self.table(&mut out, &name, step);
            }
        }
        self.bars(&mut out);
        out
    }

    fn table(&self, out: &mut String, scenario: &str, step: &str) {
        let has = |target: Target, measure: &str| self.median(scenario, step, target, measure).is_some();
        let targets: Vec<Target> = Target::ALL
            .into_iter()
            .filter(|target| MEASURES.iter().any(|(measure, ..)| has(*target, measure)))
            .collect();
        let measures: Vec<_> = MEASURES
            .iter()
            .filter(|(measure, ..)| targets.iter().any(|target| has(*target, measure)))
            .collect();
        let least = |measure: &str| {
            let least = [Target::Bound, Target::Direct].into_iter().find(|target| has(*target, measure));
            least.filter(|_| RATIOS.contains(&measure))
        };
        let mut head = vec![step.to_owned()];
        for (measure, label, _) in &measures {
            head.push((*label).to_owned());
            head.extend(least(measure).map(|least| format!("× {}", least.name())));
        }
        let mut rows = vec![head];
        for target in targets {
            let mut row = vec![target.name().to_owned()];
            for (measure, _, digits) in &measures {
                let value = self.median(scenario, step, target, measure);
                row.push(value.map_or("–".to_owned(), |value| format!("{value:.digits$}")));
                if let Some(least) = least(measure) {
                    let ratio = self.ratio((scenario, step, target), (scenario, step, least), measure);
                    row.push(ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")));
                }
            }
            rows.push(row);
        }
        write_table(out, &rows);
    }

    fn bars(&self, out: &mut String) {
        let mut rows = vec![["Goal", "at most", "measured", ""].map(str::to_owned).to_vec()];
        for bar in bars::all(self) {
            let verdict = if bar.measured <= bar.limit { "met" } else { "missed" };
            rows.push(vec![
                bar.what,
                format!("{:.2}", bar.limit),
                format!("{:.2}", bar.measured),
                verdict.to_owned(),
            ]);
        }
        if rows.len() > 1 {
            let _ = writeln!(out, "### The goals\n");
            write_table(out, &rows);
        }
    }

    /// Writes benchmarks.md and its plots into `docs`.
    pub fn write_docs(&self, docs: &Path) -> Result<()> {
        let plots = docs.join("benchmarks");
        fs::create_dir_all(&plots)?;
        let mut shown = String::new();
        for (file, title, panels) in self.plots() {
            if panels.iter().all(|panel| panel.rows.is_empty()) {
                continue;
            }
            fs::write(plots.join(file), plot::svg(&title, &panels))?;
            let _ = writeln!(shown, "![{title}](benchmarks/{file})\n");
        }
        let mut versions = vec![vec!["Target".to_owned(), "What it is".to_owned()]];
        versions.extend(self.versions.iter().map(|(name, version)| vec![name.clone(), version.clone()]));
        let mut setting = String::new();
        let _ = writeln!(
            setting,
            "{}. {} rounds, {:.0} minutes. {}\n",
            self.machine,
            self.rounds,
            self.minutes,
            if self.quick { "**At small scale, to try the tool: these numbers mean nothing.**" } else { "" }
        );
        for command in &self.commands {
            let _ = writeln!(setting, "    topicgate-bench {command}");
        }
        let _ = writeln!(setting);
        write_table(&mut setting, &versions);
        for failure in &self.failures {
            let _ = writeln!(setting, "- failed: {failure}");
        }
        let text = METHOD
            .replace("{{setting}}", setting.trim_end())
            .replace("{{plots}}", shown.trim_end())
            .replace("{{tables}}", self.text().trim_end());
        fs::write(docs.join("benchmarks.md"), text)?;
        Ok(())
    }

    fn plots(&self) -> [(&'static str, String, Vec<Panel>); 3] {
        let panel = |title: &str, unit: &str, scenario: &str, step: &str, measure: &str| Panel {
            title: title.to_owned(),
            unit: unit.to_owned(),
            rows: Target::ALL
                .into_iter()
                .filter_map(|target| Some((target.name(), self.median(scenario, step, target, measure)?)))
                .collect(),
        };
        let (small, large) = (Scenario::OneTopic(2_000).name(), Scenario::OneTopic(15_000).name());
        let cpu = [1, 16, 200].map(|window| {
            let step = format!("w{window} 200 B");
            panel(&format!("{window} in flight"), "µs", &small, &step, "cpu_us")
        });
        let memory = vec![
            panel("idle", "KiB", &large, "connect", "idle_kib"),
            panel("after traffic", "KiB", &large, "memory", "traffic_kib"),
        ];
        let latency = vec![
            panel("p50", "ms", &small, "steady 200 B", "p50_ms"),
            panel("p99", "ms", &small, "steady 200 B", "p99_ms"),
        ];
        [
            ("cpu.svg", "Server CPU per delivery: one topic, 2,000 readers, 200 B".to_owned(), cpu.into()),
            ("memory.svg", "User memory per reader: one topic, 15,000 readers".to_owned(), memory),
            ("latency.svg", "Latency at 40,000 deliveries/s: one topic, 2,000 readers".to_owned(), latency),
        ]
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[middle - 1] + upper) / 2.0 })
}

/// A Markdown table that is readable as text. The first row is its head; the first column is text.
fn write_table(out: &mut String, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    for (index, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let width = width(column).max(3);
            // Writing to a String cannot fail.
            let _ =
                if column == 0 { write!(out, "| {cell:width$} ") } else { write!(out, "| {cell:>width$} ") };
        }
        let _ = writeln!(out, "|");
        if index == 0 {
            for column in 0..columns {
                let dashes = "-".repeat(width(column).max(3));
                let _ = if column == 0 {
                    write!(out, "| {dashes} ")
                } else {
                    write!(out, "| {}: ", &dashes[1..])
                };
            }
            let _ = writeln!(out, "|");
        }
    }
    let _ = writeln!(out);
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    // The part of the release after the number names the builder.
    let kernel = kernel.split('-').next().unwrap_or_default().trim();
    format!("{}, Linux {kernel}", model.trim_start_matches([' ', '\t', ':']).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }
}
