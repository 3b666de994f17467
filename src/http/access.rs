//! Access control of a request: applies the rules, identifies the caller where a rule needs it, and turns a refusal
//! into HTTP (RFC 6750). A refusal depends on the rules and the caller, never on whether a topic exists or has
//! messages. What a rule allows is decided in `auth::access`.

use axum::http::StatusCode;

use super::problem::{Challenge, Problem};
use crate::auth::access::Verdict;
use crate::auth::jwt::BadToken;
use crate::auth::{AccessRequest, Action, AuthError, Caller, IdentitySource};
use crate::gateway::Gateway;
use crate::gateway::runtime::Runtime;
use crate::protocol::codes::RefusalCode;
use crate::protocol::topic::Filter;

/// Why a request is not authorized.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The request will never succeed as it is.
    No(Problem),
    /// Authorization is temporarily unavailable.
    Later,
}

impl Refusal {
    /// The caller's permission expired while the request was served.
    pub(super) fn expired() -> Self {
        AuthError::from(BadToken::Expired).into()
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Refusal::No(problem)
    }
}

impl From<AuthError> for Refusal {
    fn from(error: AuthError) -> Self {
        let detail = error.to_string();
        let (code, status, challenge) = match error {
            AuthError::Unavailable => return Refusal::Later,
            AuthError::NotGranted(action, filter) => {
                return not_granted(action, &filter).into();
            }
            AuthError::TooManyTopics => (RefusalCode::BadQuery, None, None),
            AuthError::TwoTokens => (RefusalCode::TwoTokens, None, None),
            AuthError::BadToken(bad) => {
                let expired = bad == BadToken::Expired;
                let code = if expired { RefusalCode::ExpiredToken } else { RefusalCode::BadToken };
                (code, None, Some(Challenge::InvalidToken))
            }
            AuthError::Refused { status, challenge } => {
                // A 401 must have a challenge (RFC 9110, section 15.5.2), but a backend that uses cookies has none to
                // give.
                let ours = (status == StatusCode::UNAUTHORIZED).then_some(Challenge::Credentials);
                (RefusalCode::BackendRefused, Some(status), challenge.map(Challenge::Given).or(ours))
            }
        };
        let problem = Problem::new(code, detail).status(status.unwrap_or(code.status()));
        Refusal::No(match challenge {
            Some(challenge) => problem.challenge(challenge),
            None => problem,
        })
    }
}

/// Checks a request against the rules. Returns the caller if a rule needed to identify it. Every requested topic must
/// be allowed.
pub(super) async fn authorize(
    gateway: &Gateway,
    request: &AccessRequest<'_>,
) -> Result<Option<Caller>, Refusal> {
    let current = gateway.current();
    let not_exposed = |filter| Problem::not_exposed(request.action, filter, request.filters.len() > 1);
    match obstacle(&current, request, None) {
        None => return Ok(None),
        Some((Verdict::NotExposed, filter)) => {
            return Err(not_exposed(filter).into());
        }
        Some(_) => {}
    }
    // Only the topics that need permission: a backend may not even know the ones that are open to anyone.
    let open = |filter: &&Filter| matches!(current.decide(request.action, filter, None), Verdict::Allowed(_));
    let filters: Vec<Filter> = request.filters.iter().filter(|filter| !open(filter)).cloned().collect();
    let caller = current
        .auth
        .identify(&AccessRequest { filters: &filters, ..*request })
        .await?
        .ok_or_else(no_token)?;
    match obstacle(&current, request, Some(&caller)) {
        None => Ok(Some(caller)),
        Some((Verdict::NotExposed, filter)) => Err(not_exposed(filter).into()),
        Some((Verdict::NotTheirs, filter)) => Err(not_theirs(filter, &caller).into()),
        Some((_, filter)) => Err(not_granted(request.action, filter).into()),
    }
}

/// The first topic that is not allowed. A topic that is not exposed takes precedence over the others.
fn obstacle<'a>(
    current: &'a Runtime,
    request: &AccessRequest<'a>,
    caller: Option<&Caller>,
) -> Option<(Verdict<'a>, &'a Filter)> {
    let mut first = None;
    for filter in request.filters {
        match current.decide(request.action, filter, caller) {
            Verdict::Allowed(_) => {}
            Verdict::NotExposed => return Some((Verdict::NotExposed, filter)),
            verdict => first = first.or(Some((verdict, filter))),
        }
    }
    first
}

fn no_token() -> Problem {
    let detail = "authentication is required; send a token, as a cookie or as Authorization: Bearer";
    Problem::new(RefusalCode::NoToken, detail).challenge(Challenge::Credentials)
}

/// The segment `{sub}` names another subject, or the caller has no subject.
fn not_theirs(filter: &Filter, caller: &Caller) -> Problem {
    let detail = match (&caller.subject, &caller.voucher) {
        (Some(_), _) => format!("{filter} belongs, in whole or in part, to other subjects"),
        (None, Some(IdentitySource::Backend(_))) => format!(
            "{filter} belongs to one subject, but the backend of auth.forward named none; its JSON answer needs the \
             member \"subject\""
        ),
        (None, _) => {
            format!(
                "{filter} belongs to one subject, but the token names none; the token needs the claim \"sub\""
            )
        }
    };
    Problem::new(RefusalCode::WrongSubject, detail).challenge(Challenge::NotEnough)
}

fn not_granted(action: Action, filter: &Filter) -> Problem {
    let doing = match action {
        Action::Subscribe => "reading",
        Action::Publish => "publishing to",
    };
    let detail = format!("{doing} {filter} is not granted to you; you need one grant that covers all of it");
    Problem::new(RefusalCode::MissingGrant, detail)
        .challenge(Challenge::MissingGrant(action.as_str(), filter.to_string()))
}
