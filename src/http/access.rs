//! Who may: asks the rules, and where they want to know who asks, the credentials; and says no in the words of HTTP
//! (RFC 6750). A refusal depends on the rules and on who asks, never on what a topic holds or whether it exists.

use axum::http::{HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::problem::Problem;
use crate::auth::access::Verdict;
use crate::auth::jwt::BadToken;
use crate::auth::{Action, Asked, AuthError, Caller};
use crate::gateway::Gateway;
use crate::topic::Filter;

/// What a `scope` may not hold as it is (RFC 6749, section 3.3).
const NOT_IN_SCOPE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'\\');

/// Why not.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It will not work as it is.
    No(Problem),
    /// Who may cannot be asked now.
    Later,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Refusal::No(problem)
    }
}

/// Lets pass what the rules allow. Returns who asks if the rules had to know that. Every topic that was asked for must be
/// allowed.
pub(super) async fn authorize(gateway: &Gateway, asked: &Asked<'_>) -> Result<Option<Caller>, Refusal> {
    match obstacle(gateway, asked, None) {
        None => return Ok(None),
        Some((Verdict::NotExposed, _)) => return Err(Problem::not_exposed().into()),
        Some(_) => {}
    }
    // A backend is asked about these alone: what is open to anyone it may not even know.
    let open = |filter: &&Filter| matches!(gateway.decide(asked.action, filter, None), Verdict::Allowed(_));
    let filters: Vec<Filter> = asked.filters.iter().filter(|filter| !open(filter)).cloned().collect();
    let caller = match gateway.auth().identify(&Asked { filters: &filters, ..*asked }).await {
        Ok(Some(caller)) => caller,
        Ok(None) => return Err(no_token().into()),
        Err(AuthError::Unavailable) => return Err(Refusal::Later),
        Err(AuthError::NotGranted(filter)) => {
            return Err(not_allowed(asked.action, &filter, Verdict::NotGranted).into());
        }
        Err(error) => return Err(not_identified(error).into()),
    };
    match obstacle(gateway, asked, Some(&caller)) {
        None => Ok(Some(caller)),
        Some((Verdict::NotExposed, _)) => Err(Problem::not_exposed().into()),
        Some((verdict, filter)) => Err(not_allowed(asked.action, filter, verdict).into()),
    }
}

/// The first topic that is not allowed; one that is not exposed outweighs the others.
fn obstacle<'a>(
    gateway: &'a Gateway,
    asked: &Asked<'a>,
    caller: Option<&Caller>,
) -> Option<(Verdict<'a>, &'a Filter)> {
    let mut first = None;
    for filter in asked.filters {
        match gateway.decide(asked.action, filter, caller) {
            Verdict::Allowed(_) => {}
            Verdict::NotExposed => return Some((Verdict::NotExposed, filter)),
            verdict => first = first.or(Some((verdict, filter))),
        }
    }
    first
}

fn no_token() -> Problem {
    let detail = "this topic is only for those who say who they are; send a token";
    // Without an error: the client may not have known that it needs one (RFC 6750, section 3.1).
    Problem::new(StatusCode::UNAUTHORIZED, "no_token", detail)
        .challenge(HeaderValue::from_static("Bearer realm=\"topicgate\""))
}

/// A caller whose token held a moment ago, or never.
pub(super) fn not_identified(error: AuthError) -> Problem {
    let challenge = |description: &str| {
        let value = format!(
            "Bearer realm=\"topicgate\", error=\"invalid_token\", error_description=\"{description}\""
        );
        // The descriptions are ours, without quotes; a field without one is the same refusal.
        HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("Bearer error=\"invalid_token\""))
    };
    let detail = error.to_string();
    match error {
        AuthError::TwoTokens => Problem::new(StatusCode::BAD_REQUEST, "two_tokens", detail),
        AuthError::BadToken(bad) => {
            let code = if bad == BadToken::Expired { "expired_token" } else { "bad_token" };
            let challenge = challenge(&detail);
            Problem::new(StatusCode::UNAUTHORIZED, code, detail).challenge(challenge)
        }
        AuthError::Refused { status, challenge } => {
            let problem = Problem::new(status, "backend_refused", detail);
            // A 401 has one (RFC 9110, section 15.5.2); a backend of cookies has none to give.
            let ours = || {
                (status == StatusCode::UNAUTHORIZED)
                    .then(|| HeaderValue::from_static("Bearer realm=\"topicgate\""))
            };
            match challenge.or_else(ours) {
                Some(challenge) => problem.challenge(challenge),
                None => problem,
            }
        }
        AuthError::TooManyTopics => Problem::new(StatusCode::BAD_REQUEST, "bad_query", detail),
        AuthError::NotGranted(_) | AuthError::Unavailable => {
            Problem::new(StatusCode::FORBIDDEN, "backend_refused", detail)
        }
    }
}

fn not_allowed(action: Action, filter: &Filter, verdict: Verdict<'_>) -> Problem {
    let (grant, doing) = match action {
        Action::Subscribe => ("subscribe", "reading"),
        Action::Publish => ("publish", "publishing to"),
    };
    let problem = match verdict {
        Verdict::NotTheirs => {
            let detail = format!("{filter} is, or takes in, what belongs to other subjects than yours");
            Problem::new(StatusCode::FORBIDDEN, "wrong_subject", detail)
        }
        _ => {
            let detail =
                format!("{doing} {filter} is not granted to you; it takes one grant that covers all of it");
            Problem::new(StatusCode::FORBIDDEN, "missing_grant", detail).missing(grant, filter.as_str())
        }
    };
    let scope = utf8_percent_encode(filter.as_str(), NOT_IN_SCOPE);
    let value =
        format!("Bearer realm=\"topicgate\", error=\"insufficient_scope\", scope=\"{grant}:{scope}\"");
    problem.challenge(
        HeaderValue::try_from(value)
            .unwrap_or(HeaderValue::from_static("Bearer error=\"insufficient_scope\"")),
    )
}
