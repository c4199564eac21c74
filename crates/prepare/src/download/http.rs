//! Direct addresses, fetched by HTTP.
//!
//! A file whose version the server names (a strong `ETag`, or `Last-Modified`) is gone on with where
//! it was cut: `Range` asks for the rest and `If-Range` for the whole where the version is another
//! one. The answer's own names of its version are compared as well, as not every server honours
//! `If-Range`. Whatever does not fit begins the file again.
//!
//! Redirects are followed within HTTP and HTTPS, and never from HTTPS to HTTP. Hosts that are not public
//! are not asked, also after a redirect, unless that is allowed (`reach`).
//!
//! Where a server states neither a length nor chunks, the end of the connection is the end of the
//! file; only a list's SHA-256 shows that such a file was cut.
//!
//! Source: RFC 9110, sections 8.8 (validators), 10.2.3 (Retry-After), 13.1.5 (If-Range), 14 (ranges).

use super::{
    address::Address,
    limits::Rate,
    partial::{Fetched, Origin, Partial, measure},
    reach::{NotPublic, PublicOnly},
    secrets::shown_in,
};
use crate::retry::{Failure, Patience, insist};
use std::{
    io::{self, Read},
    path::Path,
    sync::atomic::AtomicBool,
    time::Duration,
};
use ureq::{
    Agent,
    http::{HeaderMap, Response, StatusCode, header},
    unversioned::{
        resolver::DefaultResolver,
        transport::{Connector, DefaultConnector},
    },
};

/// Redirects that are followed.
const MAX_REDIRECTS: u32 = 8;
/// An attempt that got so many bytes further than any before renews the patience.
const PROGRESS: u64 = 1 << 20;

/// How long to wait for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For the next bytes.
    pub idle: Duration,
    /// For one attempt at a file as a whole; the next one goes on from there.
    pub attempt: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            idle: Duration::from_secs(60),
            attempt: Duration::from_secs(3600),
        }
    }
}

/// Fetches direct addresses; shared by all workers.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) agent: Agent,
    pub(crate) patience: Patience,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) requests: Rate,
    pub(crate) bytes: Rate,
}

/// An agent that leaves judgement of the answers to this module.
pub(crate) fn agent(timeouts: &Timeouts, allow_private: bool) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(MAX_REDIRECTS)
        .timeout_resolve(Some(timeouts.connect))
        .timeout_connect(Some(timeouts.connect))
        .timeout_per_read(Some(timeouts.idle))
        .timeout_per_write(Some(timeouts.idle))
        .timeout_recv_body(Some(timeouts.attempt))
        .user_agent(concat!("opensora/", env!("CARGO_PKG_VERSION")))
        .build();
    if allow_private {
        return config.new_agent();
    }
    let proxy = config.proxy().map(|proxy| proxy.host().to_string());
    let connector = PublicOnly { proxy }.chain(DefaultConnector::new());
    Agent::with_parts(config, connector, DefaultResolver::default())
}

impl Client {
    /// Fetches a file into `target` unless it is there; `sha256` is what it must have, in
    /// hexadecimal digits.
    pub(crate) fn fetch(
        &self,
        address: &Address,
        sha256: Option<&str>,
        target: &Path,
    ) -> Result<Fetched, String> {
        let disk = |error: io::Error| format!("{}: {error}", target.display());
        if let Some(there) = measure(target).map_err(disk)?
            && check(&there, sha256).is_ok()
        {
            return Ok(there);
        }
        let mut partial = Partial::open(target, address.url()).map_err(disk)?;
        match self.attempts(address, sha256, &mut partial) {
            Ok(()) => partial.finish().map_err(disk),
            Err((reason, Keep::Bytes)) if partial.validator().is_some() => Err(shown_in(&reason)),
            Err((reason, _)) => {
                partial.remove();
                Err(shown_in(&reason))
            }
        }
    }

    /// Attempts until the file is complete or patience ends. Attempts that get further have
    /// patience of their own, so that a large file may be cut more often.
    fn attempts(
        &self,
        address: &Address,
        sha256: Option<&str>,
        partial: &mut Partial,
    ) -> Result<(), (String, Keep)> {
        let mut furthest = partial.length();
        loop {
            let mut keep = Keep::Bytes;
            let ended = insist(&self.patience, &AtomicBool::new(false), |_| {
                let result = self.attempt(address, sha256, partial);
                keep = match &result {
                    Err(Failure::Final(_)) => Keep::Nothing,
                    _ => Keep::Bytes,
                };
                result
            });
            match ended {
                Err(_) if keep == Keep::Bytes && partial.length() >= furthest + PROGRESS => {
                    furthest = partial.length();
                }
                ended => return ended.map_err(|reason| (reason, keep)),
            }
        }
    }

    fn attempt(
        &self,
        address: &Address,
        sha256: Option<&str>,
        partial: &mut Partial,
    ) -> Result<(), Failure> {
        if !partial.is_complete() {
            let response = self.ask(address.secret(), partial)?;
            self.take(address.url(), response, partial)?;
        }
        let Err(reason) = check(&partial.fetched(), sha256) else { return Ok(()) };
        let was_joined = partial.is_joined();
        partial.forget().map_err(|error| disk(&error))?;
        // Joined bytes get one more chance, as a whole.
        Err(if was_joined { now(reason) } else { Failure::Final(reason) })
    }

    fn ask(&self, url: &str, partial: &Partial) -> Result<Response<ureq::Body>, Failure> {
        self.requests.take(1.0);
        // Bytes must be those of the file, or a range of them means nothing.
        let mut request = self.agent.get(url).header(header::ACCEPT_ENCODING, "identity");
        if let Some(validator) = partial.validator() {
            request = request
                .header(header::RANGE, format!("bytes={}-", partial.length()))
                .header(header::IF_RANGE, validator);
        }
        // Whoever listens on the way must not be let in by a redirect.
        let is_https = url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        request.config().https_only(is_https).build().call().map_err(failure)
    }

    /// Brings an answer's body to the disk.
    fn take(
        &self,
        url: &str,
        response: Response<ureq::Body>,
        partial: &mut Partial,
    ) -> Result<(), Failure> {
        let (head, body) = response.into_parts();
        let (status, headers) = (head.status, &head.headers);
        let begin_again = |partial: &mut Partial, reason: String| {
            partial.forget().map_err(|error| disk(&error))?;
            Err(now(reason))
        };
        let asked_for_rest = partial.validator().is_some();
        match status {
            StatusCode::OK => {}
            StatusCode::PARTIAL_CONTENT if asked_for_rest => {}
            StatusCode::RANGE_NOT_SATISFIABLE if asked_for_rest => {
                return begin_again(partial, "the server has no such range of it".into());
            }
            _ => return Err(refusal(status, headers)),
        }
        if let Some(reason) = no_media(headers) {
            return Err(Failure::Final(reason));
        }
        if status == StatusCode::PARTIAL_CONTENT {
            if let Err(reason) = continues(headers, partial) {
                return begin_again(partial, reason);
            }
            partial.join();
        } else {
            let total = body.content_length();
            let origin = Origin { url: url.into(), validator: validator(headers), total };
            self.check_size(total.unwrap_or(0))?;
            partial.begin(origin).map_err(|error| disk(&error))?;
        }
        self.read(body, partial)
    }

    fn read(&self, body: ureq::Body, partial: &mut Partial) -> Result<(), Failure> {
        let mut reader = body.into_reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failure(error.into())),
            };
            if count == 0 {
                break;
            }
            self.check_size(partial.length() + count as u64)?;
            partial.append(&buffer[..count]).map_err(|error| disk(&error))?;
            self.bytes.take(count as f64);
        }
        match (partial.length(), partial.total()) {
            (0, _) => Err(Failure::Final("it is empty".into())),
            (length, Some(total)) if length != total => Err(Failure::Again {
                reason: format!("it ended after {length} of {total} bytes"),
                wait: None,
            }),
            _ => Ok(()),
        }
    }

    fn check_size(&self, bytes: u64) -> Result<(), Failure> {
        match self.max_bytes.filter(|max| bytes > *max) {
            Some(max) => Err(Failure::Final(format!("it is larger than {max} bytes"))),
            None => Ok(()),
        }
    }
}

/// What stays of a file that could not be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// The bytes that came: the next run goes on with them.
    Bytes,
    /// Nothing: no run will succeed.
    Nothing,
}

/// Whether a file is what the list says.
pub(crate) fn check(fetched: &Fetched, sha256: Option<&str>) -> Result<(), String> {
    match sha256 {
        Some(expected) if !expected.eq_ignore_ascii_case(&fetched.sha256) => {
            Err(format!("its SHA-256 is {}, the list says {expected}", fetched.sha256))
        }
        _ => Ok(()),
    }
}

/// Another attempt, without a wait.
fn now(reason: String) -> Failure {
    Failure::Again { reason, wait: Some(Duration::ZERO) }
}

fn disk(error: &io::Error) -> Failure {
    Failure::Final(format!("it cannot be written: {error}"))
}

/// What a connection that did not work out is worth.
fn failure(error: ureq::Error) -> Failure {
    use ureq::Error;
    let reason = match &error {
        Error::RequireHttpsOnly(_) => "it redirects from HTTPS to HTTP".into(),
        Error::Other(inner) if inner.is::<NotPublic>() => inner.to_string(),
        Error::Timeout(which) => format!("no answer in time ({which})"),
        Error::Io(error) => format!("the connection broke: {error}"),
        other => other.to_string(),
    };
    match error {
        Error::Timeout(_)
        | Error::Io(_)
        | Error::HostNotFound
        | Error::ConnectionFailed
        | Error::Protocol(_) => Failure::Again { reason, wait: None },
        _ => Failure::Final(reason),
    }
}

/// What an answer without a file is worth.
fn refusal(status: StatusCode, headers: &HeaderMap) -> Failure {
    let reason = format!("the server answers {status}");
    let again = status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        );
    if !again {
        return Failure::Final(reason);
    }
    // The other form, a date, is rare and only as good as two clocks.
    let wait = text(headers, header::RETRY_AFTER).and_then(|wait| wait.parse().ok());
    Failure::Again { reason, wait: wait.map(Duration::from_secs) }
}

/// Why an answer is no image or video by its own account.
fn no_media(headers: &HeaderMap) -> Option<String> {
    if let Some(coding) = text(headers, header::CONTENT_ENCODING)
        && !coding.eq_ignore_ascii_case("identity")
    {
        return Some(format!("the server sends it encoded as {coding}"));
    }
    let kind = text(headers, header::CONTENT_TYPE)?.to_ascii_lowercase();
    let kind = kind.split(';').next().unwrap_or("").trim();
    let is_text = kind.starts_with("text/")
        || matches!(kind, "application/json" | "application/xml" | "application/xhtml+xml");
    is_text.then(|| format!("the server sends {kind} in place of a video"))
}

/// What the server knows this version of the file by, good enough to join bytes on.
fn validator(headers: &HeaderMap) -> Option<String> {
    match text(headers, header::ETAG) {
        Some(tag) if tag.starts_with('"') => Some(tag.into()),
        // A weak tag stands for several versions of the bytes.
        Some(_) => None,
        None => text(headers, header::LAST_MODIFIED).map(String::from),
    }
}

/// Whether a part of a file continues the bytes that are there.
fn continues(headers: &HeaderMap, partial: &Partial) -> Result<(), String> {
    let found = text(headers, header::CONTENT_RANGE).unwrap_or("no range");
    let numbers = found.strip_prefix("bytes ").and_then(|range| {
        let (range, total) = range.split_once('/')?;
        let (first, _) = range.split_once('-')?;
        Some((first.parse::<u64>().ok()?, total.parse::<u64>().ok()))
    });
    let (length, known) = (partial.length(), partial.total());
    match numbers {
        Some((first, _)) if first != length => {
            return Err(format!("the server sends {found}, asked from byte {length}"));
        }
        None => return Err(format!("the server sends {found}, asked from byte {length}")),
        Some((_, Some(total))) if known.is_some_and(|known| known != total) => {
            return Err(format!("it changed: {found}"));
        }
        Some(_) => {}
    }
    // A part needs not name its version; where it does, it must be the same one.
    let known = partial.validator().unwrap_or("");
    let name = if known.starts_with('"') { header::ETAG } else { header::LAST_MODIFIED };
    match text(headers, name) {
        Some(found) if found != known => Err(format!("it changed: now {found}")),
        _ => Ok(()),
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}
