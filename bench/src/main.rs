//! Measures topicgate against a bare write loop and its peers, on this machine's loopback: `make bench`.
//!
//! This binary is all of it: the load, the bound, axum's afternoon version, and the runs that start one
//! server at a time on one core, put load on it from the other, and write down what it cost. Nothing here is
//! part of the gateway.

mod afternoon;
mod bars;
mod bound;
mod histogram;
mod history;
mod load;
mod plot;
mod process;
mod report;
mod scenario;
mod target;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::history::History;
use crate::report::{Report, Sample};
use crate::scenario::{Scale, Scenario};
use crate::target::{Setup, Target};

/// File descriptors in addition to the server's connections: logs, listeners, the broker's connection.
const SPARE_FILES: u64 = 500;

#[derive(Debug, Parser)]
#[command(about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Role>,
    #[command(flatten)]
    run: RunOptions,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Run the bare write loop.
    Bound { listen: SocketAddr, broker: SocketAddr },
    /// Run the afternoon version.
    Afternoon { listen: SocketAddr },
    /// Run a direct reader of a broker's stored messages.
    Direct { listen: SocketAddr, broker: SocketAddr, history: History },
    /// Take a core, then run another program on it.
    Pin {
        core: usize,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// List the scenarios and the targets, and what each still needs to run.
    List,
}

#[derive(Debug, Args)]
struct RunOptions {
    /// Only these scenarios (see `list`), separated by commas; the beginning of a name is enough
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<String>,
    /// Only these targets
    #[arg(long, value_delimiter = ',')]
    target: Vec<String>,
    /// The number of rounds; each measures every target, and the median counts
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How long a step publishes, in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// One round at a fiftieth of the size: it tests the tool, and its numbers mean nothing
    #[arg(long)]
    quick: bool,
    /// Where to write every value as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where to write benchmarks.md and its plots
    #[arg(long)]
    docs: Option<PathBuf>,
    /// Run nothing, and write --docs from the JSON files of earlier runs of different scenarios, separated by commas
    #[arg(long, requires = "docs", value_delimiter = ',')]
    from: Vec<PathBuf>,
    /// The gateway's binary; without it the one beside this one
    #[arg(long)]
    topicgate: Option<PathBuf>,
    /// The core of the server under test
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of the load
    #[arg(long, default_value_t = 1)]
    load_core: usize,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Role::Bound { listen, broker }) => bound::run(listen, broker),
        Some(Role::Afternoon { listen }) => afternoon::run(listen),
        Some(Role::Direct { listen, broker, history }) => history::run(listen, broker, history),
        Some(Role::Pin { core, command }) => process::pin_and_become(core, &command),
        Some(Role::List) => {
            let setup = setup(&cli.run)?;
            Scenario::ALL.iter().for_each(|scenario| println!("{:22} {}", scenario.name(), scenario.title()));
            for target in Target::ALL {
                let state = target.missing(&setup).unwrap_or_else(|| target.version(&setup));
                println!("{:22} {state}", target.name());
            }
            Ok(())
        }
        None => run(&cli.run),
    }
}

fn setup(options: &RunOptions) -> Result<Setup> {
    let gateway = match &options.topicgate {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("topicgate"),
    };
    let files = process::raise_file_limit().saturating_sub(SPARE_FILES);
    Ok(Setup { gateway, server_core: options.server_core, load_core: options.load_core, files })
}

fn run(options: &RunOptions) -> Result<()> {
    if let ([first, others @ ..], Some(docs)) = (options.from.as_slice(), &options.docs) {
        let mut report = Report::read(first)?;
        for other in others {
            report.join(Report::read(other)?);
        }
        println!("{}", report.text());
        return report.write_docs(docs);
    }
    let setup = setup(options)?;
    process::pin(options.load_core)?;
    let targets = chosen(&Target::ALL, &options.target, |target| target.name().to_owned())?;
    let scenarios = chosen(&Scenario::ALL, &options.scenario, |scenario| scenario.name())?;
    let (targets, skipped): (Vec<_>, Vec<_>) =
        targets.into_iter().partition(|target| target.missing(&setup).is_none());
    for target in skipped {
        eprintln!("skipped {}: {}", target.name(), target.missing(&setup).unwrap_or_default());
    }
    let time = Duration::from_secs_f64(options.seconds);
    let (scale, rounds) = if options.quick {
        let (time, settle, idle) = (Duration::from_millis(20), Duration::ZERO, Duration::from_millis(100));
        (Scale { divisor: 50, time, settle, idle }, 1)
    } else {
        // A multiple of the heartbeat, 15 s.
        let (settle, idle) = (Duration::from_millis(2500), Duration::from_secs(15));
        (Scale { divisor: 1, time, settle, idle }, options.rounds)
    };
    let mut report = Report::new(&targets, &setup, rounds, options.quick);
    let begin = Instant::now();
    for scenario in scenarios {
        for round in 0..rounds {
            for target in targets.iter().copied().filter(|target| target.can(scenario.need())) {
                eprintln!(
                    "{:6.0} s  {} round {} {}",
                    begin.elapsed().as_secs_f64(),
                    scenario.name(),
                    round + 1,
                    target.name()
                );
                let outcome = scenario
                    .run(target, &setup, scale)
                    .with_context(|| format!("{} {}", scenario.name(), target.name()));
                match outcome {
                    Ok(steps) => report.add(steps.into_iter().map(|step| Sample {
                        scenario: scenario.name(),
                        step: step.name,
                        target: target.name().to_owned(),
                        round,
                        values:
                            step.values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
                    })),
                    // A failure is reported, and the other results are kept.
                    Err(error) => {
                        eprintln!("FAILED: {error:#}");
                        report.failures.push(format!("round {}: {error:#}", round + 1));
                    }
                }
            }
        }
    }
    report.minutes = begin.elapsed().as_secs_f64() / 60.0;
    println!("{}", report.text());
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    if let Some(docs) = &options.docs {
        report.write_docs(docs)?;
    }
    Ok(())
}

/// The elements of `all` whose name begins with one of `asked`; all of them if `asked` is empty.
fn chosen<T: Copy>(all: &[T], asked: &[String], name: impl Fn(&T) -> String) -> Result<Vec<T>> {
    if asked.is_empty() {
        return Ok(all.to_vec());
    }
    for asked in asked {
        all.iter()
            .find(|one| name(one).starts_with(asked.as_str()))
            .with_context(|| format!("there is no {asked}; see `list`"))?;
    }
    let is_asked = |one: &&T| {
        asked.iter().any(|asked| {
            // A complete name selects only that one, even if another begins with it.
            let exact = all.iter().any(|one| name(one) == *asked);
            if exact { name(one) == *asked } else { name(one).starts_with(asked.as_str()) }
        })
    };
    Ok(all.iter().filter(is_asked).copied().collect())
}
