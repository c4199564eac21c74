//! Checks of `Host`, `Origin` and token, and the headers of every response.

use super::{App, error::ApiError};
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{net::IpAddr, sync::Arc};
use subtle::ConstantTimeEq;

/// Requests that are accepted.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// The secret that clients send as `Authorization: Bearer TOKEN`; `None`: all clients
    /// have full access.
    pub token: Option<String>,
    /// Accepted host names, besides `localhost` and IP addresses.
    pub hosts: Vec<String>,
}

/// Routes that need no token: they reveal nothing about jobs.
const OPEN_ROUTES: [&str; 3] = ["/", "/health", "/openapi.json"];

/// Checks a request before any route sees it.
pub(super) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let checked = check(&app.security, request.uri(), request.headers());
    let mut response = match checked {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    app.queue.metrics.response(response.status().as_u16());
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    // Answers without CORS headers are not shown to pages of other origins.
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    response
}

fn check(security: &Security, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let host = host(headers)?;
    let authority = uri.authority().map(|authority| authority.as_str());
    for named in [Some(host), authority].into_iter().flatten() {
        if !is_own_name(security, named) {
            let message =
                format!("Host: '{}' is not a name of this server", opensora_files::one_line(named));
            return Err(ApiError::new(StatusCode::FORBIDDEN, "foreign_host", message));
        }
    }
    if !is_same_origin(security, host, uri.path(), headers) {
        let message = "requests from pages of other origins are not accepted";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "foreign_origin", message));
    }
    match &security.token {
        Some(token) if !OPEN_ROUTES.contains(&uri.path()) && !has_token(headers, token) => {
            let message = "a valid token is required: Authorization: Bearer TOKEN";
            Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_token", message))
        }
        _ => Ok(()),
    }
}

/// Returns the value of the only `Host`.
fn host(headers: &HeaderMap) -> Result<&str, ApiError> {
    let mut values = headers.get_all(header::HOST).iter();
    match (values.next().map(|value| value.to_str()), values.next()) {
        (Some(Ok(host)), None) => Ok(host),
        _ => {
            Err(ApiError::bad_request("invalid_host", "Host: found none or several, expected one"))
        }
    }
}

/// Returns true for IP addresses, which no foreign name server answers for, `localhost`, and the names
/// in `security`; each with or without a port.
fn is_own_name(security: &Security, host: &str) -> bool {
    let Some(name) = without_port(host) else { return false };
    if let Some(address) = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    name.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4())
        || name.eq_ignore_ascii_case("localhost")
        || is_named(security, host)
}

/// Returns true for the names in `security`, with or without a port.
fn is_named(security: &Security, host: &str) -> bool {
    without_port(host)
        .is_some_and(|name| security.hosts.iter().any(|own| own.eq_ignore_ascii_case(name)))
}

/// Returns the host of `host:port` or `[address]:port`; `None` if the port is invalid.
fn without_port(host: &str) -> Option<&str> {
    match host.rsplit_once(':') {
        // A colon inside brackets belongs to an IPv6 address.
        Some((_, rest)) if rest.ends_with(']') => Some(host),
        Some((name, port)) => port.parse::<u16>().is_ok().then_some(name),
        None => Some(host),
    }
}

/// Returns false for requests that a page of another origin makes. Browsers send `Sec-Fetch-Site` with
/// all requests to this server (loopback addresses are trustworthy), and `Origin` with those that change
/// something; other clients send neither. A proxy may replace `Host`: an origin that is one of the names
/// in `security` is the server's own. The page itself (the path `/`) may be opened by a link from
/// anywhere.
fn is_same_origin(security: &Security, host: &str, path: &str, headers: &HeaderMap) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let same = origins.all(|origin| {
        let origin = origin.to_str().unwrap_or_default();
        let named = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        named.is_some_and(|named| named.eq_ignore_ascii_case(host) || is_named(security, named))
    });
    let linked = path == "/"
        || headers
            .get("sec-fetch-site")
            .is_none_or(|site| matches!(site.as_bytes(), b"same-origin" | b"none"));
    same && linked
}

/// Returns true if `Authorization` holds `token`. The time of the comparison depends only on the
/// lengths.
fn has_token(headers: &HeaderMap, token: &str) -> bool {
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let (scheme, given) = given.split_at(given.len().min(b"Bearer ".len()));
    scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(given.ct_eq(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_names_are_not_own_ones() {
        let security = Security { hosts: vec!["videos.example".into()], token: None };
        for own in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1",
            "127.0.0.1:8080",
            "192.168.1.5:1",
            "[::1]",
            "[::1]:8080",
            "videos.example",
            "Videos.Example:443",
        ] {
            assert!(is_own_name(&security, own), "{own}");
        }
        for foreign in [
            "",
            ":80",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "::1",
            "localhost:",
            "localhost:99999",
            "localhost:80:80",
            "[::1",
            "[evil.example]",
            "[127.0.0.1]",
            "videos.example.",
            "user@localhost",
            "0x7f.1",
            "localhost:80@evil.example",
        ] {
            assert!(!is_own_name(&security, foreign), "{foreign}");
        }
    }

    #[test]
    fn pages_of_other_origins_are_recognized() {
        let security = Security { hosts: vec!["videos.example".into()], token: None };
        let same = |path: &str, pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().unwrap());
            }
            is_same_origin(&security, "localhost:8080", path, &headers)
        };
        assert!(same("/v1/videos", &[]));
        assert!(same("/v1/videos", &[("origin", "http://localhost:8080")]));
        // Behind a proxy that replaces `Host`.
        assert!(same("/v1/videos", &[("origin", "https://videos.example")]));
        assert!(same("/v1/videos", &[("origin", "https://Videos.Example:8443")]));
        assert!(same("/v1/videos", &[("sec-fetch-site", "same-origin")]));
        assert!(same("/", &[("sec-fetch-site", "cross-site")]));
        for origin in [
            "http://localhost",
            "http://localhost:8081",
            "http://evil.example",
            "null",
            "",
            "https://videos.example.evil",
        ] {
            assert!(!same("/v1/videos", &[("origin", origin)]), "{origin}");
            assert!(!same("/", &[("origin", origin)]), "{origin}");
        }
        let two = [("origin", "http://localhost:8080"), ("origin", "http://evil.example")];
        assert!(!same("/v1/videos", &two));
        for site in ["cross-site", "same-site", "anything"] {
            assert!(!same("/v1/videos", &[("sec-fetch-site", site)]), "{site}");
        }
    }

    #[test]
    fn tokens_are_compared_whole() {
        let sent = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            has_token(&headers, "secret")
        };
        assert!(sent("Bearer secret") && sent("bearer secret"));
        for wrong in
            ["", "Bearer", "Bearer ", "Bearer secre", "Bearer secrets", "Basic secret", "secret"]
        {
            assert!(!sent(wrong), "{wrong}");
        }
        assert!(!has_token(&HeaderMap::new(), "secret"));
    }
}
