//! The files of deploy/, read by their own tools, which scripts/tools installs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use topicgate::internals::config::{Config, Sources};

/// A path within the project.
pub fn path(within: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(within)
}

/// The text of a file of the project.
pub fn read(within: &str) -> String {
    std::fs::read_to_string(path(within)).unwrap_or_else(|error| panic!("{within}: {error}"))
}

/// A tool of PyPI's, to be run at the top of the project.
pub fn tool(name: &str) -> Command {
    command(path(".tools/bin").join(name).to_str().unwrap())
}

/// A tool of Debian's, or any other, to be run at the top of the project.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("DOCKER_HOST");
    command
}

/// The output of a tool, on both of its streams. Fails if the tool is missing or reports an error.
pub fn content(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("run scripts/tools: {command:?}: {error}"));
    let both = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&both).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    said
}

/// The documents of a YAML text.
pub fn yaml(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\nin\n{text}"))
}

/// The value at `pointer`, which must exist.
#[track_caller]
pub fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {value:#}"))
}

/// As [`at`], a list.
#[track_caller]
pub fn list<'a>(value: &'a Value, pointer: &str) -> &'a Vec<Value> {
    at(value, pointer).as_array().unwrap_or_else(|| panic!("{pointer} is no list"))
}

/// As [`at`], text.
#[track_caller]
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    at(value, pointer).as_str().unwrap_or_else(|| panic!("{pointer} is no text"))
}

/// As [`at`], seconds: a number, or a number and an `s`.
#[track_caller]
pub fn seconds(value: &Value, pointer: &str) -> Duration {
    let value = at(value, pointer);
    let number = value.as_u64().or_else(|| value.as_str()?.strip_suffix('s')?.parse().ok());
    Duration::from_secs(number.unwrap_or_else(|| panic!("{pointer} is {value}, no seconds")))
}

/// The configuration that the gateway reads from this file and these variables.
pub fn config(file: &str, environment: &[(&str, &str)]) -> Config {
    let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let sources =
        Sources { file: Some(("topicgate.toml".into(), file.into())), environment, ..Sources::default() };
    Config::load(&sources).unwrap_or_else(|errors| panic!("{errors}\nin\n{file}"))
}
