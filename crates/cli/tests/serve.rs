//! `opensora serve` with the bundled model: a request gives a video, and its record reproduces the video.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PROMPT: &str = "a red circle moves to the right on a black background";

/// A server in a separate process, which is killed when the test ends.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_opensora"))
            .args([
                "serve", "--port", "0", "--json", "--quiet", "--device", "flex", "--out", "videos",
            ])
            .current_dir(folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let started: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(started["model"], "demo");
        let address = started["url"].as_str().unwrap().strip_prefix("http://").unwrap().to_string();
        Self { child, address }
    }

    /// Sends a request; returns the status and the body.
    fn send(&self, method: &str, path: &str, body: &str) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).unwrap();
        let end = response.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let status = std::str::from_utf8(&response[9..12]).unwrap().parse().unwrap();
        (status, response.split_off(end + 4))
    }

    fn json(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, body) = self.send(method, path, &body.to_string());
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    fn create(&self, steps: usize) -> String {
        let body = json!({"prompt": PROMPT, "num_frames": 4, "steps": steps, "seed": 5});
        self.json("POST", "/v1/videos", &body)["id"].as_str().unwrap().to_string()
    }

    fn wait(&self, id: &str, status: &str) -> Value {
        let began = Instant::now();
        loop {
            let video = self.json("GET", &format!("/v1/videos/{id}"), &Value::Null);
            if video["status"] == status {
                return video;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{video}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_bundled_model_is_served_and_jobs_survive_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let first = server.create(3);
    let video = server.wait(&first, "completed");
    assert_eq!((&video["size"], &video["num_frames"]), (&json!("48x48"), &json!(4)));
    let (status, mp4) = server.send("GET", &format!("/v1/videos/{first}/content"), "");
    assert_eq!((status, &mp4[4..8]), (200, b"ftyp".as_slice()));

    // The record reproduces the video.
    let record = folder.path().join("videos/jobs").join(&first).join("video.mp4.json");
    let again = Command::new(env!("CARGO_BIN_EXE_opensora"))
        .args(["sample", "--quiet", "--out", "again.mp4", "--from-record"])
        .arg(record)
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(again.status.success(), "{again:?}");
    let read = |path: &Path| opensora::video::mp4::read(path).unwrap();
    let served = folder.path().join("served.mp4");
    std::fs::write(&served, &mp4).unwrap();
    assert_eq!(read(&served), read(&folder.path().join("again.mp4")));

    // The event stream has previews of the VAE's latents.
    let followed = server.create(40);
    let (_, events) = server.send("GET", &format!("/v1/videos/{followed}/events"), "");
    assert!(String::from_utf8_lossy(&events).contains("data:image/png;base64,"));
    server.wait(&followed, "completed");

    let (running, waiting) = (server.create(200), server.create(2));
    server.wait(&running, "in_progress");
    drop(server);
    let server = Server::start(folder.path());
    server.json("POST", &format!("/v1/videos/{running}/cancel"), &json!({}));
    server.wait(&waiting, "completed");
    server.wait(&first, "completed");
    let list = server.json("GET", "/v1/videos", &Value::Null);
    assert_eq!(list["data"].as_array().unwrap().len(), 4);
}

#[test]
fn a_server_that_cannot_listen_leaves_the_jobs_alone() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let job = server.create(200);
    server.wait(&job, "in_progress");
    drop(server);
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_opensora"))
        .args(["serve", "--device", "flex", "--out", "videos", "--port", &port])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot listen on"), "{output:?}");
    let state = folder.path().join("videos/jobs").join(&job).join("state.json");
    let state: Value = serde_json::from_str(&std::fs::read_to_string(state).unwrap()).unwrap();
    // As the killed server left it: a queue that was opened would have written `queued`.
    assert_eq!((&state["status"], &state["attempts"]), (&json!("in_progress"), &json!(1)));
}

#[test]
fn bad_options_are_one_line() {
    let folder = tempfile::tempdir().unwrap();
    for (args, says) in [
        (["--host", "0.0.0.0"].as_slice(), "a token is required"),
        (&["--host", "no such host"], "--host"),
        (&["--token-file", "missing"], "--token-file: missing"),
        (&["--max-connections", "0"], "--max-connections"),
        (&["--max-jobs", "0"], "--max-jobs"),
        (&["--allow-host", "videos.example.org"], "a token is required"),
        (&["--model", "missing"], "--model"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_opensora"))
            .args(["serve", "--port", "0", "--device", "flex"])
            .args(args)
            .current_dir(folder.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains(says), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn limits_that_reject_requests_without_a_size_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let limits = ["--max-side", "32", "--max-pixels", "1", "--max-disk", "1KB"];
    let warnings = |more: &[&str]| {
        // No machine has this address (RFC 5737), so the server does not start.
        let output = Command::new(env!("CARGO_BIN_EXE_opensora"))
            .args([
                "serve",
                "--host",
                "192.0.2.1",
                "--token",
                "a-token-of-a-test",
                "--device",
                "flex",
            ])
            .args(more)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("cannot listen on"), "{stderr}");
        let lines = stderr.lines().filter(|line| line.starts_with("warning: "));
        lines.map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(warnings(&[]), [""; 0]);
    assert_eq!(warnings(&[&limits[..], &["-q"]].concat()), [""; 0]);
    let lines = warnings(&limits);
    for (line, words) in lines.iter().zip([
        ["--max-side is 32", "48"],
        ["--max-pixels is 1", "27648"],
        ["--max-disk is 1000", "130048"],
    ]) {
        assert!(words.iter().all(|words| line.contains(words)), "{lines:?}");
    }
    assert_eq!(lines.len(), 3, "{lines:?}");
}
