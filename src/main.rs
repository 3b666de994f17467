//! The `topicgate` binary: reads the command line, calls the library, handles signals, and turns results into exit
//! codes.

use std::fmt::Display;
use std::io::{self, Write as _, stderr};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use topicgate::internals::app::logging;
use topicgate::internals::cli::commands::{self, Failure};
use topicgate::internals::cli::{Cli, Options};
use topicgate::{Config, Server};

/// This allocator returns the memory of thousands of former readers to the system, which glibc's does not, and a stream
/// takes less memory with it. musl's allocator, in the static image, is slow with several threads. On other systems it
/// has no background threads, and keeps the memory.
#[cfg(all(target_os = "linux", feature = "jemalloc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    allow_descriptors();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap reports --help and --version this way, too.
            let printed = error.print();
            if error.use_stderr() {
                return ExitCode::from(commands::BAD_USAGE);
            }
            return finish(commands::unless_closed(printed).map(|_| ExitCode::SUCCESS));
        }
    };
    let outcome = match cli.command {
        Some(command) => commands::run(command),
        None => run(cli.options),
    };
    finish(outcome)
}

/// Reports a failure, and returns the exit code.
fn finish(outcome: Result<ExitCode, Failure>) -> ExitCode {
    outcome.unwrap_or_else(|failure| {
        let _ = writeln!(stderr(), "topicgate: {failure}");
        ExitCode::from(failure.exit_code())
    })
}

/// Raises the limit on file descriptors to the hard limit. Every stream needs one. Most systems start a process with a
/// soft limit of 1024, for programs that use select(2), and a pod cannot configure it.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // If that fails, the old limit stays; connections that cannot be accepted are logged and counted.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn run(options: Options) -> Result<ExitCode, Failure> {
    let config = options.clone().sources().and_then(|sources| Config::load(&sources))?;
    serve(config, options).map(|()| ExitCode::SUCCESS)
}

fn serve(config: Config, options: Options) -> Result<(), Failure> {
    logging::init(&config.log).map_err(failed)?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    let outcome = runtime.block_on(async {
        // Before the gateway reports that it runs, so before anybody sends it a signal.
        let stop = stop_signal().map_err(failed)?;
        // SIGHUP reloads the configuration. Without a handler it would end the process, even if only a terminal was
        // closed.
        let mut hangups = signal(SignalKind::hangup()).map_err(failed)?;
        let broker = config.broker.masked_url();
        let server = Server::build(config).await?;
        let addresses = server.address().and_then(|public| Ok((public, server.admin_address()?)));
        let (listen, admin) = addresses.map_err(failed)?;
        tracing::info!(%listen, %admin, broker, "topicgate is listening");
        let reloader = Arc::new(server.reloader());
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                let (reloader, options) = (reloader.clone(), options.clone());
                // Reloading reads files. One at a time; signals that arrive meanwhile count as one.
                let reload = move || {
                    reloader.reload(options.sources().and_then(|sources| Config::load(&sources)));
                };
                let _ = tokio::task::spawn_blocking(reload).await;
            }
        });
        server.run(stop).await;
        Ok(())
    });
    // Dropping it would wait for the lookup of the broker's name, which can take very long.
    runtime.shutdown_background();
    outcome
}

fn failed(error: impl Display) -> Failure {
    Failure::Failed(error.to_string())
}

/// Ends at the first SIGTERM or SIGINT. A second one ends the process at once.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(async move {
        let mut next = async || tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () };
        next().await;
        let _ = stop.send(());
        next().await;
        tracing::warn!("received a second stop signal; ending at once");
        std::process::exit(1);
    });
    Ok(async move {
        let _ = stopped.await;
    })
}
