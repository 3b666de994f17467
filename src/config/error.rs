//! What is wrong with a configuration, told to the person who wrote it: which key, where it came from, what is wrong
//! and what would be right. No message repeats a value that may be a secret.

use std::fmt;

use thiserror::Error;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The key, as a person writes it: `limits.streams`, or `[[topics]] #2 read`. Empty if no key is to blame.
    pub key: String,
    /// Where it came from: a file, an environment variable or a flag.
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

/// Everything that is wrong, so that one run is enough to mend it. Shown one to a line. Never empty.
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

/// The candidate that `name` was most likely meant to be, if any is near.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = |candidate: &str| strsim::normalized_damerau_levenshtein(name, candidate);
    candidates
        .map(|candidate| (near(candidate), candidate))
        .filter(|(score, _)| *score >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Which of `words` to write where `word` is none of them, as the end of a sentence.
pub(super) fn instead(word: &str, words: &[&str]) -> String {
    let near = nearest(word, words.iter().copied());
    let near = near.map(|near| format!(" did you mean {near}?")).unwrap_or_default();
    format!("{near} write one of {}", words.join(", "))
}
