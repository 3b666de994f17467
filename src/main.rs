//! The `topicgate` binary: reads the command line, hands on to the library, and turns outcomes into exit codes.

use std::fmt::Display;
use std::io::{self, Write as _, stderr};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use topicgate::app::logging;
use topicgate::app::server::Server;
use topicgate::cli::commands::{self, Failure};
use topicgate::cli::{Cli, Options};
use topicgate::config::Config;

/// Gives back what thousands of readers have left behind, which glibc's keeps, and holds a stream in less; musl's, in the
/// static image, is slow where several threads allocate.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    allow_descriptors();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Also how --help and --version arrive. A closed pipe is no reason to fail.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(commands::BAD_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let outcome = match cli.command {
        Some(command) => commands::run(command),
        None => run(cli.options),
    };
    outcome.unwrap_or_else(|failure| {
        let _ = writeln!(stderr(), "topicgate: {failure}");
        ExitCode::from(failure.exit_code())
    })
}

/// As many file descriptors as the system lets us have. Every stream is one, and the soft limit of 1024 that most systems
/// start a process with is for the sake of programs that use select(2); a pod has no way to ask for another.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, it is as it was: what cannot be accepted is logged and counted.
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
        // Before anyone can know that we run, and so before anyone can mean us with a signal.
        let stop = stop_signal().map_err(failed)?;
        // SIGHUP reloads. Without this it would end us, and a terminal that goes away is no reason to stop.
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
                // It reads files. One after the other; signals that come meanwhile are one.
                let reload = move || {
                    reloader.reload(options.sources().and_then(|sources| Config::load(&sources)));
                };
                let _ = tokio::task::spawn_blocking(reload).await;
            }
        });
        server.run(stop).await;
        Ok(())
    });
    // Not by dropping it: that would wait for a look-up of the broker's name, which can take as long as it likes.
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
        tracing::warn!("told to stop twice; ending at once");
        std::process::exit(1);
    });
    Ok(async move {
        let _ = stopped.await;
    })
}
