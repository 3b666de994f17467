//! The unit of systemd: it is read by systemd itself, and compared with the gateway's arguments and exit codes.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::common::deploy::{command, content, read};
use clap::Parser as _;
use topicgate::Config;
use topicgate::internals::cli::Cli;

/// The settings of the unit's section `[Service]`; of one that is there twice, the last.
fn service() -> BTreeMap<String, String> {
    let unit = read("deploy/systemd/topicgate.service");
    let section = unit.split("[Service]").nth(1).unwrap().split("\n[").next().unwrap();
    let settings = section.lines().filter(|line| !line.starts_with('#'));
    settings
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

#[test]
fn systemd_does_not_restart_after_a_configuration_error() {
    assert_eq!(service()["Restart"], "on-failure");
    assert_eq!(
        service()["RestartPreventExitStatus"],
        topicgate::internals::cli::commands::BAD_USAGE.to_string()
    );
}

#[test]
fn systemd_accepts_the_unit_and_rates_its_security_as_the_unit_says() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("topicgate.service");
    // The program has to be there for `verify`.
    let unit = read("deploy/systemd/topicgate.service");
    fs::write(&file, unit.replace("/usr/local/bin/topicgate", env!("CARGO_BIN_EXE_topicgate"))).unwrap();
    assert_eq!(
        content(command("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=no"]).arg(&file)),
        ""
    );

    let rated =
        content(command("systemd-analyze").args(["security", "--offline=true", "--no-pager"]).arg(&file));
    let number = |after: &str, text: &str| -> f64 {
        text.split(after).nth(1).unwrap().split([',', ' ']).next().unwrap().parse().unwrap()
    };
    let (rated, said) = (number("topicgate.service: ", &rated), number("exposure at ", &unit));
    // Other versions of systemd look at a few other things.
    assert!((rated - said).abs() <= 0.3, "it is {rated}, and the file says {said}");
}

#[test]
fn the_unit_starts_an_existing_command_line_and_waits_for_the_drain() {
    let service = service();
    let words: Vec<&str> = service["ExecStart"].split(' ').collect();
    let cli = Cli::try_parse_from(&words).unwrap();
    assert!(cli.command.is_none());
    let directory = Path::new("/etc").join(&service["ConfigurationDirectory"]);
    assert_eq!(cli.options.config.unwrap().parent(), Some(directory.as_path()));
    assert!(service["EnvironmentFile"].starts_with(&format!("-{}/", directory.display())));

    let defaults = Config::default();
    let stop: u64 = service["TimeoutStopSec"].strip_suffix('s').unwrap().parse().unwrap();
    assert!(Duration::from_secs(stop) > defaults.drain + Duration::from_secs(2));
    assert!(service["LimitNOFILE"].parse::<usize>().unwrap() > defaults.limits.connections);
    assert_eq!(service["DynamicUser"], "yes");
}
