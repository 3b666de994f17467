//! Errors in a configuration, written for its author: the key, the origin of its value, what is wrong, and what would be
//! right. No message repeats a value that may be a secret.

use std::fmt;

use thiserror::Error;

/// One error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The key, as people write it: `limits.streams`, or `[[topics]] #2 read`. Empty if the error is not about a key.
    pub key: String,
    /// The origin of its value: a file, an environment variable or a flag.
    pub origin: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl ConfigError {
    /// `path` is dotted, with the index of a rule as a segment: `topics.1.read`.
    pub(super) fn at(path: &str, origin: String, problem: impl Into<String>) -> Self {
        ConfigError { key: spell(path), origin, problem: problem.into() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.origin, self.problem)
        } else {
            write!(f, "{} ({}): {}", self.key, self.origin, self.problem)
        }
    }
}

/// All errors, so that one run shows everything to correct. Printed one per line. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        ConfigErrors(vec![error])
    }
}

/// Rules have no name of their own, so people count them, and count from one.
pub(super) fn spell(path: &str) -> String {
    let rule = path.strip_prefix("topics.").map(|rest| rest.split_once('.').unwrap_or((rest, "")));
    match rule.and_then(|(index, key)| Some((index.parse::<usize>().ok()?, key))) {
        Some((index, key)) => format!("[[topics]] #{} {key}", index + 1).trim_end().to_owned(),
        None => path.to_owned(),
    }
}

/// The candidate that was most likely meant by `name`, if one is similar.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = |candidate: &str| strsim::normalized_damerau_levenshtein(name, candidate);
    candidates
        .map(|candidate| (near(candidate), candidate))
        .filter(|(score, _)| *score >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Suggests one of `words` instead of `word`, which is none of them; the end of a sentence.
pub(super) fn instead(word: &str, words: &[&str]) -> String {
    let near = nearest(word, words.iter().copied());
    let near = near.map(|near| format!(" did you mean {near}?")).unwrap_or_default();
    format!("{near} write one of {}", words.join(", "))
}
