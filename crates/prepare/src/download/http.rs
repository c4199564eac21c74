//! Downloads files by HTTP, with retries and resumed transfers.
//!
//! A transfer is resumed where it was interrupted if the server identifies the file's version (by a strong
//! `ETag`, or `Last-Modified`): `Range` requests the rest, and `If-Range` the whole file if the version has
//! changed. The version in the answer is compared as well, as not every server supports `If-Range`. On any
//! mismatch the download starts again.
//!
//! Redirects are followed within HTTP and HTTPS, and never from HTTPS to HTTP. Hosts that are not public
//! are rejected, also after a redirect, unless they are allowed (`reach`).
//!
//! If a server states neither a length nor chunks, the end of the connection is the end of the file; only
//! a SHA-256 in the list shows that such a file is truncated.
//!
//! Source: RFC 9110, sections 8.8 (validators), 10.2.3 (Retry-After), 13.1.5 (If-Range), 14 (ranges).

use super::{
    FetchError,
    address::Address,
    busy,
    limits::Rate,
    partial::{Fetched, Origin, Partial, measure},
    reach::{NotPublic, PublicOnly},
};
use crate::retry::{Failure, GaveUp, RetryPolicy, retry};
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

/// Maximum number of redirects.
const MAX_REDIRECTS: u32 = 8;
/// Progress in bytes after which the count of attempts starts again.
const PROGRESS: u64 = 1 << 20;

/// Timeouts of a connection, of further bytes and of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Maximum wait for a connection.
    pub connect: Duration,
    /// Maximum wait for the next bytes.
    pub idle: Duration,
    /// Maximum duration of an attempt; the next attempt resumes the file.
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

/// HTTP client that downloads files; shared by all workers.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) agent: Agent,
    pub(crate) retry: RetryPolicy,
    pub(crate) max_bytes: Option<u64>,
    /// Maximum wait for another process that downloads the same file.
    pub(crate) patience: Duration,
    pub(crate) requests: Rate,
    pub(crate) bytes: Rate,
}

/// Returns an agent for which error statuses are answers, not errors.
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
    /// Downloads a file to `target`, unless it exists. `sha256` is its required digest in hexadecimal
    /// digits.
    pub(crate) fn fetch(
        &self,
        address: &Address,
        sha256: Option<&str>,
        target: &Path,
    ) -> Result<Fetched, GaveUp<FetchError>> {
        let there = || -> Result<Option<Fetched>, FetchError> {
            let found =
                measure(target).map_err(|source| FetchError::Io { path: target.into(), source })?;
            Ok(found.filter(|there| check(there, sha256).is_ok()))
        };
        if let Some(there) = there()? {
            return Ok(there);
        }
        let open = || Partial::open(target, address.url());
        let mut partial = busy::wait(self.patience, open).map_err(FetchError::Write)?;
        // Another process may have completed the file since.
        if let Some(there) = there()? {
            partial.remove();
            return Ok(there);
        }
        match self.attempts(address, sha256, &mut partial) {
            Ok(()) => Ok(partial.finish().map_err(FetchError::Write)?),
            Err((error, Keep::Bytes)) if partial.validator().is_some() => Err(error),
            Err((error, _)) => {
                partial.remove();
                Err(error)
            }
        }
    }

    /// Retries until the file is complete or the attempts are used up. The count starts again after
    /// [`PROGRESS`], so that a large file can be interrupted more often.
    fn attempts(
        &self,
        address: &Address,
        sha256: Option<&str>,
        partial: &mut Partial,
    ) -> Result<(), (GaveUp<FetchError>, Keep)> {
        let mut furthest = partial.length();
        loop {
            let mut keep = Keep::Bytes;
            let ended = retry(&self.retry, &AtomicBool::new(false), |_| {
                let result = self.attempt(address, sha256, partial);
                keep = match &result {
                    // Without room for the rest, the bytes are right nevertheless.
                    Err(Failure::Permanent(error)) if !error.is_of_output() => Keep::Nothing,
                    _ => Keep::Bytes,
                };
                result
            });
            match ended {
                Err(error) if error.error.is_of_output() => return Err((error, keep)),
                Err(_) if keep == Keep::Bytes && partial.length() >= furthest + PROGRESS => {
                    furthest = partial.length();
                }
                ended => return ended.map_err(|error| (error, keep)),
            }
        }
    }

    fn attempt(
        &self,
        address: &Address,
        sha256: Option<&str>,
        partial: &mut Partial,
    ) -> Result<(), Failure<FetchError>> {
        if !partial.is_complete() {
            let response = self.ask(address.secret(), partial)?;
            self.take(address.url(), response, partial)?;
        }
        let Err(error) = check(&partial.fetched(), sha256) else { return Ok(()) };
        let was_joined = partial.is_joined();
        partial.forget().map_err(disk)?;
        // Bytes of several answers are downloaded once more, in one answer.
        Err(if was_joined { now(error) } else { Failure::Permanent(error) })
    }

    fn ask(
        &self,
        url: &str,
        partial: &Partial,
    ) -> Result<Response<ureq::Body>, Failure<FetchError>> {
        self.requests.take(1.0);
        // Ranges refer to the encoded bytes.
        let mut request = self.agent.get(url).header(header::ACCEPT_ENCODING, "identity");
        if let Some(validator) = partial.validator() {
            request = request
                .header(header::RANGE, format!("bytes={}-", partial.length()))
                .header(header::IF_RANGE, validator);
        }
        // A redirect must not expose an HTTPS download to eavesdroppers.
        let is_https = url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        request.config().https_only(is_https).build().call().map_err(failure)
    }

    /// Writes an answer's body to the disk.
    fn take(
        &self,
        url: &str,
        response: Response<ureq::Body>,
        partial: &mut Partial,
    ) -> Result<(), Failure<FetchError>> {
        let (head, body) = response.into_parts();
        let (status, headers) = (head.status, &head.headers);
        let begin_again = |partial: &mut Partial, reason: String| {
            partial.forget().map_err(disk)?;
            Err(now(FetchError::answer(reason)))
        };
        let asked_for_rest = partial.validator().is_some();
        match status {
            StatusCode::OK => {}
            StatusCode::PARTIAL_CONTENT if asked_for_rest => {}
            StatusCode::RANGE_NOT_SATISFIABLE if asked_for_rest => {
                return begin_again(partial, "the server does not have that range".into());
            }
            _ => return Err(refusal(status, headers)),
        }
        if let Some(reason) = no_media(headers) {
            return Err(Failure::Permanent(FetchError::answer(reason)));
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
            partial.begin(origin).map_err(disk)?;
        }
        self.read(body, partial)
    }

    fn read(&self, body: ureq::Body, partial: &mut Partial) -> Result<(), Failure<FetchError>> {
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
            partial.append(&buffer[..count]).map_err(disk)?;
            self.bytes.take(count as f64);
        }
        match (partial.length(), partial.total()) {
            (0, _) => Err(Failure::Permanent(FetchError::Empty)),
            (length, Some(total)) if length != total => {
                Err(Failure::transient(FetchError::Truncated { length, total }))
            }
            _ => Ok(()),
        }
    }

    fn check_size(&self, bytes: u64) -> Result<(), Failure<FetchError>> {
        match self.max_bytes.filter(|max| bytes > *max) {
            Some(max) => Err(Failure::Permanent(FetchError::TooLarge(max))),
            None => Ok(()),
        }
    }
}

/// Treatment of the received bytes of a file that was not downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// The received bytes, which the next run resumes.
    Bytes,
    /// Nothing, as no run will succeed.
    Nothing,
}

/// Returns an error if a file's SHA-256 is not that of the list.
pub(crate) fn check(fetched: &Fetched, sha256: Option<&str>) -> Result<(), FetchError> {
    match sha256 {
        Some(expected) if !expected.eq_ignore_ascii_case(&fetched.sha256) => {
            let (found, expected) = (fetched.sha256.clone(), expected.into());
            Err(FetchError::Digest { found, expected })
        }
        _ => Ok(()),
    }
}

/// Returns a failure that is retried without a wait.
fn now(error: FetchError) -> Failure<FetchError> {
    Failure::Transient { error, wait: Some(Duration::ZERO) }
}

fn disk(error: io::Error) -> Failure<FetchError> {
    Failure::Permanent(FetchError::Write(error))
}

/// Classifies a failed request.
fn failure(error: ureq::Error) -> Failure<FetchError> {
    use ureq::Error;
    match error {
        Error::Timeout(which) => Failure::transient(FetchError::Timeout(which.to_string())),
        Error::Io(error) => Failure::transient(FetchError::Connection(error)),
        error @ (Error::HostNotFound | Error::ConnectionFailed | Error::Protocol(_)) => {
            Failure::transient(FetchError::Http(error.into()))
        }
        Error::RequireHttpsOnly(_) => Failure::Permanent(FetchError::InsecureRedirect),
        Error::Other(error) => Failure::Permanent(match error.downcast::<NotPublic>() {
            Ok(error) => FetchError::NotPublic(*error),
            Err(error) => FetchError::Http(Error::Other(error).into()),
        }),
        error => Failure::Permanent(FetchError::Http(error.into())),
    }
}

/// Classifies an answer with an error status.
fn refusal(status: StatusCode, headers: &HeaderMap) -> Failure<FetchError> {
    let error = FetchError::Status(status.to_string());
    let is_transient = status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        );
    if !is_transient {
        return Failure::Permanent(error);
    }
    // The other form, a date, is rare and depends on two clocks.
    let wait = text(headers, header::RETRY_AFTER).and_then(|wait| wait.parse().ok());
    Failure::Transient { error, wait: wait.map(Duration::from_secs) }
}

/// Returns why the headers are not those of an image or video; `None` if they can be.
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

/// Returns the validator for `If-Range`: a strong `ETag`, or `Last-Modified` if there is no `ETag`. `None` for
/// a weak `ETag`.
fn validator(headers: &HeaderMap) -> Option<String> {
    match text(headers, header::ETAG) {
        Some(tag) if tag.starts_with('"') => Some(tag.into()),
        // A weak tag identifies several versions of the bytes.
        Some(_) => None,
        None => text(headers, header::LAST_MODIFIED).map(String::from),
    }
}

/// Returns an error unless an answer continues the partial file.
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
            return Err(format!("the server sends {found}, expected from byte {length}"));
        }
        None => return Err(format!("the server sends {found}, expected from byte {length}")),
        Some((_, Some(total))) if known.is_some_and(|known| known != total) => {
            return Err(format!("it changed: {found}"));
        }
        Some(_) => {}
    }
    // The version is optional in the answer; if present, it must be the same.
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
