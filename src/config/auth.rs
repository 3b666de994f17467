//! `[auth]`: how callers are identified.

use super::forward::Forward;
use super::input::Input;
use super::jwt::Jwt;
use super::names::is_token;

/// `[auth]`: how callers are identified.
#[derive(Debug, Clone, PartialEq)]
pub struct Auth {
    /// `[auth.jwt]`, if it is set.
    pub jwt: Option<Jwt>,
    /// `[auth.token]`.
    pub token: TokenPlaces,
    /// `[auth.forward]`, if it is set.
    pub forward: Option<Forward>,
}

/// `[auth.token]`: where requests may carry a token, in addition to `Authorization: Bearer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPlaces {
    /// `auth.token.cookie`: the name of a cookie.
    pub cookie: String,
    /// `auth.token.query`: whether the query parameter `access_token` may carry it.
    pub query: bool,
}

impl Auth {
    /// Whether callers can be identified at all.
    pub fn is_configured(&self) -> bool {
        self.jwt.is_some() || self.forward.is_some()
    }

    pub(super) fn read(input: &mut Input<'_>) -> Self {
        Auth { jwt: Jwt::read(input), token: TokenPlaces::read(input), forward: Forward::read(input) }
    }
}

impl TokenPlaces {
    fn read(input: &mut Input<'_>) -> Self {
        const COOKIE: &str = "auth.token.cookie";
        let cookie: String = input.get(COOKIE);
        if !is_token(&cookie) {
            input
                .refuse(COOKIE, format!("{cookie:?} is not the name of a cookie; write one as in topicgate"));
        }
        TokenPlaces { cookie, query: input.get("auth.token.query") }
    }
}
