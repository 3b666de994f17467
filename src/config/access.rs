//! `read` and `publish` of a rule: the callers that it admits.

use super::auth::Auth;
use super::input::Input;

/// The callers that a rule admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone who reaches the listener.
    Anyone,
    /// Callers that are identified, by a token or by the backend.
    Token,
    /// Callers whose token or backend grants the topic.
    Granted,
    /// Nobody.
    Nobody,
}

const WORDS: [(&str, Access); 4] = [
    ("anyone", Access::Anyone),
    ("token", Access::Token),
    ("granted", Access::Granted),
    ("nobody", Access::Nobody),
];

impl Access {
    pub(super) fn read(input: &mut Input<'_>, path: &str, auth: &Auth) -> Self {
        let access = input.choice(path, Access::Nobody, &WORDS);
        let asks = matches!(access, Access::Token | Access::Granted);
        if asks && !auth.is_configured() && !input.has_failed_within("auth") {
            input.refuse(
                path,
                "requires identified callers, but no way to identify them is configured; set auth.jwt or auth.forward",
            );
        }
        access
    }
}
