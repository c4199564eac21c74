//! A server that answers as OpenAI's does, asked with patience.
//!
//! Whatever goes wrong is put down to the row or to the endpoint, and is worth another attempt or
//! not:
//!
//! | what happens | attempts | put down to |
//! |---|---|---|
//! | no connection; 429, 503, 529 | while patience lasts | the endpoint, unless it answers others |
//! | no answer in time, hung up; 408, 409, 425, other 5xx | while patience lasts | the row |
//! | an answer that is no caption | three | the row |
//! | an answer of more than a mebibyte | one | the row |
//! | 401, 402, 404, 405, 407, a redirection, no more quota | one | the endpoint |
//! | 400, 403, 413, 422 and other statuses | one | the row |
//!
//! Sources: OpenAI's reference of `POST /v1/chat/completions`, which vLLM, llama.cpp, Ollama and
//! others answer too; RFC 9110, sections 10.2.3 (Retry-After) and 15 (statuses).

use super::answer;
use crate::{
    PrepareError,
    retry::{Failure, Patience, insist},
};
use std::{fmt, io, sync::atomic::AtomicBool, time::Duration};
use ureq::{
    Agent, Error, Timeout,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
};

/// Bytes of an answer, at most: far above a caption's.
const MAX_ANSWER: u64 = 1 << 20;
/// Attempts whose answers are no captions.
const MAX_NONSENSE: u32 = 3;

/// How long to wait for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For a whole answer, connection included.
    pub answer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), answer: Duration::from_secs(300) }
    }
}

/// What a server knows us by. It is not shown, not even for debugging.
#[derive(Clone)]
pub struct Key {
    text: String,
    /// With the scheme before it.
    header: HeaderValue,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(...)")
    }
}

impl Key {
    /// From a text; spaces around it are left out.
    ///
    /// # Errors
    /// Where it is empty or holds what no header can. The message does not show it.
    pub fn new(text: &str) -> Result<Self, PrepareError> {
        let text = text.trim();
        let header = HeaderValue::from_str(&format!("Bearer {text}")).ok();
        let (Some(mut header), false) = (header, text.is_empty()) else {
            let found = if text.is_empty() { "nothing" } else { "(not shown)" };
            let expected = "visible ASCII on one line";
            return Err(PrepareError::Spec { field: "key", found: found.into(), expected });
        };
        header.set_sensitive(true);
        Ok(Self { text: text.into(), header })
    }

    /// From a variable of the environment.
    ///
    /// # Errors
    /// Where it is not set, and as [`Key::new`].
    pub fn from_environment(variable: &str) -> Result<Self, PrepareError> {
        let expected = "the name of a variable of the environment that holds the key";
        let unset = PrepareError::Spec { field: "key variable", found: variable.into(), expected };
        Self::new(&std::env::var(variable).map_err(|_| unset)?)
    }
}

/// A server with a vision model.
#[derive(Debug)]
pub struct Endpoint {
    uri: Uri,
    agent: Agent,
    key: Option<Key>,
    patience: Patience,
}

/// What a failure is put down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The row: others may fare better.
    Row,
    /// The endpoint, which cannot be reached.
    Absence,
    /// The endpoint, which has too much to do.
    Load,
    /// The endpoint.
    Endpoint,
    /// Nobody: someone asked to stop.
    Stop,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: String,
    pub(crate) blame: Blame,
}

/// Why an attempt did not succeed.
struct Trouble {
    failure: Failure,
    blame: Blame,
}

impl Endpoint {
    /// A server at an address: with or without `/v1`, with or without `/chat/completions` behind it.
    /// `connections` are kept open for requests to come.
    ///
    /// Proxies that the environment names are used, except for this machine itself.
    ///
    /// # Errors
    /// Where the address is none of HTTP, or holds a user's name or password.
    pub fn new(
        address: &str,
        key: Option<Key>,
        timeouts: Timeouts,
        patience: Patience,
        connections: usize,
    ) -> Result<Self, PrepareError> {
        let uri = complete(address)?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // A key is for the server that it was given for.
            .max_redirects(0)
            .timeout_resolve(Some(timeouts.connect))
            .timeout_connect(Some(timeouts.connect))
            .timeout_global(Some(timeouts.answer))
            .max_idle_connections(connections)
            .max_idle_connections_per_host(connections)
            .user_agent(concat!("opensora/", env!("CARGO_PKG_VERSION")));
        if is_this_machine(&uri) {
            config = config.proxy(None);
        }
        Ok(Self { uri, agent: config.build().new_agent(), key, patience })
    }

    /// Its address as it may be shown: without a query, which may hold secrets.
    pub fn address(&self) -> String {
        let text = self.uri.to_string();
        text.split_once('?').map_or(text.clone(), |(address, _)| address.into())
    }

    /// Sends a request until `judge` takes the answer, it fails for good, patience ends or `stop` is
    /// set.
    pub(crate) fn ask<T>(
        &self,
        request: &[u8],
        stop: &AtomicBool,
        judge: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Result<T, Refused> {
        let mut nonsense = 0;
        self.insist(stop, || {
            let body = self.send(request)?;
            judge(&body).map_err(|reason| {
                nonsense += 1;
                match nonsense < MAX_NONSENSE {
                    true => Trouble::again(reason, None, Blame::Row),
                    false => Trouble::last(reason, Blame::Row),
                }
            })
        })
    }

    /// Finds out whether it is of use to ask: whether the endpoint is there, and answers such a
    /// request with anything. One that is not there is not waited for.
    pub(crate) fn check(&self, request: &[u8], stop: &AtomicBool) -> Result<(), Refused> {
        self.insist(stop, || match self.send(request) {
            Err(Trouble { failure: Failure::Again { reason, .. }, blame: Blame::Absence }) => {
                Err(Trouble::last(reason, Blame::Endpoint))
            }
            answer => {
                answer::is_chat(&answer?).map_err(|reason| Trouble::last(reason, Blame::Endpoint))
            }
        })
    }

    /// Attempts, and what their failure is put down to.
    fn insist<T>(
        &self,
        stop: &AtomicBool,
        mut attempt: impl FnMut() -> Result<T, Trouble>,
    ) -> Result<T, Refused> {
        let (mut blame, mut is_open) = (Blame::Row, false);
        let result = insist(&self.patience, stop, |number| {
            attempt().map_err(|trouble| {
                blame = trouble.blame;
                is_open = matches!(trouble.failure, Failure::Again { .. })
                    && number + 1 < self.patience.attempts;
                trouble.failure
            })
        });
        result.map_err(|reason| {
            // Only a stop ends attempts that there is patience for.
            Refused { reason, blame: if is_open { Blame::Stop } else { blame } }
        })
    }

    /// One attempt: the body of a successful answer.
    fn send(&self, request: &[u8]) -> Result<Vec<u8>, Trouble> {
        let mut post = self.agent.post(&self.uri).header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            post = post.header(header::AUTHORIZATION, &key.header);
        }
        let mut response = post.send(request).map_err(no_answer)?;
        let (status, wait) = (response.status(), retry_after(response.headers()));
        let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        if status.is_success() {
            return body.map_err(no_answer);
        }
        // The status counts more than what went wrong with its explanation.
        Err(self.refusal(status, wait, &body.unwrap_or_default()))
    }

    /// What an answer without success means.
    fn refusal(&self, status: StatusCode, wait: Option<Duration>, body: &[u8]) -> Trouble {
        let mut reason = format!("{status}: {}", answer::explain(body));
        if let Some(key) = &self.key {
            reason = reason.replace(&key.text, "(the key)");
        }
        // Out of money: waiting does not help.
        let is_spent = String::from_utf8_lossy(body).contains("insufficient_quota");
        match status.as_u16() {
            429 if is_spent => Trouble::last(reason, Blame::Endpoint),
            429 | 503 | 529 => Trouble::again(reason, wait, Blame::Load),
            408 | 409 | 425 | 500.. => Trouble::again(reason, wait, Blame::Row),
            300..=399 | 401 | 402 | 404 | 405 | 407 => Trouble::last(reason, Blame::Endpoint),
            _ => Trouble::last(reason, Blame::Row),
        }
    }
}

impl Trouble {
    fn again(reason: String, wait: Option<Duration>, blame: Blame) -> Self {
        Self { failure: Failure::Again { reason, wait }, blame }
    }

    fn last(reason: String, blame: Blame) -> Self {
        Self { failure: Failure::Final(reason), blame }
    }
}

/// What it means that no answer came.
fn no_answer(error: Error) -> Trouble {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let unreachable = |error: &io::Error| {
        matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
    };
    match &error {
        Error::Io(error) if unreachable(error) => {
            Trouble::again(format!("no connection: {error}"), None, Blame::Absence)
        }
        Error::HostNotFound
        | Error::ConnectionFailed
        | Error::ConnectProxyFailed(_)
        | Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
            Trouble::again(format!("no connection: {error}"), None, Blame::Absence)
        }
        Error::Timeout(_) => Trouble::again("no answer in time".into(), None, Blame::Row),
        Error::BodyExceedsLimit(_) => {
            Trouble::last(format!("the answer has more than {MAX_ANSWER} bytes"), Blame::Row)
        }
        Error::Tls(_) | Error::Rustls(_) | Error::InvalidProxyUrl => {
            Trouble::last(error.to_string(), Blame::Endpoint)
        }
        _ => Trouble::again(format!("no whole answer: {error}"), None, Blame::Row),
    }
}

/// How long a server asks to wait, where it says so in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// The address that requests go to.
fn complete(address: &str) -> Result<Uri, PrepareError> {
    // What is wrong may be a password.
    let fail = |expected| PrepareError::Spec {
        field: "endpoint",
        found: if address.contains('@') { "(not shown)".into() } else { address.into() },
        expected,
    };
    let (rest, query) = match address.trim().split_once('?') {
        Some((rest, query)) => (rest, format!("?{query}")),
        None => (address.trim(), String::new()),
    };
    let rest = rest.trim_end_matches('/');
    let is_version = |part: &str| {
        part.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let path = match rest.rsplit('/').next() {
        _ if rest.ends_with("/chat/completions") => "",
        Some(last) if is_version(last) && !rest.ends_with(&format!("//{last}")) => {
            "/chat/completions"
        }
        _ => "/v1/chat/completions",
    };
    let uri: Uri = format!("{rest}{path}{query}")
        .parse()
        .map_err(|_| fail("an address such as http://localhost:8000"))?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(fail("an address without a user's name; keys come from the environment"));
    }
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(uri),
        _ => Err(fail("an address such as http://localhost:8000")),
    }
}

/// Whether an address is of the machine that asks.
fn is_this_machine(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let address: Result<std::net::IpAddr, _> = host.parse();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str, key: Option<&str>) -> Endpoint {
        let key = key.map(|key| Key::new(key).unwrap());
        Endpoint::new(address, key, Timeouts::default(), Patience::default(), 1).unwrap()
    }

    #[test]
    fn addresses_are_completed() {
        for (address, completed) in [
            ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
            ("http://localhost:8000/", "http://localhost:8000/v1/chat/completions"),
            ("http://[::1]:8000/v1/", "http://[::1]:8000/v1/chat/completions"),
            ("https://a.b/v1/chat/completions", "https://a.b/v1/chat/completions"),
            ("https://a.b/api", "https://a.b/api/v1/chat/completions"),
            ("https://a.b/api/v3", "https://a.b/api/v3/chat/completions"),
            ("http://v2", "http://v2/v1/chat/completions"),
        ] {
            assert_eq!(endpoint(address, None).address(), completed);
        }
        let secret = endpoint("https://a.b/x/chat/completions?key=s3cret", None);
        assert_eq!(secret.uri.query(), Some("key=s3cret"));
        assert_eq!(secret.address(), "https://a.b/x/chat/completions");
        for wrong in
            ["", "localhost:8000", "ftp://a.b", "http://", "http://me:s3cret@a.b/v1", "http://a b"]
        {
            let error = complete(wrong).unwrap_err().to_string();
            assert!(error.starts_with("endpoint = ") && !error.contains("s3cret"), "{error}");
        }
        assert!(is_this_machine(&complete("http://[::1]:1").unwrap()));
        assert!(is_this_machine(&complete("http://LocalHost").unwrap()));
        assert!(!is_this_machine(&complete("http://10.0.0.1").unwrap()));
    }

    #[test]
    fn keys_are_never_shown() {
        let endpoint = endpoint("https://a.b", Some(" s3cret\n"));
        assert!(!format!("{endpoint:?}").contains("s3cret"));
        let body = b"{\"error\": {\"message\": \"wrong key s3cret\"}}";
        let refusal = endpoint.refusal(StatusCode::UNAUTHORIZED, None, body);
        assert_eq!(refusal.blame, Blame::Endpoint);
        let expected = "401 Unauthorized: wrong key (the key)".to_string();
        assert_eq!(refusal.failure, Failure::Final(expected));
        for wrong in ["", " ", "s3\ncret", "s3cr\u{e9}t\u{0}"] {
            let error = Key::new(wrong).unwrap_err().to_string();
            assert!(!error.contains("cr"), "{error}");
        }
        let error = Key::from_environment("OPENSORA_NO_SUCH_KEY").unwrap_err().to_string();
        assert!(error.contains("OPENSORA_NO_SUCH_KEY"), "{error}");
    }

    #[test]
    fn waits_are_read_in_seconds() {
        for (value, seconds) in
            [("3", Some(3.0)), ("0.5", Some(0.5)), ("-1", None), ("Fri, 31 Dec 1999", None)]
        {
            let headers =
                HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static(value))]);
            assert_eq!(retry_after(&headers), seconds.map(Duration::from_secs_f64));
        }
    }
}
