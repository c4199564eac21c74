//! A server in this process, and a client with hand-written HTTP, so that it can send malformed requests.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "several tests share this module, each uses some items"
)]

use crate::fake::FakeEngine;
use opensora_serve::{Queue, QueueOptions, Server, ServerOptions, Stopper};
use serde_json::Value;
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A server in this process.
pub struct Running {
    pub queue: Arc<Queue>,
    address: SocketAddr,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
    _folder: TempDir,
}

impl Running {
    /// Starts a server whose engine takes a given time per step.
    pub fn start(step: Duration) -> Self {
        Self::start_with(step, |_| {})
    }

    /// Starts a server with the given options.
    pub fn start_with(step: Duration, change: impl FnOnce(&mut ServerOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = Arc::new(FakeEngine::new(step));
        let queue = Queue::open(folder.path(), engine, QueueOptions::default()).unwrap();
        let mut options = ServerOptions { port: 0, ..ServerOptions::default() };
        change(&mut options);
        let server = Server::bind(options).unwrap();
        let (address, stopper) = (server.address(), server.stopper());
        let served = Arc::clone(&queue);
        let thread = std::thread::spawn(move || server.run(served).unwrap());
        Self { queue, address, stopper, thread: Some(thread), _folder: folder }
    }

    pub fn client(&self) -> Client {
        Client { address: self.address, host: self.address.to_string(), token: None }
    }

    pub fn stop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sends one request per connection.
pub struct Client {
    pub address: SocketAddr,
    pub host: String,
    pub token: Option<String>,
}

/// A response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body has the length that the head says, or its last chunk.
    pub complete: bool,
}

impl Client {
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        let kind = [("Content-Type", "application/json")];
        self.request("POST", path, &kind, body.to_string().as_bytes())
    }

    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        self.try_request(method, path, headers, body).unwrap()
    }

    pub fn try_request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.host);
        if let Some(token) = &self.token {
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        self.raw(&[head.as_bytes(), body].concat())
    }

    /// Sends bytes as they are and reads until the server closes the connection.
    pub fn raw(&self, bytes: &[u8]) -> io::Result<Response> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(bytes)?;
        Response::read(&mut stream)
    }
}

impl Response {
    /// Reads until the server closes the connection; a reset after the response counts as closed.
    pub fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut bytes = Vec::new();
        if let Err(error) = stream.read_to_end(&mut bytes)
            && bytes.is_empty()
        {
            return Err(error);
        }
        Self::parse(&bytes).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_string()))
            .collect();
        let body = bytes[end + 4..].to_vec();
        let mut response = Self { status, headers, body, complete: false };
        if response.header("transfer-encoding") == Some("chunked") {
            response.complete = response.body.ends_with(b"\r\n0\r\n\r\n");
            response.body = unchunked(&response.body);
        } else {
            let length = response.header("content-length").and_then(|length| length.parse().ok());
            response.complete = length == Some(response.body.len());
        }
        Some(response)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The events of a stream: names and data.
    pub fn events(&self) -> Vec<(String, Value)> {
        let text = std::str::from_utf8(&self.body).unwrap();
        text.split("\n\n")
            .filter_map(|event| {
                let (name, data) = event.trim().split_once('\n')?;
                let data = serde_json::from_str(data.strip_prefix("data: ")?).unwrap();
                Some((name.strip_prefix("event: ")?.to_string(), data))
            })
            .collect()
    }
}

/// Removes the framing of chunks; a truncated stream ends where it was cut off.
fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let Some(length) = std::str::from_utf8(&bytes[..end])
            .ok()
            .and_then(|digits| usize::from_str_radix(digits, 16).ok())
        else {
            break;
        };
        let chunk = &bytes[end + 2..];
        whole.extend(&chunk[..length.min(chunk.len())]);
        if length == 0 || chunk.len() < length + 2 {
            break;
        }
        bytes = &chunk[length + 2..];
    }
    whole
}

/// Waits until a job has a status and returns it.
pub fn wait(client: &Client, id: &str, status: &str) -> Value {
    let began = Instant::now();
    loop {
        let video = client.get(&format!("/v1/videos/{id}")).json();
        if video["status"] == status {
            return video;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{video}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
