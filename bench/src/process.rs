//! Measures a process, and places it on a core. All values come from /proc: the server itself is asked nothing.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// The time in which a server must listen.
const START: Duration = Duration::from_secs(10);

/// A server under test. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    name: &'static str,
}

impl Server {
    /// Starts `command` on one core and waits until it listens. Its output goes to `log`.
    pub fn start(
        name: &'static str,
        command: &[String],
        core: usize,
        listens: SocketAddr,
        log: &Path,
    ) -> Result<Self> {
        let out = fs::File::create(log)?;
        // This binary takes the core first and then becomes the server: the server starts as on a machine with one
        // core.
        let child = Command::new(std::env::current_exe()?)
            .arg("pin")
            .arg(core.to_string())
            .args(command)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let mut server = Server { child, name };
        let begin = Instant::now();
        while TcpStream::connect(listens).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("{name} ended ({status}):\n{}", fs::read_to_string(log)?);
            }
            if begin.elapsed() > START {
                bail!("{name} does not listen on {listens}:\n{}", fs::read_to_string(log)?);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The CPU time of all its threads, to the nanosecond. Threads that have ended do not count; no server ends threads
    /// while it is measured.
    pub fn cpu(&self) -> Result<Duration> {
        cpu_of(self.pid()).with_context(|| format!("{} is gone", self.name))
    }

    /// Its proportional set size in KiB: user memory, with each shared page divided by the number of its processes.
    pub fn pss_kib(&self) -> Result<f64> {
        self.kib("smaps_rollup", "Pss:")
    }

    /// Resets the kernel's record of its peak resident memory. Returns the current resident memory, in KiB.
    pub fn begin_peak(&self) -> Result<f64> {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5")?;
        self.kib("status", "VmRSS:")
    }

    /// The peak since then, in KiB. Reading the current value repeatedly would disturb the server.
    pub fn peak_kib(&self) -> Result<f64> {
        self.kib("status", "VmHWM:")
    }

    fn kib(&self, file: &str, field: &str) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.pid()))
            .with_context(|| format!("{} is gone", self.name))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        Ok(line.with_context(|| format!("no {field}"))?.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // No server has any state that a clean stop would save.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of a process, as the scheduler accounts it.
pub fn cpu_of(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the two reads.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanos += text.split_whitespace().next().context("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Keeps this process on one core.
pub fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("no core {core} for us"))
}

/// Takes a core, then becomes `command`.
pub fn pin_and_become(core: usize, command: &[String]) -> Result<()> {
    pin(core)?;
    let (program, arguments) = command.split_first().context("no command")?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("cannot run {program}"))
}

/// Raises the limit of open files to the maximum, for us and for the servers. Returns it.
pub fn raise_file_limit() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    limit.current.unwrap_or(u64::MAX)
}

/// The path of a program, in the places of Debian and of this project's `make tools`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let here = [PathBuf::from(".tools/bin"), PathBuf::from("/usr/sbin")];
    here.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The first line that a program prints about its version, on standard output or standard error.
pub fn version(program: &Path, flag: &str) -> String {
    let Ok(out) = Command::new(program).arg(flag).output() else { return String::new() };
    let text = [out.stdout, out.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned()
}
