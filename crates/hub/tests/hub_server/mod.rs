//! A stand-in of the hub and of the host that it redirects large files to.

#![allow(dead_code, reason = "each test uses some items")]

use opensora_files::hex;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// A repository that does not exist.
pub(crate) const MISSING: &str = "owner/other";

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as it came; names of headers are in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    /// How many requests of this method for this path there were before.
    pub(crate) number: usize,
}

impl Request {
    /// Returns the first and, if stated, the last byte of the requested range.
    pub(crate) fn range(&self) -> Option<(usize, Option<usize>)> {
        let (first, last) = self.headers.get("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// Bytes of the body that are sent before the connection is closed.
    pub(crate) cut: Option<usize>,
    /// The connection stays open in silence for so long then.
    pub(crate) silence: Duration,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: vec![], body: vec![], cut: None, silence: Duration::ZERO }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Returns an answer with the bytes, or with their requested range.
    pub(crate) fn bytes(bytes: &[u8], request: &Request) -> Self {
        match request.range() {
            None => Self { body: bytes.to_vec(), ..Self::status(200) },
            Some((first, _)) if first >= bytes.len() => Self::status(416),
            Some((first, last)) => {
                let last = last.unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
                let range = format!("bytes {first}-{last}/{}", bytes.len());
                let body = bytes[first..=last].to_vec();
                Self { body, ..Self::status(206) }.with("Content-Range", range)
            }
        }
    }

    pub(crate) fn cut(self, after: usize) -> Self {
        Self { cut: Some(after), ..self }
    }
}

/// A repository of the stand-in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Repo {
    /// Name and bytes; names ending in `.safetensors`, `.bin` or `.pth` are large files.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Repo {
    pub(crate) fn with(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.insert(name.into(), bytes.into());
        self
    }
}

type Overrides = dyn Fn(&Request) -> Option<Answer> + Send + Sync;

/// Runs until the test's process ends.
pub(crate) struct Server {
    pub(crate) url: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Serves `repo` under every name but [`MISSING`]; `overrides` may answer otherwise.
    pub(crate) fn start(
        repo: Repo,
        overrides: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::new(Mutex::new(vec![]));
        let shared: Arc<(Repo, Box<Overrides>)> = Arc::new((repo, Box::new(overrides)));
        let requests = log.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, requests) = (shared.clone(), requests.clone());
                // A client that hangs up is no matter.
                thread::spawn(move || serve(stream, &shared, port, &requests).ok());
            }
        });
        Self { url: format!("http://127.0.0.1:{port}"), log }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// Requests whose path begins so.
    pub(crate) fn requests_for(&self, method: &str, start: &str) -> Vec<Request> {
        let fits = |request: &Request| request.method == method && request.path.starts_with(start);
        self.requests().into_iter().filter(fits).collect()
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn git_blob(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex(&hasher.finalize())
}

/// Answers as the hub does.
fn answer(repo: &Repo, port: u16, request: &Request) -> Answer {
    let path = request.path.split('?').next().unwrap_or_default();
    if path.contains(MISSING) {
        return Answer::status(401).with("X-Error-Code", "RepoNotFound");
    }
    if path.starts_with("/api/models/") && path.contains("/revision/") {
        let names: Vec<String> =
            repo.files.keys().map(|name| format!("{{\"rfilename\": \"{name}\"}}")).collect();
        let body = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{}]}}", names.join(", "));
        return Answer { body: body.into_bytes(), ..Answer::status(200) };
    }
    if let Some(digest) = path.strip_prefix("/cdn/") {
        return match repo.files.values().find(|bytes| sha256(bytes) == digest) {
            Some(bytes) => Answer::bytes(bytes, request).with("ETag", "\"of the other host\""),
            None => Answer::status(404),
        };
    }
    let Some((_, rest)) = path.split_once("/resolve/") else { return Answer::status(404) };
    let (revision, file) = rest.split_once('/').unwrap_or((rest, ""));
    if ![COMMIT, "main"].contains(&revision) {
        return Answer::status(404).with("X-Error-Code", "RevisionNotFound");
    }
    let Some(bytes) = repo.files.get(file) else {
        return Answer::status(404).with("X-Error-Code", "EntryNotFound");
    };
    let is_large = [".safetensors", ".bin", ".pth"].iter().any(|ending| file.ends_with(ending));
    if !is_large {
        return Answer::bytes(bytes, request)
            .with("X-Repo-Commit", COMMIT)
            .with("ETag", format!("\"{}\"", git_blob(bytes)));
    }
    // Another name of this machine is another host.
    let digest = sha256(bytes);
    Answer { body: b"Found. Redirecting".to_vec(), ..Answer::status(302) }
        .with("X-Repo-Commit", COMMIT)
        .with("X-Linked-Etag", format!("\"{digest}\""))
        .with("X-Linked-Size", bytes.len().to_string())
        .with("ETag", "\"of the redirect\"")
        .with("Location", format!("http://localhost:{port}/cdn/{digest}?signature=secret"))
}

fn serve(
    mut stream: TcpStream,
    shared: &(Repo, Box<Overrides>),
    port: u16,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = first.split(' ').map(String::from);
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    let request = {
        let mut log = log.lock().unwrap();
        let same = |earlier: &&Request| earlier.path == path && earlier.method == method;
        let number = log.iter().filter(same).count();
        log.push(Request { method, path, headers, number });
        log[log.len() - 1].clone()
    };
    let answer = (shared.1)(&request).unwrap_or_else(|| self::answer(&shared.0, port, &request));
    let mut head = format!("HTTP/1.1 {} Said\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("Content-Length: {}\r\n\r\n", answer.body.len());
    stream.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())])?;
        stream.flush()?;
        thread::sleep(answer.silence);
    }
    Ok(())
}

/// Bytes that repeat late enough to tell where they are from.
pub(crate) fn bytes(count: usize, seed: u32) -> Vec<u8> {
    let next = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*state >> 24) as u8)
    };
    std::iter::repeat_n((), count).scan(seed, |state, ()| next(state)).collect()
}
