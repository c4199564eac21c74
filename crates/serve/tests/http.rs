//! Tests of the server over real connections, with an engine without a model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod fake;

use client::{Client, Running, wait};
use serde_json::{Value, json};
use std::time::Duration;

const FAST: Duration = Duration::from_millis(1);
const SLOW: Duration = Duration::from_millis(20);

#[test]
fn a_prompt_becomes_a_video() {
    let server = Running::start(FAST);
    let client = server.client();
    let made =
        client.post("/v1/videos", &json!({"prompt": "fog", "seconds": "4", "size": "64x48"}));
    assert_eq!(made.status, 200, "{made:?}");
    let made = made.json();
    assert_eq!(made["object"], "video");
    assert_eq!(
        (&made["size"], &made["seconds"], &made["num_frames"]),
        (&json!("64x48"), &json!("4"), &json!(16))
    );
    let id = made["id"].as_str().unwrap();
    let done = wait(&client, id, "completed");
    assert_eq!((&done["progress"], &done["error"]), (&json!(100), &Value::Null));
    assert_eq!(done["prompt"], "fog");

    let path = format!("/v1/videos/{id}/content");
    let video = client.get(&path);
    assert_eq!((video.status, video.header("content-type")), (200, Some("video/mp4")));
    assert_eq!(&video.body[4..8], b"ftyp");
    assert_eq!(video.header("cache-control"), Some("no-store"));
    assert_eq!(video.header("content-length").unwrap(), video.body.len().to_string());
    let part = client.request("GET", &path, &[("Range", "bytes=4-7")], b"");
    assert_eq!((part.status, part.body.as_slice()), (206, b"ftyp".as_slice()));
    let outside = client.request("GET", &path, &[("Range", "bytes=999999999-")], b"");
    assert_eq!(outside.status, 416);
    let head = client.request("HEAD", &path, &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    let thumbnail = client.get(&format!("{path}?variant=thumbnail"));
    assert_eq!(&thumbnail.body[..4], b"\x89PNG");
    let record = client.get(&format!("{path}?variant=record")).json();
    assert_eq!(record, json!({"prompt": "fog"}));
    assert_eq!(client.get(&format!("{path}?variant=spritesheet")).status, 400);

    let list = client.get("/v1/videos?limit=1").json();
    assert_eq!(
        (&list["object"], &list["has_more"], &list["first_id"]),
        (&json!("list"), &json!(false), &json!(id))
    );
    let deleted = client.request("DELETE", &format!("/v1/videos/{id}"), &[], b"").json();
    assert_eq!(deleted, json!({"id": id, "object": "video.deleted", "deleted": true}));
    assert_eq!(client.get(&format!("/v1/videos/{id}")).status, 404);
}

#[test]
fn forms_are_read_as_json_is() {
    let server = Running::start(FAST);
    let client = server.client();
    let field = |name: &str, value: &str| {
        format!("--line\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let send = |fields: &[(&str, &str)]| {
        let fields: String = fields.iter().map(|(name, value)| field(name, value)).collect();
        let body = format!("{fields}--line--\r\n");
        let kind = [("Content-Type", "multipart/form-data; boundary=line")];
        client.request("POST", "/v1/videos", &kind, body.as_bytes())
    };
    let made = send(&[("prompt", "fog"), ("num_frames", "3"), ("guidance_scale", "2.5")]);
    assert_eq!(made.status, 200, "{made:?}");
    let made = made.json();
    assert_eq!((&made["num_frames"], &made["guidance_scale"]), (&json!(3), &json!(2.5)));
    let twice = send(&[("prompt", "fog"), ("prompt", "rain")]);
    assert_eq!((twice.status, &twice.json()["error"]["code"]), (400, &json!("invalid_form")));
    assert_eq!(send(&[("prompt", "fog"), ("seed", "x")]).json()["error"]["param"], "seed");
}

#[test]
fn events_tell_progress_and_end() {
    let server = Running::start(SLOW);
    let client = server.client();
    let made = client.post("/v1/videos", &json!({"prompt": "fog", "steps": 30})).json();
    let id = made["id"].as_str().unwrap();
    let events = client.get(&format!("/v1/videos/{id}/events"));
    assert_eq!(events.header("content-type"), Some("text/event-stream"));
    assert_eq!(events.header("x-accel-buffering"), Some("no"));
    let events = events.events();
    let of = |name: &str| -> Vec<&Value> {
        events.iter().filter(|(kind, _)| kind == name).map(|(_, data)| data).collect()
    };
    let statuses: Vec<&str> =
        of("status").iter().map(|data| data["status"].as_str().unwrap()).collect();
    assert_eq!(statuses.last(), Some(&"completed"), "{statuses:?}");
    let steps: Vec<u64> =
        of("progress").iter().map(|data| data["step"].as_u64().unwrap()).collect();
    assert!(steps.len() > 2 && steps.is_sorted() && steps.last() <= Some(&30), "{steps:?}");
    let image = of("preview")[0]["image"].as_str().unwrap();
    assert!(image.starts_with("data:image/png;base64,"), "{image}");
    // A job that has ended has one event.
    assert_eq!(client.get(&format!("/v1/videos/{id}/events")).events().len(), 1);
}

#[test]
fn jobs_are_cancelled_by_either_route() {
    let server = Running::start(SLOW);
    let client = server.client();
    let make = || {
        let made = client.post("/v1/videos", &json!({"prompt": "fog", "steps": 200})).json();
        made["id"].as_str().unwrap().to_string()
    };
    let (first, second) = (make(), make());
    wait(&client, &first, "in_progress");
    assert_eq!(client.get(&format!("/v1/videos/{second}")).json()["queue_position"], 0);
    let early = client.get(&format!("/v1/videos/{first}/content"));
    assert_eq!(
        (early.status, &early.json()["error"]["code"]),
        (409, &json!("video_not_completed"))
    );
    let cancelled = client.post(&format!("/v1/videos/{first}/cancel"), &json!({}));
    assert_eq!((cancelled.status, &cancelled.json()["status"]), (200, &json!("cancelled")));
    assert_eq!(client.post(&format!("/v1/videos/{first}/cancel"), &json!({})).status, 409);
    let deleted = client.request("DELETE", &format!("/v1/videos/{second}"), &[], b"").json();
    assert_eq!((&deleted["deleted"], &deleted["status"]), (&json!(false), &json!("cancelled")));
    assert_eq!(client.get(&format!("/v1/videos/{second}")).json()["status"], "cancelled");
}

#[test]
fn a_token_is_required_everywhere_but_on_the_page() {
    let server = Running::start_with(FAST, |options| {
        options.security.token = Some("s3cret".into());
    });
    let without = server.client();
    for path in ["/v1/videos", "/v1/models", "/metrics", "/v1/videos/x/content", "/nothing"] {
        let response = without.get(path);
        assert_eq!(response.status, 401, "{path}");
        assert_eq!(response.header("www-authenticate"), Some("Bearer"));
    }
    assert_eq!(without.post("/v1/videos", &json!({"prompt": "fog"})).status, 401);
    for path in ["/", "/health", "/openapi.json"] {
        assert_eq!(without.get(path).status, 200, "{path}");
    }
    let with = Client { token: Some("s3cret".into()), ..server.client() };
    assert_eq!(with.get("/v1/videos").status, 200);
    let wrong = Client { token: Some("s3cres".into()), ..server.client() };
    assert_eq!(wrong.get("/v1/videos").status, 401);
}

#[test]
fn models_metrics_and_health() {
    let server = Running::start(FAST);
    let client = server.client();
    let made = client.post("/v1/videos", &json!({"prompt": "fog", "steps": 3})).json();
    wait(&client, made["id"].as_str().unwrap(), "completed");
    let models = client.get("/v1/models").json();
    let model = &models["data"][0];
    assert_eq!((&model["id"], &model["defaults"]["size"]), (&json!("demo"), &json!("48x48")));
    assert_eq!(client.get("/v1/models/demo").json(), *model);
    // Ids of repositories have a slash.
    for name in ["sora-2", "owner/name"] {
        let missing = client.get(&format!("/v1/models/{name}"));
        assert_eq!(missing.status, 404);
        assert_eq!(missing.json()["error"]["code"], "model_not_found");
    }
    assert_eq!(client.get("/health").json(), json!({"status": "ok"}));
    let metrics = client.get("/metrics");
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain"));
    let text = String::from_utf8(metrics.body.clone()).unwrap();
    for line in [
        "opensora_jobs{status=\"completed\"} 1",
        "opensora_jobs_created_total 1",
        "opensora_jobs_ended_total{status=\"completed\"} 1",
        "opensora_sampler_steps_total 3",
        "opensora_worker_up 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("opensora_") && value.parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn the_page_is_served_with_a_strict_policy() {
    let server = Running::start(FAST);
    let page = server.client().get("/");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && policy.contains("script-src 'sha256-"));
    assert!(!policy.contains("unsafe"));
    for (name, value) in [("x-content-type-options", "nosniff"), ("x-frame-options", "DENY")] {
        assert_eq!(page.header(name), Some(value));
    }
    assert!(page.header("access-control-allow-origin").is_none());
}

#[test]
fn a_stopped_server_ends_and_keeps_its_jobs() {
    let mut server = Running::start(SLOW);
    let client = server.client();
    let made = client.post("/v1/videos", &json!({"prompt": "fog", "steps": 200})).json();
    let id = made["id"].as_str().unwrap().to_string();
    wait(&client, &id, "in_progress");
    // A client that follows the job gets an end of the stream.
    let follower = {
        let (client, path) = (server.client(), format!("/v1/videos/{id}/events"));
        std::thread::spawn(move || client.get(&path))
    };
    std::thread::sleep(Duration::from_millis(300));
    server.stop();
    let events = follower.join().unwrap();
    assert!(events.complete && !events.events().is_empty(), "{events:?}");
    let job = server.queue.get(&id).unwrap().job;
    assert_eq!(job.state.status, opensora_serve::JobStatus::Queued);
    assert!(client.try_request("GET", "/health", &[], b"").is_err());
}

#[test]
fn a_server_whose_engine_is_broken_ends_with_an_error() {
    use opensora_serve::{
        Limits, Queue, QueueOptions, ServeError, Server, ServerOptions, VideoRequest,
    };
    let folder = tempfile::tempdir().unwrap();
    let engine = std::sync::Arc::new(fake::FakeEngine::new(FAST));
    let queue = Queue::open(folder.path(), engine, QueueOptions::default()).unwrap();
    let options = ServerOptions { port: 0, ..ServerOptions::default() };
    let server = Server::bind(options).unwrap();
    let served = queue.clone();
    let thread = std::thread::spawn(move || server.run(served));
    for _ in 0..3 {
        let request = VideoRequest { prompt: "fail".into(), ..VideoRequest::default() };
        let request = request.resolve(&fake::model(), &Limits::default(), 1).unwrap();
        // The first ones may have failed already.
        let _ = queue.create(request);
    }
    assert!(matches!(thread.join().unwrap(), Err(ServeError::WorkerEnded)));
}
