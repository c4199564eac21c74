//! Malicious requests: each gets an error response or its connection is closed, memory is bounded, and the
//! running job is completed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod fake;

use client::{Response, Running, wait};
use serde_json::json;
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

const STEP: Duration = Duration::from_millis(10);

/// Runs `attack` on a server with a running job, and checks that the job is completed in its first
/// attempt and that the server responds.
fn unharmed(server: &Running, attack: impl FnOnce()) {
    let client = server.client();
    let made = client.post("/v1/videos", &json!({"prompt": "fog", "steps": 100})).json();
    let id = made["id"].as_str().unwrap();
    wait(&client, id, "in_progress");
    attack();
    wait(&client, id, "completed");
    assert_eq!(server.queue.get(id).unwrap().job.state.attempts, 1);
    assert_eq!(client.get("/health").status, 200);
}

/// Returns the resident memory of this process in bytes.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn sizes_beyond_the_limits_are_rejected() {
    let server = Running::start(STEP);
    unharmed(&server, || {
        for body in [
            json!({"prompt": "fog", "size": "1000000x1000000"}),
            json!({"prompt": "fog", "size": "18446744073709551616x8"}),
            json!({"prompt": "fog", "num_frames": u64::MAX}),
            json!({"prompt": "fog", "seconds": 1e308}),
            json!({"prompt": "fog", "steps": 1_000_000}),
            json!({"prompt": "fog", "fps": 1e-300, "seconds": 1e300}),
            json!({"prompt": "x".repeat(50_000)}),
            json!({"prompt": "impossible"}),
        ] {
            let response = server.client().post("/v1/videos", &body);
            assert_eq!(response.status, 400, "{body}: {response:?}");
            assert!(response.json()["error"]["message"].as_str().unwrap().len() < 1000);
        }
    });
}

#[test]
fn bodies_that_are_no_requests_are_rejected() {
    let server = Running::start(STEP);
    let client = server.client();
    let deep = "[".repeat(60_000);
    unharmed(&server, || {
        for (body, status) in [
            (b"".as_slice(), 400),
            (b"{", 400),
            (b"null", 400),
            (b"[1]", 400),
            (b"{\"prompt\": \"\xff\xfe\"}", 400),
            (b"{\"prompt\": \"\\ud800\"}", 400),
            (b"\x00\x01\x02", 400),
            (deep.as_bytes(), 400),
        ] {
            let kind = [("Content-Type", "application/json")];
            let response = client.request("POST", "/v1/videos", &kind, body);
            assert_eq!(response.status, status, "{response:?}");
            assert_eq!(response.json()["error"]["code"], "invalid_json");
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded", "", "multipart/mixed"] {
            let response =
                client.request("POST", "/v1/videos", &[("Content-Type", kind)], b"prompt=fog");
            assert_eq!(response.status, 415, "{kind}");
        }
        for body in [
            b"".as_slice(),
            b"--line",
            b"--line\r\n\r\n\r\n--line--",
            b"--line\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\n\xff\r\n--line--\r\n",
        ] {
            let kind = [("Content-Type", "multipart/form-data; boundary=line")];
            let response = client.request("POST", "/v1/videos", &kind, body);
            assert_eq!(response.status, 400, "{response:?}");
        }
        let none = [("Content-Type", "multipart/form-data")];
        assert_eq!(client.request("POST", "/v1/videos", &none, b"x").status, 400);
    });
}

#[test]
fn paths_that_are_no_text_are_rejected() {
    let server = Running::start(STEP);
    let client = server.client();
    unharmed(&server, || {
        for path in
            ["/v1/videos/%FF", "/v1/videos/%FF/content", "/v1/videos/%FF/events", "/v1/models/%FF"]
        {
            let response = client.get(path);
            assert_eq!(response.status, 404, "{path}: {response:?}");
            assert_eq!(response.json()["error"]["code"], "not_found", "{path}");
        }
    });
}

#[cfg(target_os = "linux")]
#[test]
fn bodies_of_100_megabytes_are_cut_off() {
    let server = Running::start(STEP);
    let client = server.client();
    let before = resident();
    unharmed(&server, || {
        for declared in ["Content-Length: 104857600", "Transfer-Encoding: chunked"] {
            let mut stream = client.connect();
            let head = format!(
                "POST /v1/videos HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{declared}\r\n\r\n",
                client.host
            );
            stream.write_all(head.as_bytes()).unwrap();
            let block = vec![b' '; 1 << 20];
            let mut sent = 0;
            for _ in 0..100 {
                let chunk = match declared.starts_with("Content") {
                    true => block.clone(),
                    false => [b"100000\r\n".as_slice(), &block, b"\r\n"].concat(),
                };
                if stream.write_all(&chunk).is_err() {
                    break;
                }
                sent += 1;
            }
            assert!(sent < 100, "{declared}: all of it was taken");
            // There is no response if the connection was reset before.
            if let Ok(response) = Response::read(&mut stream) {
                assert_eq!(response.status, 413, "{declared}");
            }
        }
    });
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
}

#[test]
fn heads_without_end_are_cut_off() {
    let server = Running::start(STEP);
    let client = server.client();
    unharmed(&server, || {
        let line =
            format!("GET /{} HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(1 << 20), client.host);
        let many = format!(
            "GET / HTTP/1.1\r\nHost: {}\r\n{}\r\n",
            client.host,
            (0..10_000).map(|index| format!("X-{index}: y\r\n")).collect::<String>()
        );
        for request in [line, many] {
            // The connection is closed, or the response is 4xx.
            if let Ok(response) = client.raw(request.as_bytes()) {
                assert!((400..500).contains(&response.status), "{response:?}");
            }
        }
        for request in
            ["\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\u{16}\u{3}\u{1}"]
        {
            let mut stream = client.connect();
            stream.write_all(request.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            if let Ok(response) = Response::read(&mut stream) {
                assert!((400..600).contains(&response.status), "{response:?}");
            }
        }
    });
}

#[test]
fn slow_clients_are_closed() {
    let server = Running::start_with(STEP, |options| {
        options.head_timeout = Duration::from_millis(300);
        options.write_timeout = Duration::from_millis(300);
    });
    let client = server.client();
    let closed_after = |mut stream: TcpStream| {
        let began = Instant::now();
        let mut byte = [0; 4096];
        while stream.read(&mut byte).is_ok_and(|read| read > 0) {}
        began.elapsed()
    };
    unharmed(&server, || {
        // Clients that send nothing, send half a head, or keep the connection open after a response.
        assert!(closed_after(client.connect()) < Duration::from_secs(5));
        let mut half = client.connect();
        half.write_all(b"GET / HTTP/1.1\r\nHost: local").unwrap();
        assert!(closed_after(half) < Duration::from_secs(5));
        let mut idle = client.connect();
        let request = format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", client.host);
        idle.write_all(request.as_bytes()).unwrap();
        assert!(closed_after(idle) < Duration::from_secs(5));
        // A client that sends the head byte by byte.
        let mut drop_by_drop = client.connect();
        let began = Instant::now();
        for byte in request.bytes().cycle() {
            if drop_by_drop.write_all(&[byte.max(b'a')]).is_err() {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

/// Connections of clients that send requests but do not read responses are closed.
#[test]
fn clients_that_do_not_read_are_closed() {
    let server = Running::start_with(STEP, |options| {
        options.write_timeout = Duration::from_millis(300);
        options.max_connections = 4;
    });
    let client = server.client();
    unharmed(&server, || {
        let mut stream = client.connect();
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", client.host);
        // Enough responses to fill all buffers.
        stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        let began = Instant::now();
        loop {
            if stream.write_all(request.repeat(100).as_bytes()).is_err() {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "it is still served");
        }
    });
}

#[test]
fn clients_that_vanish_are_forgotten() {
    let server = Running::start(STEP);
    let client = server.client();
    unharmed(&server, || {
        let id = server.queue.list(None, 1, true).unwrap().0[0].job.spec.id.clone();
        for _ in 0..50 {
            let mut stream = client.connect();
            let head =
                format!("GET /v1/videos/{id}/events HTTP/1.1\r\nHost: {}\r\n\r\n", client.host);
            stream.write_all(head.as_bytes()).unwrap();
            let mut half = client.connect();
            let head = format!(
                "POST /v1/videos HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{{",
                client.host
            );
            half.write_all(head.as_bytes()).unwrap();
        }
    });
    // Incomplete requests create no jobs.
    assert_eq!(server.queue.list(None, 9, true).unwrap().0.len(), 1);
    let began = Instant::now();
    loop {
        let metrics = String::from_utf8(client.get("/metrics").body).unwrap();
        // The only open connection is the one of this request.
        if metrics.lines().any(|line| line == "opensora_http_connections_open 1") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{metrics}");
        std::thread::sleep(STEP);
    }
}

#[test]
fn a_thousand_connections_at_once() {
    let server = Running::start(STEP);
    let client = server.client();
    unharmed(&server, || {
        let request = format!(
            "GET /v1/videos HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            client.host
        );
        // The default limit is 1,024 open files: 500 connections at two ends each are 1,000.
        let (mut served, mut rejected, mut closed) = (0, 0, 0);
        for _ in 0..3 {
            let streams: Vec<TcpStream> = (0..350).map(|_| client.connect()).collect();
            for mut stream in streams {
                let sent = stream.write_all(request.as_bytes());
                match sent.and_then(|()| Response::read(&mut stream)) {
                    Ok(response) if response.status == 200 => served += 1,
                    Ok(response) => {
                        assert_eq!(response.status, 503, "{response:?}");
                        rejected += 1;
                    }
                    Err(_) => closed += 1,
                }
            }
        }
        assert_eq!(served + rejected + closed, 1050);
        assert!(served >= 3 * 250, "{served} of 1050 were served");
    });
    let metrics = String::from_utf8(client.get("/metrics").body).unwrap();
    assert!(metrics.contains("opensora_http_connections_rejected_total"));
}

#[test]
fn paths_do_not_lead_out_of_the_folder() {
    let server = Running::start(STEP);
    let client = server.client();
    unharmed(&server, || {
        for path in [
            "/v1/videos/..",
            "/v1/videos/../../../etc/passwd",
            "/v1/videos/..%2f..%2f..%2fetc%2fpasswd/content",
            "/v1/videos/%2e%2e/content",
            "/v1/videos/%00/content",
            "/v1/videos/%ff/content",
            "/v1/videos/video_00000000000000000000000000000000/content",
            "/v1/videos//content",
            "//etc/passwd",
            "/jobs",
            "/lock",
        ] {
            let response = client.get(path);
            assert!(matches!(response.status, 400 | 404), "{path}: {response:?}");
            let text = String::from_utf8_lossy(&response.body).into_owned();
            assert!(!text.contains("root:"), "{path}: {text}");
        }
        let id = server.queue.list(None, 1, true).unwrap().0[0].job.spec.id.clone();
        for query in ["variant=../state.json", "variant=request", "file=state.json", "variant="] {
            assert_eq!(
                client.get(&format!("/v1/videos/{id}/content?{query}")).status,
                400,
                "{query}"
            );
        }
        for query in
            ["limit=0", "limit=101", "limit=-1", "limit=x", "order=up", "after=../..", "x=1"]
        {
            let response = client.get(&format!("/v1/videos?{query}"));
            assert!(matches!(response.status, 400 | 404), "{query}: {response:?}");
        }
    });
}

#[test]
fn other_origins_and_names_are_rejected() {
    let server = Running::start(STEP);
    let own = server.client();
    unharmed(&server, || {
        let body = json!({"prompt": "fog"}).to_string();
        let post = |headers: &[(&str, &str)]| {
            let headers = [headers, &[("Content-Type", "application/json")]].concat();
            own.request("POST", "/v1/videos", &headers, body.as_bytes())
        };
        for headers in [
            [("Origin", "http://evil.example")].as_slice(),
            &[("Origin", "null")],
            &[("Sec-Fetch-Site", "cross-site")],
            &[("Sec-Fetch-Site", "same-site")],
        ] {
            let response = post(headers);
            assert_eq!(response.status, 403, "{headers:?}");
            assert_eq!(response.json()["error"]["code"], "foreign_origin");
        }
        // A form on a page of another origin: browsers send it without a preflight.
        let form = [
            ("Origin", "http://evil.example"),
            ("Content-Type", "multipart/form-data; boundary=x"),
        ];
        assert_eq!(own.request("POST", "/v1/videos", &form, b"--x--").status, 403);
        // A preflight of a page of another origin gets no permission.
        let preflight = own.request(
            "OPTIONS",
            "/v1/videos",
            &[("Origin", "http://evil.example"), ("Access-Control-Request-Method", "POST")],
            b"",
        );
        assert_eq!(preflight.status, 403);
        assert!(preflight.header("access-control-allow-origin").is_none());
        let same = format!("http://{}", own.host);
        assert_eq!(post(&[("Origin", &same), ("Sec-Fetch-Site", "same-origin")]).status, 200);
        for host in ["evil.example", "localhost.evil.example:80", ""] {
            let response = own
                .raw(
                    format!("GET /v1/videos HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
                        .as_bytes(),
                )
                .unwrap();
            assert!(matches!(response.status, 400 | 403), "{host}: {response:?}");
        }
        for head in [
            "GET /v1/videos HTTP/1.1\r\nConnection: close\r\n\r\n",
            "GET /v1/videos HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
            "GET http://evil.example/v1/videos HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        ] {
            let response = own.raw(head.as_bytes()).unwrap();
            assert!(matches!(response.status, 400 | 403), "{head}: {response:?}");
        }
    });
}

#[test]
fn too_many_followers_leave_room_for_others() {
    let server = Running::start(STEP);
    let client = server.client();
    unharmed(&server, || {
        let id = server.queue.list(None, 1, true).unwrap().0[0].job.spec.id.clone();
        let head = format!("GET /v1/videos/{id}/events HTTP/1.1\r\nHost: {}\r\n\r\n", client.host);
        let followers: Vec<TcpStream> = (0..64)
            .map(|_| {
                let mut stream = client.connect();
                stream.write_all(head.as_bytes()).unwrap();
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                stream
            })
            .collect();
        let one_more = client.get(&format!("/v1/videos/{id}/events"));
        assert_eq!(one_more.status, 503, "{one_more:?}");
        assert_eq!(client.get("/v1/videos").status, 200);
        drop(followers);
    });
}

#[test]
fn servers_that_others_reach_need_a_token() {
    use opensora_serve::{Security, ServeError, Server, ServerOptions};
    let bind_as = |host: &str, token: Option<&str>, hosts: &Vec<String>| {
        let security = Security { token: token.map(String::from), hosts: hosts.clone() };
        let options = ServerOptions {
            host: host.parse().unwrap(),
            port: 0,
            security,
            ..ServerOptions::default()
        };
        Server::bind(options)
    };
    let bind = |host: &str, token: Option<&str>| bind_as(host, token, &Vec::new());
    assert!(matches!(bind("0.0.0.0", None), Err(ServeError::NoToken { .. })));
    assert!(matches!(bind("::", None), Err(ServeError::NoToken { .. })));
    assert!(matches!(bind("0.0.0.0", Some("")), Err(ServeError::Token)));
    assert!(matches!(bind("127.0.0.1", Some("a b")), Err(ServeError::Token)));
    assert!(matches!(bind("0.0.0.0", Some("secret")), Err(ServeError::ShortToken { .. })));
    assert!(bind("0.0.0.0", Some("0123456789abcdef")).is_ok());
    let hosts = vec!["videos.example".to_string()];
    let without = bind_as("127.0.0.1", None, &hosts);
    assert!(matches!(without, Err(ServeError::NoTokenForName { .. })));
    assert!(bind_as("127.0.0.1", Some("secret"), &hosts).is_ok());
    assert!(bind("127.0.0.1", None).is_ok());
}
