//! The binary as a person runs it: a command, what it prints, and its exit code.

use std::process::{Output, Stdio};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use super::{LIMIT, within};

/// The output of a command, and its exit code.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// With only the given environment, in a directory without a configuration.
pub fn topicgate(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_topicgate"));
    command.args(arguments).env_clear().envs(environment.iter().copied());
    command.current_dir(env!("CARGO_TARGET_TMPDIR")).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end.
pub async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
    let output = within("the command ends", LIMIT * 2, topicgate(arguments, environment).output());
    output.await.unwrap().into()
}

/// Runs it to its end, with this on its standard input.
pub async fn run_with_input(arguments: &[&str], environment: &[(&str, &str)], input: &[u8]) -> Ended {
    let mut child = topicgate(arguments, environment).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).await.unwrap();
    within("the command ends", LIMIT, child.wait_with_output()).await.unwrap().into()
}

/// One that goes on. Dropped, it is killed.
pub struct Running {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    err: Lines<BufReader<ChildStderr>>,
}

impl Running {
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = topicgate(arguments, &[]).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        let err = BufReader::new(child.stderr.take().unwrap()).lines();
        Running { child, out, err }
    }

    /// The next line of standard output.
    pub async fn line(&mut self) -> String {
        within("a line of output", LIMIT, self.out.next_line()).await.unwrap().expect("it ended")
    }

    /// Waits for a line of standard error that has this in it.
    pub async fn says(&mut self, words: &str) -> String {
        loop {
            let line = within(words, LIMIT, self.err.next_line()).await.unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended without {words:?}"));
            if line.contains(words) {
                return line;
            }
        }
    }

    /// The exit code.
    pub async fn ended(mut self) -> i32 {
        within("the command ends", LIMIT, self.child.wait()).await.unwrap().code().unwrap()
    }
}
