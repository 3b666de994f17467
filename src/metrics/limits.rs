//! Limits: the limit itself, how much of it is used, and how often it was hit. The three metrics share one label, so that
//! one line of a dashboard, or one alert, covers every limit.

use super::labels::Limit;
use super::table::Metrics;
use crate::config;
use crate::protocol::codes::CloseCode;

impl Metrics {
    /// Shows the limits that the configuration sets.
    pub fn set_bounds(&self, limits: &config::Limits) {
        for (limit, bound) in [
            (Limit::Streams, limits.streams as u64),
            (Limit::StreamsPerAddress, limits.streams_per_address as u64),
            (Limit::StreamsPerSubject, limits.streams_per_subject as u64),
            (Limit::OpensPerSecond, limits.opens_per_second as u64),
            (Limit::NewTopicsPerSecond, limits.new_topics_per_second as u64),
            (Limit::PublishesPerSecond, limits.publishes_per_second as u64),
            (Limit::ResumeBytes, limits.resume_bytes),
            (Limit::ConnectionsPerAddress, limits.connections_per_address as u64),
            (Limit::Topics, limits.topics as u64),
            (Limit::TopicsPerAddress, limits.topics_per_address as u64),
            (Limit::TopicsPerStream, limits.topics_per_stream as u64),
            (Limit::TopicLength, limits.topic_length as u64),
            (Limit::Message, limits.message),
            (Limit::Bodies, limits.bodies),
            (Limit::Buffer, limits.buffer),
            (Limit::Head, limits.head),
        ] {
            self.set_bound(limit, bound);
        }
    }

    /// Shows a limit that the code sets.
    pub fn set_bound(&self, limit: Limit, bound: u64) {
        self.limit.of(limit).set(i64::try_from(bound).unwrap_or(i64::MAX));
    }

    /// Shows how much of a limit is used now.
    pub fn set_used(&self, limit: Limit, used: usize) {
        self.limit_used.of(limit).set(i64::try_from(used).unwrap_or(i64::MAX));
    }

    /// Counts that a limit was hit.
    pub fn hit(&self, limit: Limit) {
        self.limit_met.inc(limit);
    }

    /// Counts the limit of its address or subject that a client hit, by the code that it was refused with.
    pub fn hit_by_client(&self, code: CloseCode) {
        match code {
            CloseCode::TooManyStreams => self.hit(Limit::StreamsPerAddress),
            CloseCode::TooManyTopics => self.hit(Limit::TopicsPerAddress),
            CloseCode::TooManySubjectStreams => self.hit(Limit::StreamsPerSubject),
            CloseCode::TooFast => self.hit(Limit::OpensPerSecond),
            CloseCode::Overloaded => self.hit(Limit::Addresses),
            _ => {}
        }
    }
}
