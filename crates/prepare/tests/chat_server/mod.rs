//! A mock server of a vision-language model: it identifies the clip in the images, and each test configures
//! the answers.

#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod clips;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Red of clip k is k times this; blue is [`BLUE`], so clips differ from the grey images of a check.
pub(crate) const RED_STEP: u8 = 10;
pub(crate) const BLUE: u8 = 230;

/// A received request.
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Value,
    /// Centre pixel of each image.
    pub(crate) colours: Vec<[u8; 3]>,
    /// The clip in the images; `None` for the grey images of a check.
    pub(crate) clip: Option<usize>,
    pub(crate) at: Instant,
}

/// An answer.
#[derive(Clone)]
pub(crate) enum Answer {
    /// A caption.
    Says(String),
    /// A body with status 200.
    Body(String),
    /// Another status, a header line or none, a body.
    Status(u16, &'static str, String),
    /// Half an answer, then a closed connection.
    HangsUp,
    /// A closed connection without answer.
    Leaves,
    /// No answer for this time.
    Stalls(Duration),
    /// No answer, and no further connections.
    Dies,
}

/// The stand-in server. Its thread ends with the test's process.
pub(crate) struct ChatServer {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Arc<Request>>>>,
}

impl ChatServer {
    /// Answers each request with `answer`, which gets the number of earlier requests for the clip.
    pub(crate) fn start(
        answer: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answer, log) = (Arc::new(answer), Arc::clone(&requests));
        let is_dead = Arc::new(AtomicBool::new(false));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if is_dead.load(Ordering::SeqCst) {
                    break;
                }
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                let is_dead = Arc::clone(&is_dead);
                std::thread::spawn(move || {
                    // The client can have closed the connection.
                    if let Ok(true) = serve(stream, &*answer, &log) {
                        is_dead.store(true, Ordering::SeqCst);
                        // Until the listener is closed.
                        while TcpStream::connect(address).is_ok() {}
                    }
                });
            }
        });
        Self { address, requests }
    }

    /// Returns all requests so far.
    pub(crate) fn requests(&self) -> Vec<Arc<Request>> {
        self.requests.lock().unwrap().clone()
    }

    /// Returns the number of requests for each clip.
    pub(crate) fn counts(&self) -> HashMap<usize, usize> {
        let mut counts = HashMap::new();
        for clip in self.requests().iter().filter_map(|request| request.clip) {
            *counts.entry(clip).or_default() += 1;
        }
        counts
    }
}

/// Serves a connection until it is closed. Returns true if the server dies.
fn serve(
    mut stream: TcpStream,
    answer: &dyn Fn(&Request, usize) -> Answer,
    log: &Mutex<Vec<Arc<Request>>>,
) -> std::io::Result<bool> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read(&mut reader)? {
        let request = Arc::new(request);
        let before = {
            let mut log = log.lock().unwrap();
            log.push(Arc::clone(&request));
            log.iter().filter(|other| other.clip == request.clip).count() - 1
        };
        let (status, header, body) = match answer(&request, before) {
            Answer::Says(text) => {
                let choice = json!({"message": {"content": text}, "finish_reason": "stop"});
                (200, "", json!({ "choices": [choice] }).to_string())
            }
            Answer::Body(body) => (200, "", body),
            Answer::Status(status, header, body) => (status, header, body),
            Answer::HangsUp => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"choi")?;
                return Ok(false);
            }
            Answer::Leaves => return Ok(false),
            Answer::Dies => return Ok(true),
            Answer::Stalls(time) => {
                std::thread::sleep(time);
                return Ok(false);
            }
        };
        let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
        let length = body.len();
        let head = format!("HTTP/1.1 {status} -\r\n{header}Content-Length: {length}\r\n\r\n");
        stream.write_all(format!("{head}{body}").as_bytes())?;
    }
    Ok(false)
}

fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut head = Vec::<String>::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.into()),
        }
    }
    let header = |name: &str| {
        head.iter().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_string())
        })
    };
    let length = header("content-length").unwrap().parse().unwrap();
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body).unwrap();
    let content = body["messages"][0]["content"].as_array().unwrap();
    let urls = content.iter().filter_map(|part| part["image_url"]["url"].as_str());
    let colours: Vec<[u8; 3]> = urls.map(middle).collect();
    let clip = colours[0][2].abs_diff(BLUE) < 20;
    let clip = clip.then(|| usize::from((colours[0][0] + RED_STEP / 2) / RED_STEP));
    Ok(Some(Request {
        path: head[0].split(' ').nth(1).unwrap().into(),
        authorization: header("authorization"),
        colours,
        clip,
        body,
        at: Instant::now(),
    }))
}

/// Returns the centre pixel of an image.
fn middle(url: &str) -> [u8; 3] {
    let jpeg = BASE64.decode(url.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
    let image = image::load_from_memory(&jpeg).unwrap().into_rgb8();
    image.get_pixel(image.width() / 2, image.height() / 2).0
}
