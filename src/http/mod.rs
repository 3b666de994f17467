//! HTTP: the routes. Requests go to the [`Gateway`]; nothing here knows brokers.
//!
//! axum routes the requests and hyper speaks HTTP. A stream on HTTP/1 leaves both once its head has been sent
//! (`handoff`).

mod accept;
mod acceptor;
mod access;
mod admin;
mod answer;
mod base_path;
mod budget;
mod client;
mod connection;
mod handoff;
mod handshake;
mod module;
mod open;
mod origin;
mod page;
mod problem;
mod proxy_protocol;
mod publish;
mod sse_head;
mod subscribe;
mod topics;
mod trace;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio_util::sync::CancellationToken;
use tower::Layer;

pub(crate) use self::acceptor::Acceptor;
use crate::config::BrokerKind;
use crate::gateway::Gateway;
use crate::protocol::codes::RefusalCode;
use crate::stream::outcome::RequestRefused;

/// Connections of the admin listener. They are counted apart, so that a crowd on the public listener does not shut out
/// the probes.
pub(crate) const ADMIN_CONNECTIONS: usize = 64;

/// The routes of the public listener, which listens at `address`.
pub(crate) fn public(gateway: Arc<Gateway>, address: Option<SocketAddr>) -> Router {
    let listener = origin::Listener::Public(gateway.clone(), is_loopback(address));
    let subscribe = get(subscribe::subscribe).head(subscribe::subscribe).options(subscribe::options);
    let mut router = Router::new()
        .route("/topics", subscribe.clone())
        // As some clients write it, with the topics in the query.
        .route("/topics/", subscribe.clone())
        .route("/topics/{*topic}", subscribe.post(publish::publish))
        .route("/topicgate.js", get(module::module).options(subscribe::options))
        .fallback(|method: Method, uri: Uri| async move {
            // `OPTIONS *` asks about the server as a whole (RFC 9110, section 9.3.7). It has no path that could be a route.
            if method == Method::OPTIONS && uri.path() == "*" {
                return subscribe::options(uri).await;
            }
            let hint = base_path::hint(uri.path());
            problem::Problem::no_route(&uri, hint.as_deref().unwrap_or(problem::NO_TOPIC)).into_response()
        })
        .method_not_allowed_fallback(|| async {
            problem::Problem::new(
                RefusalCode::BadMethod,
                "use GET to read a topic, or POST to publish to the one topic of the path, as in POST \
                 /topics/orders/eu, if a rule allows it",
            )
        });
    if gateway.current().config.broker.kind() == BrokerKind::Memory {
        // A reload can end the first look, but not begin it: its back end starts with the process.
        let has_first_look = gateway.current().config.has_first_look;
        router = router.route(
            "/",
            get(async move |gateway| page::page(gateway, has_first_look)).options(subscribe::options),
        );
    }
    router = router
        .layer(middleware::from_fn_with_state(listener, origin::guard))
        .layer(middleware::from_fn_with_state(gateway.clone(), record_refusals));
    if gateway.traces().is_on() {
        router = router.layer(middleware::from_fn_with_state(gateway.clone(), trace::trace));
    }
    let router = router
        .layer(middleware::from_fn_with_state(gateway.clone(), client::find))
        .with_state(gateway.clone());
    let below_base = middleware::from_fn_with_state(gateway.clone(), base_path::remove);
    // Around everything else, because each of them may answer by itself.
    let private = middleware::map_response_with_state(gateway, keep_url_private);
    Router::new().fallback_service(below_base.layer(router)).layer(private)
}

/// The routes of the admin listener, which listens at `address`. `closing` ends the streams that would never end by
/// themselves.
pub(crate) fn admin(
    gateway: Arc<Gateway>,
    address: Option<SocketAddr>,
    closing: CancellationToken,
) -> Router {
    let listener = origin::Listener::Admin(gateway.clone(), is_loopback(address));
    admin::router(gateway.clone(), closing)
        .layer(middleware::from_fn_with_state(listener, origin::guard))
        .layer(middleware::from_fn_with_state(gateway, record_refusals))
}

fn is_loopback(address: Option<SocketAddr>) -> bool {
    address.is_some_and(|address| address.ip().is_loopback())
}

/// The middleware that counts refused requests and logs why. Streams that close at once are counted where they are
/// refused.
async fn record_refusals(
    State(gateway): State<Arc<Gateway>>,
    request: axum::extract::Request,
    next: Next,
) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let address = client::address(request.extensions());
    let response = next.run(request).await;
    if let Some(problem::RefusalNote { code, detail }) = response.extensions().get() {
        if response.status() != StatusCode::OK {
            gateway.metrics().refused_requests.inc(*code);
        }
        gateway.why().refused(*code, || RequestRefused {
            address,
            method: method.as_str(),
            path: uri.path(),
            topics: subscribe::topics(&uri),
            detail,
        });
    }
    if let Some(problem::Met(limit)) = response.extensions().get() {
        gateway.metrics().hit(*limit);
    }
    response
}

/// If tokens may be in the URL, tells browsers not to send that URL to other sites as the referrer.
async fn keep_url_private(State(gateway): State<Arc<Gateway>>, mut response: Response) -> Response {
    if gateway.current().config.auth.token.query {
        response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    }
    response
}
