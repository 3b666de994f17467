//! Valkey instead of Redis: the same tests with its server.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The tests that are run again.
const MODULES: [&str; 4] =
    ["redis_broker::", "redis_streams::", "redis_stream_readers::", "redis_sentinel::"];

/// `VALKEY_SERVER`, what the tools script installed, or what is on the path.
fn binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("VALKEY_SERVER") {
        return Some(path.into());
    }
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin/valkey-server");
    let candidates = [installed, "valkey-server".into()];
    let runs = |path: &PathBuf| {
        Command::new(path).arg("--version").output().is_ok_and(|ended| ended.status.success())
    };
    candidates.into_iter().find(runs)
}

/// Runs this program again, on these tests.
fn tests(arguments: &[&str]) -> Command {
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests.args(MODULES).args(arguments);
    tests
}

#[test]
fn the_tests_of_redis_pass_on_valkey() {
    let listed = tests(&["--list"]).output().unwrap();
    let count =
        String::from_utf8_lossy(&listed.stdout).lines().filter(|line| line.ends_with(": test")).count();
    assert!(count > 50, "{count}");
    let Some(server) = binary() else {
        // Past the capture of the test harness: what was not tested must be seen.
        let words = format!(
            "skipped: {count} tests of Redis on Valkey; there is no valkey-server, run scripts/tools\n"
        );
        std::io::stderr().write_all(words.as_bytes()).unwrap();
        return;
    };
    // This build of Valkey has no TLS. And it does not count a large message twice that several clients get, so that the
    // buffer of the next test is never full: the message arrives.
    let ended = tests(&["--skip", "tls", "--skip", "a_connection_that_is_closed_for_a_full_output_buffer"])
        .env("REDIS_SERVER", server)
        .output()
        .unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
}
