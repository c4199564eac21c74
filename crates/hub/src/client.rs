//! HTTP requests: redirects, access token, retries, and errors by status.

use crate::{
    HubError, Observer, Retrying, Token,
    background::patiently,
    observer::proceed,
    redirect::{join, origin, shown},
};
use std::time::{Duration, Instant};
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, StatusCode, header},
};

/// Maximum number of redirects.
const MAX_REDIRECTS: usize = 8;
/// Maximum number of attempts without progress.
const ATTEMPTS: u32 = 5;
/// Maximum wait between attempts: the hub counts requests in windows of five minutes.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Upper limit of a server's error message in bytes.
const MAX_MESSAGE: u64 = 4096;

/// An HTTP client of one hub.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
    /// Wait before the second attempt; doubles with each further attempt.
    pub(crate) first_wait: Duration,
}

/// A failed attempt.
#[derive(Debug)]
pub(crate) enum Failure {
    /// May succeed later, after the wait that the server requests.
    Again(HubError, Option<Duration>),
    /// Will not succeed.
    Final(HubError),
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) url: &'a str,
    /// A HEAD request. Redirects to another host are not followed, because the headers of the hub describe
    /// the file.
    pub(crate) head: bool,
    /// First byte of the range.
    pub(crate) from: u64,
    /// Number of bytes; `None` up to the end.
    pub(crate) count: Option<u64>,
    /// Tag of the bytes before the range, for servers that may change a file in place.
    pub(crate) if_range: Option<&'a str>,
}

impl<'a> Ask<'a> {
    pub(crate) fn get(url: &'a str) -> Self {
        Self { url, head: false, from: 0, count: None, if_range: None }
    }

    pub(crate) fn head(url: &'a str) -> Self {
        Self { head: true, ..Self::get(url) }
    }
}

/// An answer, and the headers of the redirects before it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response<Body>,
    /// Headers of the redirects, the last first.
    pub(crate) hops: Vec<HeaderMap>,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// Returns a header of the answer.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        text(self.response.headers(), name)
    }

    /// Returns a header of the answer, or of a redirect before it.
    pub(crate) fn header_of_any(&self, name: &str) -> Option<&str> {
        self.header(name).or_else(|| self.hops.iter().find_map(|hop| text(hop, name)))
    }
}

impl Client {
    pub(crate) fn new(endpoint: &str, token: Option<Token>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed by this crate, which decides which host gets the token.
            .max_redirects(0)
            .timeout_resolve(Some(Duration::from_secs(20)))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .timeout_per_write(Some(Duration::from_secs(60)))
            .user_agent(concat!("opensora/", env!("CARGO_PKG_VERSION")))
            .build();
        let first_wait = Duration::from_secs(1);
        Self { agent: config.new_agent(), endpoint: endpoint.into(), token, first_wait }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Sends one request and returns the answer, whatever its status. The observer can stop the wait.
    pub(crate) fn ask(
        &self,
        ask: &Ask<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Answer, Failure> {
        let (client, url) = (self.clone(), ask.url.to_string());
        let if_range = ask.if_range.map(String::from);
        let Ask { head, from, count, .. } = *ask;
        let asked = patiently(observer, move || {
            let if_range = if_range.as_deref();
            client.ask_and_wait(&Ask { url: &url, head, from, count, if_range })
        });
        asked.map_err(Failure::Final)?
    }

    fn ask_and_wait(&self, ask: &Ask<'_>) -> Result<Answer, Failure> {
        let mut url = ask.url.to_string();
        let mut hops = Vec::new();
        loop {
            let response = self.send(&url, ask)?;
            let location = text(response.headers(), "location").map(|to| join(&url, to));
            let Some(location) = location.filter(|_| response.status().is_redirection()) else {
                return Ok(Answer { response, hops });
            };
            let leaves = origin(&location) != origin(&url);
            if ask.head && leaves {
                return Ok(Answer { response, hops });
            }
            let wrong = |reason: &str| {
                Failure::Final(HubError::Answer { url: shown(&url), reason: reason.into() })
            };
            if url.starts_with("https:") && !location.starts_with("https:") {
                return Err(wrong("it redirects from HTTPS to another protocol"));
            }
            if hops.len() == MAX_REDIRECTS {
                return Err(wrong("it redirects too often"));
            }
            hops.insert(0, response.headers().clone());
            url = location;
        }
    }

    fn send(&self, url: &str, ask: &Ask<'_>) -> Result<Response<Body>, Failure> {
        let request = if ask.head { self.agent.head(url) } else { self.agent.get(url) };
        // Lengths and ranges must refer to the uncompressed file.
        let mut request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = self.token.as_ref().filter(|_| origin(url) == origin(&self.endpoint)) {
            request = request.header(header::AUTHORIZATION, token.header());
        }
        let range = match ask.count {
            Some(count) => Some(format!("bytes={}-{}", ask.from, ask.from + count.max(1) - 1)),
            None if ask.from > 0 => Some(format!("bytes={}-", ask.from)),
            None => None,
        };
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
            if let Some(tag) = ask.if_range {
                request = request.header(header::IF_RANGE, tag);
            }
        }
        request.call().map_err(|error| connection(url, error))
    }

    /// Repeats `attempt` until it succeeds, fails permanently, or fails [`ATTEMPTS`] times without progress.
    /// `progress` returns the bytes so far.
    pub(crate) fn insist<T>(
        &self,
        observer: &mut dyn Observer,
        mut attempt: impl FnMut(&mut dyn Observer) -> Result<T, Failure>,
        progress: impl Fn() -> u64,
    ) -> Result<T, HubError> {
        let (mut number, mut furthest) = (0, progress());
        loop {
            let (error, asked) = match attempt(observer) {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(error, asked)) => (error, asked),
            };
            if progress() > furthest {
                (number, furthest) = (0, progress());
            }
            number += 1;
            if number >= ATTEMPTS {
                return Err(error);
            }
            let own = self.first_wait.saturating_mul(1 << (number - 1).min(16));
            let wait = asked.unwrap_or(own).min(LONGEST_WAIT);
            proceed(observer.retrying(&Retrying { error: &error, wait }))?;
            let until = Instant::now() + wait;
            while Instant::now() < until {
                wait_slice_until(observer, until)?;
            }
        }
    }
}

/// Waits a fraction of a second. The observer can stop the work.
pub(crate) fn wait_slice(observer: &mut dyn Observer) -> Result<(), HubError> {
    wait_slice_until(observer, Instant::now() + Duration::from_secs(1))
}

fn wait_slice_until(observer: &mut dyn Observer, until: Instant) -> Result<(), HubError> {
    const SLICE: Duration = Duration::from_millis(100);
    proceed(observer.waiting())?;
    std::thread::sleep(until.saturating_duration_since(Instant::now()).min(SLICE));
    Ok(())
}

/// Returns a header as text, trimmed.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Returns the failure of a broken connection.
pub(crate) fn connection(url: &str, error: ureq::Error) -> Failure {
    use ureq::Error;
    let again = matches!(
        error,
        Error::Timeout(_)
            | Error::Io(_)
            | Error::HostNotFound
            | Error::ConnectionFailed
            | Error::Protocol(_)
    );
    let error = HubError::Connection { url: shown(url), source: Box::new(error) };
    if again { Failure::Again(error, None) } else { Failure::Final(error) }
}

/// Returns the failure of a request, by the status of the answer.
pub(crate) fn refusal(url: &str, answer: Answer) -> Failure {
    let status = answer.status();
    let url = shown(url);
    if status == StatusCode::TOO_MANY_REQUESTS {
        let wait = asked_wait(answer.response.headers());
        return Failure::Again(HubError::RateLimited { url, wait }, wait);
    }
    let again = status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT;
    let wait = asked_wait(answer.response.headers());
    let stated = answer.header("x-error-message").map(String::from);
    let text = stated.unwrap_or_else(|| {
        let kind = answer.header("content-type").unwrap_or_default();
        if !kind.starts_with("text/plain") {
            return String::new();
        }
        let mut body = answer.response.into_body();
        body.with_config().limit(MAX_MESSAGE).read_to_string().unwrap_or_default()
    });
    let error = HubError::Status { url, status: status.as_u16(), text };
    if again { Failure::Again(error, wait) } else { Failure::Final(error) }
}

/// Returns the wait that a server requests: `Retry-After` in seconds, or the time until the window of the
/// hub's `RateLimit` header ends. Dates are ignored, because clocks differ.
fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text(headers, "retry-after").and_then(|wait| wait.parse().ok()).or_else(|| {
        let limit = text(headers, "ratelimit")?;
        limit.split(';').find_map(|part| part.trim().strip_prefix("t=")?.parse().ok())
    });
    seconds.map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_from_either_header() {
        let wait = |name: &'static str, value: &'static str| {
            asked_wait(&HeaderMap::from_iter([(
                header::HeaderName::from_static(name),
                header::HeaderValue::from_static(value),
            )]))
        };
        assert_eq!(wait("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("ratelimit", "\"api\";r=0;t=55"), Some(Duration::from_secs(55)));
        assert_eq!(wait("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }
}
