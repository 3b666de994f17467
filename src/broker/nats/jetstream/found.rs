//! The JetStream stream of a rule: finds it, and checks whether the rule's topics can be read from it and published to
//! it. A refusal names the stream and its subjects.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use tokio::time::{Duration, timeout};

use super::info::{Info, Transform};
use super::link::Api;
use super::names::{Names, check_key, covers, overlap};
use super::recent::RecentStreams;
use super::request::{request, said};
use super::stream;
use crate::broker::BrokerError;
use crate::protocol::event_id::Tag;
use crate::protocol::source::Source;
use crate::protocol::topic::Topic;

/// The most streams that a hint names.
const NAMED: usize = 5;

/// The timeout of requests that only a hint needs.
const HINT_LIMIT: Duration = Duration::from_secs(1);

/// The most mirrors of mirrors that are followed to the origin of their messages.
const MIRRORS: usize = 8;

/// The stream of a rule.
pub(super) struct Found {
    pub(super) info: Arc<Info>,
    pub(super) names: Names,
    /// The subject of the filter or topic for which it was found.
    pub(super) subject: String,
}

impl Found {
    /// Finds the stream of a source for `text`, a filter or topic; by its name if that is known.
    pub(super) async fn of(
        api: &Api,
        source: &Source,
        text: &str,
        known: Option<String>,
    ) -> Result<Self, BrokerError> {
        let names = Names::of(source, text);
        let subject = names.subject(text)?;
        let name = match known {
            Some(name) => name,
            None => find(api, source, &subject).await?,
        };
        let Some(info) = stream::info(api, &name).await? else {
            return Err(missing(api, &name, &subject).await);
        };
        Found::with(api, source, text, Arc::new(info)).await
    }

    /// As [`Found::of`], but the state of the stream may be a second old.
    pub(super) async fn recently(
        api: &Api,
        source: &Source,
        text: &str,
        known: Option<String>,
        recent: &RecentStreams,
    ) -> Result<Self, BrokerError> {
        if let Some(info) = known.as_deref().and_then(|name| recent.get(name)) {
            return Found::with(api, source, text, info).await;
        }
        let found = Found::of(api, source, text, known).await?;
        recent.put(found.info.clone());
        Ok(found)
    }

    async fn with(api: &Api, source: &Source, text: &str, info: Arc<Info>) -> Result<Self, BrokerError> {
        let names = Names::of(source, text);
        let names = match source {
            Source::Kv { bucket, .. } => names.stored_as(&stored_bucket(api, bucket, &info).await?),
            _ => names,
        };
        let subject = names.subject(text)?;
        Ok(Found { info, names, subject })
    }

    /// Refuses a stream that cannot be read, or that never has the rule's topics.
    pub(super) fn readable(&self) -> Result<(), BrokerError> {
        let config = &self.info.config;
        let (name, subject) = (&config.name, &self.subject);
        let refused = |why: String| Err(BrokerError::Refused(why));
        if config.retention != "limits" {
            // Our consumer would take messages away from their real consumers.
            return refused(format!(
                "the stream {name:?} drops messages once they are consumed (retention = {:?}); its retention must be limits",
                config.retention
            ));
        }
        if matches!(self.names, Names::Keys { .. }) || config.mirror.is_some() || !config.sources.is_empty() {
            return Ok(());
        }
        let is_stored = |own: &String| match &config.subject_transform {
            Some(transform) if overlap(transform.from(), own) => {
                overlap(&stored_under(transform), subject)
                    || !covers(transform.from(), own) && overlap(own, subject)
            }
            _ => overlap(own, subject),
        };
        if config.subjects.iter().any(is_stored) {
            return Ok(());
        }
        match &config.subject_transform {
            Some(transform) if overlap(transform.from(), subject) => refused(format!(
                "the stream {name:?} stores {} under {} (a subject transform), so that it has nothing under {subject}; \
                 use the subjects under which messages are stored in the rule's match",
                transform.from(),
                transform.dest
            )),
            _ => refused(self.lacks_subject()),
        }
    }

    /// Why no stream receives what is published to the subject; `None` if one does, or if that cannot be found out.
    /// Publishers use the names from before a subject transform.
    pub(super) async fn no_stream_takes(&self, api: &Api) -> Option<String> {
        let config = &self.info.config;
        let (name, subject) = (&config.name, &self.subject);
        if let Some(mirror) = &config.mirror {
            if mirror.external.is_some() {
                return None;
            }
            let taking = timeout(HINT_LIMIT, streams(api, Some(subject))).await.ok()?.ok()?;
            return taking.is_empty().then(|| {
                format!("the stream {name:?} is a mirror, and no stream has subjects of {subject}")
            });
        }
        if config.subjects.iter().any(|own| covers(own, subject)) {
            return None;
        }
        Some(self.lacks_subject())
    }

    fn lacks_subject(&self) -> String {
        let config = &self.info.config;
        let has = match config.subjects.len() {
            0 => "it only copies other streams".into(),
            count => format!("it has {}", listed(config.subjects.iter().map(String::as_str), count)),
        };
        format!("the stream {:?} has no subjects of {}; {has}", config.name, self.subject)
    }

    /// The information that publishing to it needs.
    pub(super) fn publishing(&self, source: &Source) -> Publishing {
        let config = &self.info.config;
        let expected = match source {
            Source::Kv { .. } | Source::JetStream { stream: Some(_) } if config.mirror.is_none() => {
                Some(config.name.clone())
            }
            _ => None, // the message goes to the origin of the mirror
        };
        Publishing {
            stream: config.name.clone(),
            tag: self.info.tag(),
            expected,
            external: config.mirror.as_ref().and_then(|mirror| Some(mirror.external.as_ref()?.api.clone())),
            names: self.names.clone(),
            transform: config.subject_transform.clone(),
            mirrored: config.mirror.iter().flat_map(|mirror| mirror.subject_transforms.clone()).collect(),
            no_ack: config.no_ack,
        }
    }
}

/// What must be known about a stream to publish to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Publishing {
    pub(super) stream: String,
    /// Names its history in event ids.
    pub(super) tag: Tag,
    /// The stream that must store the message.
    pub(super) expected: Option<String>,
    /// The prefix of the API of the account or domain that takes the messages of a mirror, if that is another one.
    external: Option<String>,
    names: Names,
    transform: Option<Transform>,
    /// If a mirror selects subjects of its origin: these, and the subjects under which it has them.
    mirrored: Vec<Transform>,
    no_ack: bool,
}

impl Publishing {
    /// The subject for a message of a topic; an error if it would not be stored under that subject.
    pub(super) fn subject(&self, api: &Api, source: &Source, topic: &Topic) -> Result<String, BrokerError> {
        check_key(source, topic)?;
        let subject = self.names.subject(topic.as_str())?;
        let stream = &self.stream;
        if self.no_ack {
            return Err(BrokerError::Refused(format!(
                "the stream {stream:?} confirms nothing (no_ack), so it is unknown whether it stores a message"
            )));
        }
        // It would go to the origin, if anywhere.
        let is_mirrored =
            |selected: &Transform| selected.from() == selected.dest && covers(selected.from(), &subject);
        if !self.mirrored.is_empty() && !self.mirrored.iter().any(is_mirrored) {
            return Err(BrokerError::Refused(format!(
                "the stream {stream:?} is a mirror that renames its origin's subjects (a subject transform), so no reader \
                 of this topic would receive a message that is published to {subject}; publish under the origin's \
                 subject"
            )));
        }
        match &self.transform {
            Some(transform) if transform.from() != transform.dest && covers(transform.from(), &subject) => {
                Err(BrokerError::Refused(format!(
                    "the stream {stream:?} stores {} under {} (a subject transform), so no reader of this topic would \
                     receive the message",
                    transform.from(),
                    transform.dest
                )))
            }
            _ => Ok(match (source, self.external.as_deref().or(api.other())) {
                // A bucket of another domain has no subjects here but those under its API.
                (Source::Kv { .. }, Some(prefix)) => format!("{prefix}.{subject}"),
                _ => subject,
            }),
        }
    }
}

/// The subjects under which a transform stores messages, with wildcards for the parts that it takes over.
fn stored_under(transform: &Transform) -> String {
    let token = |token: &str| {
        let is_mapped = token.starts_with("{{") || token.starts_with('$') && token[1..].parse::<u8>().is_ok();
        if is_mapped { "*".to_owned() } else { token.to_owned() }
    };
    transform.dest.split('.').map(token).collect::<Vec<_>>().join(".")
}

/// The bucket under whose name the keys are stored: its own name, or the name of the bucket that it mirrors.
async fn stored_bucket(api: &Api, bucket: &str, info: &Info) -> Result<String, BrokerError> {
    let mut config = info.config.clone();
    for _ in 0..MIRRORS {
        let Some(mirror) = &config.mirror else { break };
        let mut transforms = mirror.subject_transforms.iter().map(|transform| bucket_of(&transform.dest));
        if let Some(renamed) = transforms.next_back().flatten() {
            return Ok(renamed);
        }
        let name = mirror.name.clone();
        let Some(own) = name.strip_prefix("KV_").map(str::to_owned) else {
            return Err(BrokerError::Refused(format!(
                "the bucket {bucket:?} mirrors the stream {name:?}, which is not a bucket"
            )));
        };
        // A stream in another account or domain cannot be inspected: only its name is known.
        if mirror.external.is_some() {
            return Ok(own);
        }
        match stream::info(api, &name).await {
            Ok(Some(origin)) if origin.config.mirror.is_some() && origin.config.name == name => {
                config = origin.config
            }
            _ => return Ok(own),
        }
    }
    let is_renamed = |transform: &Transform| bucket_of(&transform.dest).as_deref() == Some(bucket);
    let strange = info.config.sources.iter().find(|source| {
        let is_own = source.name.strip_prefix("KV_") == Some(bucket);
        !is_own && !source.subject_transforms.iter().any(is_renamed)
    });
    match strange {
        None => Ok(bucket.to_owned()),
        Some(source) => {
            let origin = source.name.strip_prefix("KV_").unwrap_or(&source.name);
            Err(BrokerError::Refused(format!(
                "the bucket {bucket:?} has the source {:?} without a subject transform, so that its keys are stored \
                 under the name of that bucket and no client finds them; give the source the transform \
                 $KV.{origin}.> to $KV.{bucket}.>",
                source.name
            )))
        }
    }
}

/// `PRICES` of `$KV.PRICES.>`.
fn bucket_of(subject: &str) -> Option<String> {
    subject.strip_prefix("$KV.")?.split('.').next().map(str::to_owned)
}

/// The name of the stream of a source. Without a configured name, it is the one stream that has `subject`.
async fn find(api: &Api, source: &Source, subject: &str) -> Result<String, BrokerError> {
    match source {
        Source::Kv { bucket, .. } => return Ok(format!("KV_{bucket}")),
        Source::JetStream { stream: Some(name) } => return Ok(name.clone()),
        Source::JetStream { stream: None }
        | Source::Pubsub
        | Source::Sharded
        | Source::RedisStream { .. } => {}
    }
    let mut names = streams(api, Some(subject)).await?;
    match (names.pop(), names.is_empty()) {
        (Some(name), true) => Ok(name),
        (Some(name), false) => Err(BrokerError::Refused(format!(
            "several streams have subjects of {subject}: {}; choose one: stream = {name:?}",
            listed([name.as_str()].into_iter().chain(names.iter().map(String::as_str)), names.len() + 1)
        ))),
        (None, _) => Err(BrokerError::Refused(format!(
            "no stream has subjects of {subject}; {}; create one (nats stream add ORDERS --subjects {subject:?})",
            there_is(api, "").await
        ))),
    }
}

/// The refusal for a missing stream.
async fn missing(api: &Api, name: &str, subject: &str) -> BrokerError {
    BrokerError::Refused(match name.strip_prefix("KV_") {
        Some(bucket) => format!(
            "the bucket {bucket:?} does not exist; {}; set `bucket` to an existing one, or create it: nats kv add \
            {bucket}",
            there_is(api, "KV_").await
        ),
        None => {
            let others = timeout(HINT_LIMIT, streams(api, Some(subject))).await;
            let hint = match others {
                Ok(Ok(others)) if !others.is_empty() => {
                    let listed = listed(others.iter().map(String::as_str), others.len());
                    format!("subjects of {subject} are in {listed}")
                }
                _ => there_is(api, "").await,
            };
            format!(
                "the stream {name:?} does not exist; {hint}; set `stream` to an existing one, or create it: nats \
                stream add {name}"
            )
        }
    })
}

/// The existing streams or buckets, for a hint.
async fn there_is(api: &Api, prefix: &str) -> String {
    let what = if prefix.is_empty() { "streams" } else { "buckets" };
    match timeout(HINT_LIMIT, streams(api, None)).await {
        Ok(Ok(names)) => {
            let names: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix(prefix)).collect();
            match names.len() {
                0 => format!("this account has no {what}"),
                count => format!("this account has the {what} {}", listed(names.into_iter(), count)),
            }
        }
        _ => format!("the {what} cannot be listed"),
    }
}

/// The first names of streams; if `subject` is given, of those that have it.
async fn streams(api: &Api, subject: Option<&str>) -> Result<Vec<String>, BrokerError> {
    #[derive(Deserialize)]
    struct Names {
        streams: Option<Vec<String>>,
    }
    let question = subject.map_or_else(|| json!({}), |subject| json!({ "subject": subject }));
    let names: Names = request(api, "STREAM.NAMES", &question).await?.map_err(said)?;
    Ok(names.streams.unwrap_or_default())
}

/// Some names, and the number of further ones.
fn listed<'a>(names: impl Iterator<Item = &'a str>, count: usize) -> String {
    let mut text = names.take(NAMED).collect::<Vec<_>>().join(", ");
    if count > NAMED {
        text.push_str(&format!(" and {} more", count - NAMED));
    }
    text
}
