//! The reconnection loop of every task that keeps a connection to a server.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::pin;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::backoff::Backoff;
use super::sink::EventSink;

/// A task that keeps one connection. Methods that return an `Option` return `None` when the task must end, because a
/// channel has closed.
pub(super) trait Connect {
    type Session;
    type Command;

    /// Makes one attempt. An error is the reason why it failed, in one line without secrets. `why` is the reason why there
    /// is no connection; `None` before the first attempt.
    async fn connect(&mut self, why: Option<&str>) -> Option<Result<Self::Session, String>>;

    /// Serves a session to its end. Returns the reason of the end.
    async fn serve(&mut self, session: Self::Session) -> Option<String>;

    /// Called when there is no connection, with the reason.
    fn down(&mut self, why: &str);

    /// Until when commands wait for the next connection. Without it, they are answered at once.
    fn patient_until(&self) -> Option<Instant> {
        None
    }

    /// Answers the commands that the last session has not finished.
    fn fail_unfinished(&mut self, _why: &str) {}

    /// Answers a command without a connection.
    fn answer_away(&mut self, command: Self::Command, why: &str);

    /// The command channel, if the task has one, and the sink of events.
    fn channels(&mut self) -> (Option<&mut mpsc::Receiver<Self::Command>>, &mut EventSink);

    /// Does one piece of work that needs no connection: answers a command, or sends waiting events.
    async fn step_down(&mut self, why: &str) -> Option<()> {
        let patience = self.patient_until().filter(|until| *until > Instant::now());
        if patience.is_none() {
            self.fail_unfinished(why);
        }
        let (commands, sink) = self.channels();
        tokio::select! {
            command = next(commands), if patience.is_none() => self.answer_away(command?, why),
            is_open = sink.flush() => is_open.then_some(())?,
            () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {}
        }
        Some(())
    }

    /// Answers commands until `work` is done.
    async fn while_down<F: Future>(&mut self, work: F, why: &str) -> Option<F::Output> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                step = self.step_down(why) => step?,
            }
        }
    }

    /// Answers commands until no event is waiting.
    async fn until_flushed(&mut self, why: &str) -> Option<()> {
        while !self.channels().1.is_empty() {
            self.step_down(why).await?;
        }
        Some(())
    }
}

/// Connects, serves, and reconnects, until the task must end.
pub(super) async fn stay_connected<T: Connect>(task: &mut T) -> Option<Infallible> {
    let mut backoff = Backoff::new();
    let mut last: Option<String> = None;
    loop {
        let why = match task.connect(last.as_deref()).await? {
            Ok(session) => {
                let start = Instant::now();
                let why = task.serve(session).await?;
                backoff.ended(start);
                why
            }
            Err(why) => why,
        };
        task.down(&why);
        task.while_down(sleep(backoff.pause()), &why).await?;
        last = Some(why);
    }
}

async fn next<C>(commands: Option<&mut mpsc::Receiver<C>>) -> Option<C> {
    match commands {
        Some(commands) => commands.recv().await,
        None => pending().await,
    }
}
