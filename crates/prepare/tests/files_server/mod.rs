//! A file server with configurable faults and one request per connection.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// A received request; names of headers are in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    /// Number of earlier requests for this path.
    pub(crate) number: usize,
}

impl Request {
    /// Returns the first byte of the requested range.
    pub(crate) fn range(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// The action after the bytes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Closes the connection.
    Close,
    /// Waits.
    Hang,
    /// Repeats the bytes forever, in chunks.
    Endless,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) after: After,
    /// Bytes of the body that are sent before the connection is closed.
    pub(crate) cut: Option<usize>,
    /// Pause between two pieces of 64 KiB.
    pub(crate) pause: Duration,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        let (headers, body) = (vec![], vec![]);
        Self { status, headers, body, after: After::Close, cut: None, pause: Duration::ZERO }
    }

    pub(crate) fn file(bytes: &[u8]) -> Self {
        Self { body: bytes.to_vec(), ..Self::status(200).with("Content-Type", "video/mp4") }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn cut(self, after: usize) -> Self {
        Self { cut: Some(after), ..self }
    }

    /// Returns a version of a file, whole or the requested range.
    pub(crate) fn version(bytes: &[u8], tag: &str, request: &Request) -> Self {
        let condition = request.headers.get("if-range");
        let same = condition.is_none_or(|wanted| wanted == tag);
        match request.range().filter(|first| same && *first < bytes.len()) {
            Some(first) => Self::range(bytes, first).with("ETag", tag),
            None => Self::file(bytes).with("ETag", tag),
        }
    }

    pub(crate) fn range(bytes: &[u8], first: usize) -> Self {
        let range = format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len());
        Self { status: 206, ..Self::file(&bytes[first..]) }.with("Content-Range", range)
    }
}

/// A server that runs until the test's process ends.
pub(crate) struct Server {
    pub(crate) url: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(vec![]));
        let (answer, requests) = (Arc::new(answer), log.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, requests) = (answer.clone(), requests.clone());
                // The client can have closed the connection.
                thread::spawn(move || serve(stream, &*answer, &requests).ok());
            }
        });
        Self { url, log }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn requests_for(&self, path: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.path == path).collect()
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &dyn Fn(&Request) -> Answer,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or("").to_string();
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    let request = {
        let mut log = log.lock().unwrap();
        let number = log.iter().filter(|earlier: &&Request| earlier.path == path).count();
        log.push(Request { path, headers, number });
        log[log.len() - 1].clone()
    };
    let answer = answer(&request);
    let mut head = format!("HTTP/1.1 {} Said\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let is_framed = answer.headers.iter().any(|(name, _)| *name == "Transfer-Encoding");
    if !is_framed && !answer.headers.iter().any(|(name, _)| *name == "Content-Length") {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let body = &answer.body[..answer.cut.unwrap_or(answer.body.len())];
    match answer.after {
        After::Endless => loop {
            stream.write_all(format!("{:x}\r\n", body.len()).as_bytes())?;
            stream.write_all(body)?;
            stream.write_all(b"\r\n")?;
        },
        after => {
            for piece in body.chunks(1 << 16) {
                stream.write_all(piece)?;
                thread::sleep(answer.pause);
            }
            if after == After::Hang {
                thread::sleep(Duration::from_secs(5));
            }
        }
    }
    Ok(())
}

/// Returns bytes with a long period, which identify their position.
pub(crate) fn bytes(count: usize, seed: u32) -> Vec<u8> {
    let next = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*state >> 24) as u8)
    };
    std::iter::repeat_n((), count).scan(seed, |state, ()| next(state)).collect()
}
