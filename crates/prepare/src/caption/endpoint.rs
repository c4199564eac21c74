//! Requests to a server with OpenAI's chat API, with retries.
//!
//! Every failure is blamed on the row or on the endpoint, and is retried or not:
//!
//! | failure | attempts | blamed on |
//! |---|---|---|
//! | no connection | all | the endpoint, unless it then answers a request with grey images |
//! | 429, 503, 529 | all | the endpoint, unless it answers other rows |
//! | no answer in time, closed connection; 408, 409, 425, other 5xx | all | the row |
//! | an answer without a caption | three | the row |
//! | an answer of more than 1 MiB | one | the row |
//! | 401, 402, 404, 405, 407, a redirect, exhausted quota | one | the endpoint |
//! | 400, 403, 413, 422 and other statuses | one | the row |
//!
//! After 8 failures blamed on rows without a caption in between, the endpoint is blamed if it does not answer a request
//! with grey images either.
//!
//! Sources: OpenAI's reference of `POST /v1/chat/completions`, which vLLM, llama.cpp, Ollama and
//! others implement; RFC 9110, sections 10.2.3 (Retry-After) and 15 (statuses).

use super::answer;
use crate::{
    PrepareError,
    retry::{Failure, GaveUp, RetryPolicy, retry},
};
use std::{error::Error, fmt, io, sync::atomic::AtomicBool, time::Duration};
use ureq::{
    Agent, Timeout,
    config::Config,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

/// Maximum size of an answer in bytes, far above any caption.
const MAX_ANSWER: u64 = 1 << 20;
/// Attempts whose answers have no caption.
const MAX_NONSENSE: u32 = 3;

/// Timeouts of a connection and of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Maximum wait for a connection.
    pub connect: Duration,
    /// Maximum wait for a whole answer, including the connection.
    pub answer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), answer: Duration::from_secs(300) }
    }
}

/// An API key. It is never printed, not even by `Debug`.
#[derive(Clone)]
pub struct Key {
    text: String,
    /// The key with the scheme `Bearer`.
    header: HeaderValue,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(...)")
    }
}

impl Key {
    /// Makes a key from a text, without surrounding spaces.
    ///
    /// # Errors
    /// Returns an error if the text is empty or has characters that are not allowed in a header. The
    /// message does not show the text.
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

    /// Reads a key from an environment variable.
    ///
    /// # Errors
    /// Returns an error if the variable is not set, or [`Key::new`] rejects its text.
    pub fn from_environment(variable: &str) -> Result<Self, PrepareError> {
        let expected = "the name of an environment variable that holds the key";
        let unset = PrepareError::Spec { field: "key variable", found: variable.into(), expected };
        Self::new(&std::env::var(variable).map_err(|_| unset)?)
    }
}

/// Key, timeouts, retries and connections of an [`Endpoint`].
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// The API key.
    pub key: Option<Key>,
    /// Timeouts of a connection and of an answer.
    pub timeouts: Timeouts,
    /// Retries of a request.
    pub retry: RetryPolicy,
    /// Connections that are kept open between requests: the number of workers.
    pub connections: usize,
}

impl Default for EndpointOptions {
    fn default() -> Self {
        Self {
            key: None,
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default(),
            connections: 4,
        }
    }
}

/// Client of a server with a vision model.
#[derive(Debug)]
pub struct Endpoint {
    uri: Uri,
    agent: Agent,
    key: Option<Key>,
    retry: RetryPolicy,
}

/// Error of a request for a caption.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The server cannot be reached.
    #[error("no connection")]
    NoConnection(#[source] Cause),
    /// The server did not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The connection was closed before the end of the answer.
    #[error("no whole answer")]
    Incomplete(#[source] Cause),
    /// The answer is longer than any caption.
    #[error("the answer has more than {MAX_ANSWER} bytes")]
    TooLong,
    /// TLS or the proxy failed.
    #[error(transparent)]
    Transport(Cause),
    /// The server answered with an error status.
    #[error("{status}: {explanation}")]
    Status {
        /// The status, such as "401 Unauthorized".
        status: String,
        /// The server's explanation, without the key.
        explanation: String,
    },
    /// The answer has no caption.
    #[error("{0}")]
    NoCaption(
        /// Description of the answer.
        String,
    ),
}

/// The cause of an [`AskError`].
type Cause = Box<dyn Error + Send + Sync>;

/// An error that affects every row of a captioning.
#[derive(Debug, thiserror::Error)]
#[error("{address}")]
pub struct EndpointError {
    /// Address of the server.
    pub address: String,
    /// The cause.
    pub source: Box<dyn Error + Send + Sync>,
}

/// Cause of a failure: the row, the endpoint, or a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The row: other rows may succeed.
    Row,
    /// The endpoint, which cannot be reached.
    Absence,
    /// The endpoint, which is overloaded.
    Load,
    /// The endpoint.
    Endpoint,
    /// Nothing: the step was stopped.
    Stop,
}

/// The error of the last attempt, with its blame.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) error: GaveUp<AskError>,
    pub(crate) blame: Blame,
}

/// The error of an attempt, with its blame.
struct Trouble {
    failure: Failure<AskError>,
    blame: Blame,
}

impl Endpoint {
    /// Returns a client of the server at an address, with or without `/v1`, with or without
    /// `/chat/completions` after it.
    ///
    /// Proxies of the environment are used, except for this machine itself.
    ///
    /// # Errors
    /// Returns an error if the address is not an HTTP or HTTPS address, or has a user name or password.
    pub fn new(address: &str, options: EndpointOptions) -> Result<Self, PrepareError> {
        let EndpointOptions { key, timeouts, retry, connections } = options;
        let uri = complete(address)?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // The key must not reach another server.
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
        Ok(Self { uri, agent: agent(config.build()), key, retry })
    }

    /// Returns the address for messages: without the query, which can hold secrets.
    pub fn address(&self) -> String {
        let text = self.uri.to_string();
        text.split_once('?').map_or(text.clone(), |(address, _)| address.into())
    }

    /// Returns an error of this endpoint.
    pub(crate) fn error(&self, source: impl Error + Send + Sync + 'static) -> EndpointError {
        EndpointError { address: self.address(), source: Box::new(source) }
    }

    /// Sends a request until `judge` accepts the answer, a failure is permanent, the attempts are used
    /// up, or `stop` is set.
    pub(crate) fn ask<T>(
        &self,
        request: &[u8],
        stop: &AtomicBool,
        judge: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Result<T, Refused> {
        let mut nonsense = 0;
        self.retry(stop, || {
            let body = self.send(request)?;
            judge(&body).map_err(|reason| {
                nonsense += 1;
                let error = AskError::NoCaption(self.without_key(&reason));
                match nonsense < MAX_NONSENSE {
                    true => Trouble::transient(error, None, Blame::Row),
                    false => Trouble::permanent(error, Blame::Row),
                }
            })
        })
    }

    /// Sends a request and checks that the answer has the format of a chat API. A connection
    /// that fails is not retried.
    pub(crate) fn check(&self, request: &[u8], stop: &AtomicBool) -> Result<(), Refused> {
        self.retry(stop, || match self.send(request) {
            Err(Trouble { failure: Failure::Transient { error, .. }, blame: Blame::Absence }) => {
                Err(Trouble::permanent(error, Blame::Endpoint))
            }
            answer => answer::is_chat(&answer?).map_err(|reason| {
                let error = AskError::NoCaption(self.without_key(&reason));
                Trouble::permanent(error, Blame::Endpoint)
            }),
        })
    }

    /// Retries a request.
    fn retry<T>(
        &self,
        stop: &AtomicBool,
        mut attempt: impl FnMut() -> Result<T, Trouble>,
    ) -> Result<T, Refused> {
        let mut blame = Blame::Row;
        let result = retry(&self.retry, stop, |_| {
            attempt().map_err(|trouble| {
                blame = trouble.blame;
                trouble.failure
            })
        });
        result.map_err(|error| {
            let blame = if error.stopped { Blame::Stop } else { blame };
            Refused { error, blame }
        })
    }

    /// Sends a request once and returns the body of a successful answer.
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
        // An unreadable explanation matters less than the status.
        Err(self.refusal(status, wait, &body.unwrap_or_default()))
    }

    /// Returns a server's text without the key.
    fn without_key(&self, text: &str) -> String {
        match &self.key {
            Some(key) => text.replace(&key.text, "(the key)"),
            None => text.into(),
        }
    }

    /// Classifies an answer with an error status.
    fn refusal(&self, status: StatusCode, wait: Option<Duration>, body: &[u8]) -> Trouble {
        let body = String::from_utf8_lossy(body);
        // Also before the explanation is shortened, which could leave a part of the key.
        let explanation = answer::explain(self.without_key(&body).as_bytes());
        let explanation = self.without_key(&explanation);
        let error = AskError::Status { status: status.to_string(), explanation };
        // Waiting does not restore an exhausted quota.
        let is_spent = body.contains("insufficient_quota");
        match status.as_u16() {
            429 if is_spent => Trouble::permanent(error, Blame::Endpoint),
            429 | 503 | 529 => Trouble::transient(error, wait, Blame::Load),
            408 | 409 | 425 | 500.. => Trouble::transient(error, wait, Blame::Row),
            300..=399 | 401 | 402 | 404 | 405 | 407 => Trouble::permanent(error, Blame::Endpoint),
            _ => Trouble::permanent(error, Blame::Row),
        }
    }
}

impl Trouble {
    fn transient(error: AskError, wait: Option<Duration>, blame: Blame) -> Self {
        Self { failure: Failure::Transient { error, wait }, blame }
    }

    fn permanent(error: AskError, blame: Blame) -> Self {
        Self { failure: Failure::Permanent(error), blame }
    }
}

/// Resolves names. Every failure is `HostNotFound`: the kind of error that the standard library gives it has no name.
#[derive(Debug, Default)]
struct Names(DefaultResolver);

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        self.0.resolve(uri, config, timeout).map_err(|error| match error {
            ureq::Error::Io(_) => ureq::Error::HostNotFound,
            error => error,
        })
    }
}

fn agent(config: Config) -> Agent {
    Agent::with_parts(config, DefaultConnector::new(), Names::default())
}

/// Classifies a request without an answer.
fn no_answer(error: ureq::Error) -> Trouble {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    use ureq::Error;
    let is_unreachable = match &error {
        Error::Io(error) => {
            matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
        }
        Error::HostNotFound
        | Error::ConnectionFailed
        | Error::ConnectProxyFailed(_)
        | Error::Timeout(Timeout::Resolve | Timeout::Connect) => true,
        _ => false,
    };
    match error {
        error if is_unreachable => {
            Trouble::transient(AskError::NoConnection(cause(error)), None, Blame::Absence)
        }
        Error::Timeout(_) => Trouble::transient(AskError::Timeout, None, Blame::Row),
        Error::BodyExceedsLimit(_) => Trouble::permanent(AskError::TooLong, Blame::Row),
        Error::Tls(_) | Error::Rustls(_) | Error::InvalidProxyUrl => {
            Trouble::permanent(AskError::Transport(error.into()), Blame::Endpoint)
        }
        error => Trouble::transient(AskError::Incomplete(cause(error)), None, Blame::Row),
    }
}

/// Returns the error of the operating system in an error of the HTTP client, or that error itself.
fn cause(error: ureq::Error) -> Cause {
    match error {
        ureq::Error::Io(error) => error.into(),
        error => error.into(),
    }
}

/// Returns the wait that a server asks for, if it is in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Returns the address of requests.
fn complete(address: &str) -> Result<Uri, PrepareError> {
    // The invalid part can be a password.
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
        return Err(fail("an address without a user name; keys come from the environment"));
    }
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(uri),
        _ => Err(fail("an address such as http://localhost:8000")),
    }
}

/// Returns true if an address is of this machine.
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
        Endpoint::new(address, EndpointOptions { key, ..EndpointOptions::default() }).unwrap()
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
    fn keys_are_never_printed() {
        let endpoint = endpoint("https://a.b", Some(" s3cret\n"));
        assert!(!format!("{endpoint:?}").contains("s3cret"));
        let body = b"{\"error\": {\"message\": \"wrong key s3cret\"}}";
        let refusal = endpoint.refusal(StatusCode::UNAUTHORIZED, None, body);
        assert_eq!(refusal.blame, Blame::Endpoint);
        let Failure::Permanent(error) = refusal.failure else { panic!("it is transient") };
        assert_eq!(error.to_string(), "401 Unauthorized: wrong key (the key)");
        // Nor a part of one at the end of a long message.
        let long = format!("{}s3cret", "x".repeat(197));
        let refusal = endpoint.refusal(StatusCode::UNAUTHORIZED, None, long.as_bytes());
        let Failure::Permanent(error) = refusal.failure else { panic!("it is transient") };
        assert!(!error.to_string().contains("s3c"), "{error}");
        for wrong in ["", " ", "s3\ncret", "s3cr\u{e9}t\u{0}"] {
            let error = Key::new(wrong).unwrap_err().to_string();
            assert!(!error.contains("cr"), "{error}");
        }
        let error = Key::from_environment("OPENSORA_NO_SUCH_KEY").unwrap_err().to_string();
        assert!(error.contains("OPENSORA_NO_SUCH_KEY"), "{error}");
    }

    #[test]
    fn unknown_names_are_no_connection() {
        let config = Agent::config_builder().proxy(None);
        let some = Some(Duration::from_secs(20));
        let config = config.timeout_resolve(some).timeout_connect(some).build();
        let endpoint = Endpoint { agent: agent(config), ..endpoint("http://nobody.invalid", None) };
        let refused = endpoint.check(b"{}", &AtomicBool::new(false)).unwrap_err();
        assert_eq!((refused.blame, refused.error.attempts), (Blame::Endpoint, 1));
        assert!(refused.error.to_string().starts_with("no connection"), "{}", refused.error);
    }

    #[test]
    fn requested_waits_are_parsed_in_seconds() {
        for (value, seconds) in
            [("3", Some(3.0)), ("0.5", Some(0.5)), ("-1", None), ("Fri, 31 Dec 1999", None)]
        {
            let headers =
                HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static(value))]);
            assert_eq!(retry_after(&headers), seconds.map(Duration::from_secs_f64));
        }
    }
}
