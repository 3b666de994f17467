//! Opens streams: checks every limit, leases the logs, waits for their subscriptions, and finds where the stream begins.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::refusals::Refusals;
use super::runtime::Runtime;
use super::{BROKER_TIMEOUT, Gateway, is_warm, log_settings};
use crate::auth::access::Verdict;
use crate::auth::{Action, Caller};
use crate::broker::{Broker, BrokerError};
use crate::config::Rule;
use crate::log::message::Format;
use crate::log::{self, Lease, LeaseError, Subscription};
use crate::metrics::Limit;
use crate::protocol::codes::{CloseCode, HttpVersion};
use crate::protocol::event_id::MAX_SEQUENCES;
use crate::protocol::gzip::Content;
use crate::protocol::seek::{SeekResult, Start};
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;
use crate::protocol::view::View;
use crate::reader::{Principal, Reader};
use crate::stream::{Stream, StreamOptions};
use crate::traces;

/// How long a stream waits to learn whether its topics have ended. It matters little, so this is short.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// A stream to open.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// Topics and patterns, which do not overlap.
    pub filters: &'a [Filter],
    /// Where the stream begins.
    pub start: &'a Start,
    /// The format of its messages.
    pub format: Format,
    /// The content coding of its body.
    pub content: Content,
    /// Whether the gateway's own events are comments.
    pub without_control: bool,
    /// The reader's view; `None`: all messages, unchanged.
    pub view: Option<&'a Arc<View>>,
    /// The HTTP version by which it is sent.
    pub http: HttpVersion,
    /// The client's address.
    pub address: IpAddr,
    /// The caller, if a rule needed to identify it.
    pub caller: Option<&'a Caller>,
}

/// Why a stream was not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenError {
    /// The caller's permission expired meanwhile.
    Expired,
    /// The request can never succeed as it is: the reason, and what would be right.
    Impossible(String),
    /// Not now: the client should reconnect later.
    ComeBack(CloseCode),
    /// Every topic has ended, and the client's cursor is at its end or behind it.
    Ended,
}

/// What was found out about the leases of a stream before it opens, in their order.
struct Located {
    /// Where the stream begins, for the leases of which the broker had to be asked.
    starts: Vec<Option<SeekResult>>,
    /// Whether the broker has just said whether the topic has ended.
    knows_end: Vec<bool>,
}

impl Gateway {
    /// Opens a stream. Returns once the broker has confirmed every subscription: every message published after that
    /// reaches the stream. All limits are checked before the broker is asked.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(&self, opening: Opening<'_>) -> Result<Stream, OpenError> {
        let Opening { filters, start, format, content, without_control, view, http, address, caller } =
            opening;
        traces::note_topics(filters.iter());
        if self.is_draining() {
            return Err(OpenError::ComeBack(CloseCode::Draining));
        }
        let begin = Instant::now();
        let current = self.current();
        let principal = caller
            .map_or(Principal::Anyone, |caller| Principal::Caller(Arc::new(caller.as_reader_of(filters))));
        let ticket = self
            .table
            .enter(Reader { address, principal, http, view: view.cloned() })
            .ok_or_else(|| self.overloaded(Limit::Streams))?;
        let handle = ticket.handle().clone();
        let seat = self.clients.enter(handle.clone(), filters.len()).map_err(|code| {
            self.metrics().hit_by_client(code);
            self.warn_of_limit(address, code);
            OpenError::ComeBack(code)
        })?;
        let rules = rules_of(&current, filters, caller)?;
        is_possible(filters, &rules)?;
        self.ask_for_new_topics(address, filters)?;
        let leases = self.lease(address, filters, &rules)?;
        let located = self.locate(address, &leases, &rules, start).await.map_err(OpenError::ComeBack)?;
        let may_have_ended = self.confirm_ends(address, &leases, &rules, start, &located).await;
        if caller.is_some_and(Caller::is_expired) {
            return Err(OpenError::Expired);
        }
        self.metrics().open_seconds.observe(begin.elapsed().as_secs_f64());
        let expires = caller.and_then(|caller| caller.expires);
        let options = StreamOptions {
            start,
            located: &located.starts,
            format,
            content,
            expires,
            until_end: true,
            may_have_ended,
            without_control,
        };
        let stream = Stream::open(current.streams.clone(), ticket, seat, leases, options);
        let stream = stream.ok_or(OpenError::Ended)?;
        // A reload checks the streams that already read; this one may have been opened too late for that.
        let now = self.current();
        if !filters.iter().all(|filter| now.still_lets_read(filter, &handle.reader.principal)) {
            handle.revoke();
        }
        if !Arc::ptr_eq(&now, &current) {
            self.renew_logs(&now, filters);
        }
        Ok(stream)
    }

    /// Whether the rules let a stream of these topics be compressed: only if each of them does.
    pub fn compresses(&self, filters: &[Filter], caller: Option<&Caller>) -> bool {
        rules_of(&self.current(), filters, caller).is_ok_and(|rules| rules.iter().all(|rule| rule.compress))
    }

    /// Counts the topics that are not held yet: each costs the broker a subscription.
    fn ask_for_new_topics(&self, address: IpAddr, filters: &[Filter]) -> Result<(), OpenError> {
        let new = self.registry.not_held(filters);
        self.clients.ask_for_new_topics(address, new).map_err(|code| {
            let limit = if code == CloseCode::TooFast { Limit::NewTopicsPerSecond } else { Limit::Addresses };
            self.metrics().hit(limit);
            self.warn_of_limit(address, code);
            OpenError::ComeBack(code)
        })
    }

    /// Leases the log of each filter, and subscribes to the new ones.
    fn lease(&self, address: IpAddr, filters: &[Filter], rules: &[&Rule]) -> Result<Vec<Lease>, OpenError> {
        let mut leases = Vec::with_capacity(filters.len());
        for (filter, rule) in filters.iter().zip(rules) {
            let (bounds, fields) = log_settings(rule, self.metrics());
            let warm = is_warm(rule).then_some(&rule.filter);
            let leased = self.registry.lease(filter, &bounds, &fields, warm);
            let (lease, subscription) = leased.map_err(|error| match error {
                LeaseError::Full => self.overloaded(Limit::Topics),
                LeaseError::NotFed => OpenError::ComeBack(CloseCode::Unavailable),
            })?;
            if let Some(subscription) = subscription {
                // A task of its own: other streams may wait for the same subscription, even if this request ends.
                tokio::spawn(subscribe(
                    self.broker.clone(),
                    rule.source.clone(),
                    subscription,
                    self.denied.clone(),
                ));
            }
            lease.asked_by(address);
            leases.push(lease);
        }
        Ok(leases)
    }

    fn overloaded(&self, limit: Limit) -> OpenError {
        self.metrics().hit(limit);
        OpenError::ComeBack(CloseCode::Overloaded)
    }

    /// Waits until every lease is ready, and finds the position at which the stream begins in each.
    async fn locate(
        &self,
        address: IpAddr,
        leases: &[Lease],
        rules: &[&Rule],
        start: &Start,
    ) -> Result<Located, CloseCode> {
        let located = async {
            for lease in leases {
                lease.ready().await?;
            }
            let knows_end = self.learn_ends(address, leases, rules, start).await;
            let starts = self.seek(address, leases, rules, start).await?;
            Ok(Located { starts, knows_end })
        };
        tokio::time::timeout(BROKER_TIMEOUT, located).await.unwrap_or(Err(CloseCode::Unavailable))
    }

    /// Learns which topics have ended from the broker, where only it knows: their last messages are not in the logs. Returns
    /// for which leases it has answered. If it does not answer in time, the stream opens, and goes on even if its
    /// topics have ended.
    async fn learn_ends(
        &self,
        address: IpAddr,
        leases: &[Lease],
        rules: &[&Rule],
        start: &Start,
    ) -> Vec<bool> {
        let answers = leases.iter().zip(rules).map(async |(lease, rule)| {
            // A live start waits for new messages, except for a bucket, where it begins with the values.
            if matches!(start, Start::Now | Start::End) && !matches!(rule.source, Source::Kv { .. }) {
                return false;
            }
            let Some(question) = lease.asks_for_end().await else { return false };
            let last = self.lookups.last(address, lease.filter().clone(), rule.source.clone()).await;
            let Ok(last) = last.inspect_err(|error| {
                tracing::debug!(topic = lease.filter().as_str(), %error, "the last message was not found");
            }) else {
                return false;
            };
            let ending = last.filter(|last| question.fields().end_of(&last.headers, &last.payload));
            question.answer(ending.and_then(|last| Some(last.stored?.number)));
            true
        });
        let answered = tokio::time::timeout(END_TIMEOUT, futures_util::future::join_all(answers)).await;
        answered.unwrap_or_else(|_| vec![false; leases.len()])
    }

    /// Whether the messages that ended all topics are still the last ones in the broker, if the stream begins there. A
    /// newer one may be on its way here, and a client that receives 204 never reconnects. Some of this is known from
    /// `located`. If the broker does not answer in time, the stream opens.
    async fn confirm_ends(
        &self,
        address: IpAddr,
        leases: &[Lease],
        rules: &[&Rule],
        start: &Start,
        located: &Located,
    ) -> bool {
        if !log::may_begin_at_ends(leases, start) {
            return true; // nothing depends on it
        }
        let confirmed = leases.iter().zip(rules).zip(&located.knows_end);
        let confirmed = confirmed.map(async |((lease, rule), knows_end)| {
            if *knows_end || !rule.source.is_stored() {
                return true; // just asked, or only this gateway has the messages
            }
            let last = self.lookups.last(address, lease.filter().clone(), rule.source.clone()).await;
            last.is_ok_and(|last| {
                last.and_then(|last| last.stored).map(|stored| stored.number) == lease.end()
            })
        });
        let confirmed = tokio::time::timeout(END_TIMEOUT, futures_util::future::join_all(confirmed)).await;
        confirmed.is_ok_and(|confirmed| confirmed.into_iter().all(|is_last| is_last))
    }

    /// Asks the broker where the stream begins in its stored messages, for the logs that do not know it themselves.
    async fn seek(
        &self,
        address: IpAddr,
        leases: &[Lease],
        rules: &[&Rule],
        start: &Start,
    ) -> Result<Vec<Option<SeekResult>>, CloseCode> {
        let seeks_needed = log::seeks_needed(leases, start);
        let answers = leases.iter().zip(rules).zip(seeks_needed).map(async |((lease, rule), seek)| {
            let Some(seek) = seek else { return Ok(None) };
            let (filter, source) = (lease.filter().clone(), rule.source.clone());
            let located = self.lookups.find(address, filter, source, seek).await;
            located.map(Some).map_err(|error| match error {
                BrokerError::Refused(why) | BrokerError::Unfit(why) | BrokerError::TooLarge(why) => {
                    self.denied.note_and_log(lease.filter(), &why);
                    CloseCode::Refused
                }
                BrokerError::Away(why) => {
                    tracing::debug!(
                        topic = lease.filter().as_str(),
                        why,
                        "the start of a stream was not found"
                    );
                    CloseCode::Unavailable
                }
            })
        });
        futures_util::future::try_join_all(answers).await
    }
}

/// The rule of each filter. The caller was allowed a moment ago: if not now, the configuration has changed since.
fn rules_of<'a>(
    current: &'a Runtime,
    filters: &[Filter],
    caller: Option<&Caller>,
) -> Result<Vec<&'a Rule>, OpenError> {
    let decide = |filter| match current.decide(Action::Subscribe, filter, caller) {
        Verdict::Allowed(rule) => Ok(rule),
        _ => Err(OpenError::ComeBack(CloseCode::Revoked)),
    };
    filters.iter().map(decide).collect()
}

/// Whether one stream can have these topics, apart from what the broker says.
fn is_possible(filters: &[Filter], rules: &[&Rule]) -> Result<(), OpenError> {
    let keys = rules.iter().filter(|rule| matches!(rule.source, Source::RedisStream { .. })).count();
    let mut shared: Vec<&Filter> =
        rules.iter().filter(|rule| rule.source.is_shared()).map(|rule| &rule.filter).collect();
    shared.sort_unstable_by_key(|filter| filter.as_str());
    shared.dedup();
    // Messages of live sources are numbered by the process, in one sequence.
    let passing = usize::from(rules.iter().any(|rule| !rule.source.is_stored()));
    let sequences = keys + shared.len() + passing;
    if sequences > MAX_SEQUENCES {
        return Err(OpenError::Impossible(format!(
            "these topics come from {sequences} stored streams, and the event id of one stream has room for \
             positions in {MAX_SEQUENCES}; use several streams"
        )));
    }
    let mut patterns = filters.iter().zip(rules).filter(|(filter, _)| filter.is_pattern());
    match patterns.find_map(|(filter, rule)| Some((filter, rule.source.only_one_by_one()?))) {
        Some((filter, what)) => Err(OpenError::Impossible(format!(
            "{filter} is a pattern, but {what} can only be read one by one; name each topic as topic="
        ))),
        None => Ok(()),
    }
}

/// Subscribes to the filter of a new log, once. If that fails, the streams that wait for it are refused.
async fn subscribe(broker: Broker, source: Source, subscription: Subscription, denied: Arc<Refusals>) {
    match broker.subscribe(subscription.filter().clone(), source).await {
        Ok(()) => {
            denied.clear(subscription.filter());
            subscription.accepted();
        }
        Err(BrokerError::Away(why)) => {
            tracing::debug!(topic = subscription.filter().as_str(), why, "a subscription failed");
            subscription.fail(CloseCode::Unavailable);
        }
        Err(BrokerError::Refused(why) | BrokerError::Unfit(why) | BrokerError::TooLarge(why)) => {
            denied.note_and_log(subscription.filter(), &why);
            subscription.fail(CloseCode::Refused);
        }
    }
}
