//! `topicgate token`: creates a token that the configured key accepts, and explains a given token. It checks tokens
//! with the same code as the gateway.

use std::fmt::Write as _;
use std::io::{Read as _, stdin};
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderValue};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value, json};

use super::http::printable;
use super::signer::Signer;
use super::{Failure, print};
use crate::auth::{AccessRequest, Action, Auth, AuthError, Caller};
use crate::cli::{Inspect, Mint};
use crate::config::{Config, Jwt, JwtKeys};
use crate::metrics::Metrics;
use crate::protocol::topic::Filter;

/// The most bytes of a token that are read from standard input: more than any request head can hold.
const MAX_TOKEN: u64 = 1024 * 1024;

/// Prints a token with the given claims and those that the configuration requires.
pub(crate) async fn mint(mint: Mint) -> Result<ExitCode, Failure> {
    let config = Config::load(&mint.options.sources()?)?;
    let jwt = jwt(&config)?;
    let signer = match (&jwt.keys, &mint.key) {
        (JwtKeys::Secret(secret), None) => {
            let algorithm = jwt.algorithm.unwrap_or(Algorithm::HS256);
            Signer::from_secret(&secret.0, algorithm).map_err(Failure::Usage)?
        }
        (JwtKeys::Secret(_), Some(_)) => {
            let problem =
                "--key cannot be used: the gateway checks tokens with auth.jwt.secret, which also signs them";
            return Err(Failure::Usage(problem.into()));
        }
        (_, None) => {
            let problem =
                "the gateway checks tokens with a public key; give the matching private key with --key";
            return Err(Failure::Usage(problem.into()));
        }
        (_, Some(file)) => {
            let pem = std::fs::read(file).map_err(|error| format!("cannot be read: {error}"));
            let signer = pem.and_then(|pem| Signer::from_pem(&pem, jwt.algorithm));
            signer.map_err(|problem| Failure::Usage(format!("--key: {} {problem}", file.display())))?
        }
    };
    for (flag, patterns) in [("--subscribe", &mint.subscribe), ("--publish", &mint.publish)] {
        for pattern in patterns {
            let read = Filter::read(pattern, config.broker.alias(), config.limits.topic_length);
            read.map_err(|why| Failure::Usage(format!("{flag} {pattern:?}: {why}")))?;
        }
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut claims = json!({ "iat": now.as_secs(), "exp": now.saturating_add(mint.expires).as_secs() });
    for (name, value) in
        [("sub", mint.subject.as_ref()), ("aud", jwt.audience.first()), ("iss", jwt.issuer.first())]
    {
        if let Some(value) = value {
            claims[name] = value.as_str().into();
        }
    }
    if !(mint.subscribe.is_empty() && mint.publish.is_empty()) {
        let grants = json!({ "subscribe": mint.subscribe, "publish": mint.publish });
        put(&mut claims, ("auth.jwt.claim", &jwt.claim), grants)?;
    }
    if let Some(until) = mint.until {
        if until > jwt.until_limit {
            let limit = humantime::format_duration(jwt.until_limit);
            let problem = format!("--until: streams may last for {limit} at most, by auth.jwt.until_limit");
            return Err(Failure::Usage(problem));
        }
        let end = now.saturating_add(until).as_secs();
        put(&mut claims, ("auth.jwt.until", &jwt.until), end.into())?;
    }
    let token = signed(&signer, &claims)?;
    // A token that the gateway refuses would only mislead.
    match ask(&config, &token, Action::Subscribe).await? {
        Ok(_) => print(token + "\n"),
        Err(why) => Err(Failure::Failed(format!("the configuration would not accept this token: {why}"))),
    }
}

/// Prints the content of a token, and whether it is accepted; if not, the exit code is 1.
pub(crate) async fn inspect(inspect: Inspect) -> Result<ExitCode, Failure> {
    let config = Config::load(&inspect.options.sources()?)?;
    let token = match inspect.token {
        Some(token) => token,
        None => {
            let mut token = String::new();
            let read = stdin().take(MAX_TOKEN).read_to_string(&mut token);
            read.map_err(|error| Failure::Failed(format!("standard input cannot be read: {error}")))?;
            token
        }
    };
    let token = token.trim();
    let mut page = String::new();
    let parts: Vec<Option<Value>> = token.split('.').map(decoded).collect();
    match &parts[..] {
        [Some(header), Some(claims), _] => {
            let whole = format!("header: {header:#}\nclaims: {claims:#}");
            whole.lines().for_each(|line| page += &(printable(line) + "\n"));
        }
        _ => {
            return Err(Failure::Usage(
                "this is not a JWT, which has three parts in base64url separated by dots".into(),
            ));
        }
    }
    // A token can be shown without a key to check it.
    if config.auth.jwt.is_none() {
        page.push_str("not checked: there is no [auth.jwt] in this configuration\n");
        return print(page);
    }
    let read = ask(&config, token, Action::Subscribe).await?;
    match ask(&config, token, Action::Publish).await? {
        Ok(caller) => {
            page.push_str(&in_words(&caller));
            let streams = match read {
                Ok(reader) if reader.expires == caller.expires => String::new(),
                Ok(reader) => format!("streams that it opens last{}\n", left(&reader)),
                Err(why) => format!("refused for reading: {why}\n"),
            };
            print(page + &streams)
        }
        Err(why) => {
            let _ = writeln!(page, "refused: {why}");
            print(page)?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn jwt(config: &Config) -> Result<&Jwt, Failure> {
    let missing =
        "no key is configured; set auth.jwt.secret (TOPICGATE_AUTH__JWT__SECRET) or auth.jwt.public_key";
    config.auth.jwt.as_ref().ok_or_else(|| Failure::Usage(missing.into()))
}

/// The caller that a gateway with this configuration would identify by the token.
async fn ask(config: &Config, token: &str, action: Action) -> Result<Result<Caller, AuthError>, Failure> {
    let auth =
        Auth::new(config, &Arc::new(Metrics::new())).map_err(|error| Failure::Usage(error.to_string()))?;
    let bearer = HeaderValue::try_from(format!("Bearer {token}"));
    let bearer =
        bearer.map_err(|_| Failure::Usage("the token has characters that a token cannot have".into()))?;
    let request = AccessRequest {
        action,
        filters: &[],
        headers: &HeaderMap::from_iter([(AUTHORIZATION, bearer)]),
        query: None,
        client: IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let caller = auth.identify(&request).await;
    // `None` is for requests without a token.
    Ok(caller.map(Option::unwrap_or_default))
}

fn signed(signer: &Signer, claims: &Value) -> Result<String, Failure> {
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let header = json!({ "alg": signer.algorithm(), "typ": "JWT" });
    let message = format!("{}.{}", encode(&header), encode(claims));
    let signature = signer.sign(message.as_bytes());
    let signature =
        signature.map_err(|_| Failure::Failed("the token cannot be signed with this key".into()))?;
    Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

fn decoded(part: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// Inserts a value at a JSON pointer (RFC 6901), and creates the objects on the way.
fn put(claims: &mut Value, (key, pointer): (&str, &str), value: Value) -> Result<(), Failure> {
    let mut place = claims;
    for segment in pointer.split('/').skip(1) {
        let name = segment.replace("~1", "/").replace("~0", "~");
        let Some(object) = place.as_object_mut() else {
            return Err(Failure::Usage(format!(
                "{key} = {pointer:?} leads into a claim that is not an object"
            )));
        };
        place = object.entry(name).or_insert_with(|| Map::new().into());
    }
    *place = value;
    Ok(())
}

/// For how long the permission of the caller lasts.
fn left(caller: &Caller) -> String {
    let left = caller.expires.and_then(|expires| expires.duration_since(SystemTime::now()).ok());
    left.map_or_else(String::new, |left| {
        let seconds = humantime::format_duration(Duration::from_secs(left.as_secs()));
        format!(" for {seconds}, including auth.jwt.leeway")
    })
}

fn in_words(caller: &Caller) -> String {
    let grants = |filters: &[Filter]| match filters {
        [] => "nothing".to_owned(),
        filters => filters.iter().map(Filter::as_str).collect::<Vec<_>>().join(", "),
    };
    let left = left(caller);
    let comma = if left.is_empty() { "" } else { "," };
    format!(
        "accepted{comma}{left}\nsubject: {}\ngranted to read: {}\ngranted to publish: {}\n",
        caller.subject.as_deref().map_or_else(|| "none".to_owned(), |subject| format!("{subject:?}")),
        grants(&caller.subscribe),
        grants(&caller.publish)
    )
}
