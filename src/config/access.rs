//! `read` and `publish` of a rule: who may.

use super::auth::Auth;
use super::input::Input;

/// Who may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone who reaches the listener.
    Anyone,
    /// Whoever shows who they are.
    Token,
    /// Whoever was granted it.
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
                "asks callers who they are, and nothing says how that is told; set auth.jwt or auth.forward",
            );
        }
        access
    }
}
