//! Who may ask. With API keys: whoever brings one. Without: this machine only, which a web page must
//! not pass for.
//!
//! A page of a foreign site can make a browser send requests to 127.0.0.1, and by rebinding its own
//! name even read the answers. So without keys the `Host` header has to be a loopback name (or one of
//! `--allowed-hosts`), and answers are readable for pages from loopback origins (or
//! `--cors-origin`) only.

use super::{error::ApiError, limits::Spent, settings::Settings, state::App};
use anyhow::{Result, ensure};
use axum::{
    extract::{ConnectInfo, FromRequestParts, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use subtle::{Choice, ConstantTimeEq};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

/// The keys that are accepted, as hashes of one length.
pub(super) struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// # Errors
    /// A key that no header can hold.
    pub fn new(keys: &[String]) -> Result<Keys> {
        let usable = |key: &String| !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic());
        ensure!(
            keys.iter().all(usable),
            "an API key is empty or holds a blank or a character that is not ASCII (--api-key)"
        );
        let hash = |key: &String| Sha256::digest(key).into();
        Ok(Keys(keys.iter().map(hash).collect()))
    }

    /// Whether a key is asked for.
    pub fn required(&self) -> bool {
        !self.0.is_empty()
    }

    /// The hash of `key` if it is one of them. Every key is compared to the end, so the time tells
    /// nothing.
    fn find(&self, key: &[u8]) -> Option<[u8; 32]> {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let none = Choice::from(0);
        let found = self
            .0
            .iter()
            .fold(none, |found, key| found | key.ct_eq(&hash));
        bool::from(found).then_some(hash)
    }
}

/// Who asks: everybody with the same key is the same caller, and without keys everybody is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Caller(Option<[u8; 32]>);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Caller, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or_default())
    }
}

/// What the rate is limited by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Payer {
    /// A key, by its hash.
    Key([u8; 32]),
    /// An address.
    Peer(IpAddr),
    /// No socket: the router is called directly.
    Unknown,
}

/// Checks key and rate; what passes carries its [`Caller`].
pub(super) async fn admit(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    if matches!(path, "/health" | "/ready") {
        return next.run(request).await;
    }
    let mut payer = match request.extensions().get() {
        Some(ConnectInfo(peer)) => Payer::Peer(network(SocketAddr::ip(peer))),
        None => Payer::Unknown,
    };
    if app.keys.required() {
        match app.keys.find(bearer(request.headers())) {
            // Guesses are counted too.
            None => {
                return match app.limiter.as_ref().map(|limiter| limiter.spend(payer)) {
                    Some(Spent {
                        wait: Some(wait), ..
                    }) => ApiError::busy("Too many requests without a key.", wait).into_response(),
                    _ => unauthorized(request.headers()),
                };
            }
            Some(key) => {
                payer = Payer::Key(key);
                request.extensions_mut().insert(Caller(Some(key)));
            }
        }
    }
    match &app.limiter {
        Some(limiter) if path_is_counted(request.uri()) => {
            let spent = limiter.spend(payer);
            let mut response = match spent.wait {
                None => next.run(request).await,
                Some(wait) => {
                    let what =
                        format!("Rate limit reached: {} requests a minute.", limiter.limit());
                    ApiError::busy(&what, wait).into_response()
                }
            };
            spent.tell(limiter.limit(), response.headers_mut());
            response
        }
        _ => next.run(request).await,
    }
}

/// Who pays for an address: of IPv6 the /64, as anybody there has all of its addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

fn path_is_counted(uri: &Uri) -> bool {
    uri.path() != "/metrics"
}

/// The key of `Authorization: Bearer KEY`; empty without.
fn bearer(headers: &HeaderMap) -> &[u8] {
    let value = headers.get(header::AUTHORIZATION);
    let value = value.map(HeaderValue::as_bytes).unwrap_or_default();
    match value.split_first_chunk::<7>() {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => key.trim_ascii(),
        _ => b"",
    }
}

fn unauthorized(headers: &HeaderMap) -> Response {
    let text = match headers.contains_key(header::AUTHORIZATION) {
        true => "Incorrect API key provided.",
        false => "No API key provided: expected the header 'Authorization: Bearer KEY'.",
    };
    let error = ApiError::new(StatusCode::UNAUTHORIZED, text).code("invalid_api_key");
    let mut response = error.into_response();
    let realm = HeaderValue::from_static("Bearer realm=\"gossamer\"");
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, realm);
    response
}

/// Without keys: refuses a `Host` that is neither loopback nor allowed.
pub(super) async fn check_host(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Response {
    if app.keys.required() {
        return next.run(request).await;
    }
    let host = request.headers().get(header::HOST);
    // A browser always sends one; HTTP/2 has it in the address.
    let host = host.map(|host| host.to_str().unwrap_or("?")).or_else(|| {
        request
            .uri()
            .authority()
            .map(|authority| authority.as_str())
    });
    match host {
        Some(host) if !app.settings.allows_host(host) => {
            let text = format!(
                "The host '{host}' is not allowed: start the server with --allowed-hosts {} to \
                 accept it, or with --api-key to ask for a key instead.",
                without_port(host)
            );
            let error = ApiError::new(StatusCode::FORBIDDEN, text);
            error.code("host_not_allowed").into_response()
        }
        _ => next.run(request).await,
    }
}

impl Settings {
    fn allows_host(&self, host: &str) -> bool {
        let name = without_port(host);
        let same = |allowed: &String| {
            allowed == "*"
                || allowed.eq_ignore_ascii_case(name)
                || allowed.eq_ignore_ascii_case(host)
        };
        is_loopback(name)
            || self.allowed_hosts.iter().any(same)
            || (self.open_to_network && address(name).is_some())
    }

    fn allows_origin(&self, origin: &str) -> bool {
        let same = |allowed: &String| {
            allowed == "*" || allowed.trim_end_matches('/').eq_ignore_ascii_case(origin)
        };
        if self.cors_origins.iter().any(same) {
            return true;
        }
        // Also schemes of desktop programs, as in tauri://localhost: no web page has one of those.
        let host = origin.split_once("://").map(|(_, host)| host);
        host.is_some_and(|host| is_loopback(without_port(host)))
    }
}

/// `name` or `[::1]` of `name:80` or `[::1]:80`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

/// An address written out, with or without brackets.
fn address(name: &str) -> Option<IpAddr> {
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    Some(bare.unwrap_or(name).parse::<IpAddr>().ok()?.to_canonical())
}

fn is_loopback(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address(name).is_some_and(|ip| ip.is_loopback())
}

/// Headers of ours that pages may read.
const EXPOSED: [HeaderName; 7] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("openai-processing-ms"),
    header::RETRY_AFTER,
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
    header::WWW_AUTHENTICATE,
];

/// Answers preflight requests, and lets allowed origins read answers.
pub(super) fn cors(app: &Arc<App>) -> CorsLayer {
    let settings = app.settings.clone();
    let allowed = move |origin: &HeaderValue, _: &Parts| {
        origin
            .to_str()
            .is_ok_and(|origin| settings.allows_origin(origin))
    };
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(allowed))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::list(EXPOSED))
        .max_age(Duration::from_secs(600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognized_and_nothing_else() {
        let settings = Settings::default();
        for host in [
            "localhost",
            "LOCALHOST:3000",
            "localhost.",
            "127.0.0.1",
            "127.1.2.3:80",
            "[::1]:3000",
            "::1",
            "[::ffff:127.0.0.1]:3000",
        ] {
            assert!(settings.allows_host(host), "{host}");
        }
        for host in [
            "",
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "10.0.0.1:3000",
            "[::2]",
            "localhost:80:80",
            "evil@localhost",
            "0x7f000001",
        ] {
            assert!(!settings.allows_host(host), "{host}");
        }
    }

    #[test]
    fn hosts_and_origins_can_be_allowed() {
        let settings = Settings {
            allowed_hosts: vec!["gpt.lan".into(), "other:8080".into()],
            cors_origins: vec!["https://chat.example/".into()],
            ..Settings::default()
        };
        for (host, allowed) in [
            ("gpt.lan:3000", true),
            ("GPT.lan", true),
            ("other:8080", true),
            ("other:8081", false),
            ("x.gpt.lan", false),
        ] {
            assert_eq!(settings.allows_host(host), allowed, "{host}");
        }
        for (origin, allowed) in [
            ("https://chat.example", true),
            ("http://localhost:5173", true),
            ("https://127.0.0.1", true),
            ("tauri://localhost", true),
            ("http://[::1]:8080", true),
            ("http://chat.example", false),
            ("https://localhost.evil.example", false),
            ("null", false),
            ("", false),
        ] {
            assert_eq!(settings.allows_origin(origin), allowed, "{origin}");
        }
        let open = Settings {
            open_to_network: true,
            ..Settings::default()
        };
        assert!(
            open.allows_host("192.168.1.7:3000"),
            "an address can't be rebound"
        );
        assert!(!open.allows_host("rebound.example"));
    }

    #[test]
    fn an_ipv6_network_pays_as_one() {
        let network = |text: &str| network(text.parse().expect("an address")).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("::ffff:10.0.0.7"), "10.0.0.7");
        assert_eq!(network("10.0.0.7"), "10.0.0.7");
    }

    #[test]
    fn keys_are_found_whole() {
        let keys = Keys::new(&["secret-one".into(), "secret-two".into()]).unwrap();
        assert!(keys.find(b"secret-two").is_some());
        assert_ne!(keys.find(b"secret-one"), keys.find(b"secret-two"));
        for wrong in ["", "secret-tw", "secret-two ", "SECRET-TWO"] {
            assert!(keys.find(wrong.as_bytes()).is_none(), "{wrong}");
        }
        assert!(!Keys::new(&[]).unwrap().required());
        assert!(Keys::new(&["two words".into()]).is_err());
        assert!(Keys::new(&["".into()]).is_err());
    }
}
