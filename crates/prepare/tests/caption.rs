//! Captions from a stand-in server that answers, fails, stalls, talks nonsense and hangs up: every
//! row ends captioned or listed with its reason.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod chat_server;

use chat_server::{
    Answer, ChatServer,
    clips::{QUICK, clips, endpoint, ids, says, spec},
};
use opensora_manifest::{
    Table,
    table::{PATH, TEXT},
};
use opensora_prepare::{
    PrepareError,
    assemble::failed_path,
    caption::{
        CUT, CaptionSpec, Captioned, Endpoint, Key, Layout, Options, PictureSpec, Timeouts,
        caption, preview,
    },
    retry::Patience,
    step::{Shard, Watch},
};
use serde_json::{Value, json};
use std::{
    net::TcpListener,
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

fn made(table: &Table, folder: &Path, endpoint: &Endpoint) -> Result<Captioned, PrepareError> {
    caption(table, &folder.join("out.csv"), &spec(), endpoint, &Options::default(), &mut ())
}

fn text<'a>(table: &'a Table, id: &str, column: &str) -> Option<&'a str> {
    let row = (0..table.len()).find(|&row| table.get(row, "id") == Some(id))?;
    table.get(row, column)
}

#[test]
fn every_clip_ends_captioned_or_listed_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut table = clips(folder.path(), 16);
    std::fs::write(table.get(12, PATH).unwrap(), "").unwrap();
    table.set(13, TEXT, "As it was.");
    let twin = table.get(0, PATH).unwrap().to_string();
    table.push([("id", "16".into()), (PATH, twin)]);
    table.push([("id", "17".into())]);

    let server = ChatServer::start(|request, before| {
        let is_first = before == 0;
        match request.clip {
            Some(1) if is_first => Answer::Status(500, "", "{\"detail\": \"oops\"}".into()),
            Some(2) if is_first => Answer::Status(429, "Retry-After: 60", String::new()),
            Some(3) => Answer::Status(500, "", "<html>".into()),
            Some(4) => Answer::Body("so be it".into()),
            Some(5) => Answer::Body("{\"choices\": []}".into()),
            Some(6) if is_first => Answer::Body("<html>Hello</html>".into()),
            Some(7) => Answer::HangsUp,
            Some(8) => Answer::Stalls(Duration::from_secs(4)),
            Some(9) if is_first => Answer::Stalls(Duration::from_secs(4)),
            Some(10) => Answer::Status(400, "", "{\"error\": {\"message\": \"not this\"}}".into()),
            Some(11) => {
                let message = json!({"content": "<think>hm</think>Clip 11, red. It ju"});
                let choice = json!({"message": message, "finish_reason": "length"});
                Answer::Body(json!({ "choices": [choice] }).to_string())
            }
            Some(13) => unreachable!("it has a caption"),
            Some(14) => Answer::Body(" ".repeat(2 << 20)),
            Some(15) if is_first => Answer::Leaves,
            _ => says(request),
        }
    });
    let captioned = made(&table, folder.path(), &endpoint(server.address, QUICK)).unwrap();

    assert_eq!(ids(&captioned), (0..18).collect::<Vec<_>>(), "no row lost or doubled");
    for clip in [0, 1, 2, 6, 9, 11, 15] {
        let expected = format!("Clip {clip}, red.");
        assert_eq!(
            text(&captioned.tables.output, &clip.to_string(), TEXT),
            Some(expected.as_str())
        );
    }
    assert_eq!(text(&captioned.tables.output, "13", TEXT), Some("As it was."));
    for (clip, cut) in [("0", ""), ("11", "max_tokens"), ("13", "")] {
        assert_eq!(text(&captioned.tables.output, clip, CUT), Some(cut));
    }
    assert_eq!((captioned.tables.output.len(), captioned.kept), (8, 1));
    let counts = server.counts();
    for (clip, words, requests) in [
        (3, "500 Internal Server Error: it is a page of HTML (3 attempts)", 3),
        (4, "the answer is no JSON: so be it", 3),
        (5, "the answer has no choices", 3),
        (7, "no whole answer", 3),
        (8, "no answer in time (3 attempts)", 3),
        (10, "400 Bad Request: not this", 1),
        (12, "it is empty", 0),
        (14, "more than 1048576 bytes", 1),
        (16, "that of row 1 as well", 0),
        (17, "it has no path", 0),
    ] {
        let reason = text(&captioned.tables.failed, &clip.to_string(), "reason").unwrap();
        assert!(reason.contains(words), "{clip}: {reason}");
        assert_eq!(counts.get(&clip).copied().unwrap_or(0), requests, "{clip}: {reason}");
    }

    // What the server asks to wait is waited, up to the longest wait.
    let second: Vec<Instant> = server
        .requests()
        .iter()
        .filter(|request| request.clip == Some(2))
        .map(|request| request.at)
        .collect();
    assert!(second[1] - second[0] >= QUICK.longest_wait);
    // The check comes first, and once.
    let checks: Vec<bool> =
        server.requests().iter().map(|request| request.clip.is_none()).collect();
    assert!(checks[0] && !checks[1..].contains(&true));

    // All is known: nothing is asked again, unless failures are tried again.
    let asked = server.requests().len();
    let again = made(&table, folder.path(), &endpoint(server.address, QUICK)).unwrap();
    assert_eq!((again, server.requests().len()), (captioned, asked));

    // One clip is another one now, and one is gone, whose caption was paid for.
    std::fs::copy(table.get(9, PATH).unwrap(), table.get(0, PATH).unwrap()).unwrap();
    std::fs::remove_file(table.get(1, PATH).unwrap()).unwrap();
    let again = made(&table, folder.path(), &endpoint(server.address, QUICK)).unwrap();
    assert_eq!(text(&again.tables.output, "0", TEXT), Some("Clip 9, red."));
    assert_eq!(text(&again.tables.output, "1", TEXT), Some("Clip 1, red."));
    // With the check that the server is of use.
    assert_eq!(server.requests().len(), asked + 2);
}

#[test]
fn requests_show_the_frames_in_order_and_as_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let table = clips(folder.path(), 1);
    let server = ChatServer::start(|request, _| says(request));
    let key = Key::new("s3cret").unwrap();
    let address = format!("http://{}/v1/", server.address);
    let endpoint = Endpoint::new(&address, Some(key), Timeouts::default(), QUICK, 1).unwrap();
    let options = Options::default();
    for (layout, greens) in
        [(Layout::Multi, vec![20u8, 50, 80]), (Layout::Grid, vec![50]), (Layout::First, vec![20])]
    {
        let out = folder.path().join(format!("{layout:?}.csv"));
        let pictures = PictureSpec { layout, ..PictureSpec::default() };
        let extra = json!({"max_tokens": null, "max_completion_tokens": 99});
        let extra = extra.as_object().unwrap().clone();
        let spec = CaptionSpec { pictures, extra, ..spec() };
        caption(&table, &out, &spec, &endpoint, &options, &mut ()).unwrap();
        let requests = server.requests();
        let request = requests.last().unwrap();
        let shown: Vec<u8> = request.colours.iter().map(|colour| colour[1]).collect();
        assert_eq!(shown.len(), greens.len());
        for (shown, green) in shown.iter().zip(&greens) {
            assert!(shown.abs_diff(*green) < 8, "{layout:?}: {shown} {green}");
        }
        assert_eq!(request.path, "/v1/chat/completions");
        assert_eq!(request.authorization.as_deref(), Some("Bearer s3cret"));
        let body = &request.body;
        assert_eq!((&body["model"], &body["temperature"]), (&json!("stand-in"), &json!(0.2)));
        assert_eq!(
            (&body["max_tokens"], &body["max_completion_tokens"]),
            (&Value::Null, &json!(99))
        );
        let prompt = body["messages"][0]["content"][0]["text"].as_str().unwrap();
        assert_eq!(prompt.contains("side by side"), layout == Layout::Grid, "{prompt}");

        // The preview is the request, but for the length of its pictures.
        let mut shown = preview(&table, &spec, &options).unwrap().unwrap();
        for (index, part) in body["messages"][0]["content"].as_array().unwrap().iter().enumerate() {
            let place = format!("/messages/0/content/{index}/image_url/url");
            let Some(url) = part["image_url"]["url"].as_str() else { continue };
            let short = shown.pointer_mut(&place).unwrap();
            assert!(
                short.as_str().unwrap().len() < 100
                    && url.starts_with(&short.as_str().unwrap()[..48])
            );
            *short = url.into();
        }
        assert_eq!(&shown, body);
    }
    for entry in std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
        let bytes = std::fs::read(entry.path()).unwrap();
        assert!(!bytes.windows(6).any(|part| part == b"s3cret"), "{:?}", entry.path());
    }
}

#[test]
fn what_meets_every_row_ends_the_step() {
    let folder = tempfile::tempdir().unwrap();
    let table = clips(folder.path(), 3);
    let status = |status, body: &str| Answer::Status(status, "", body.into());
    let several = "{\"message\": \"At most 1 image may be given\"}";
    let spent = "{\"error\": {\"message\": \"No money\", \"code\": \"insufficient_quota\"}}";
    for (answer, words) in [
        (status(401, "{\"error\": {\"message\": \"wrong key\"}}"), "401 Unauthorized: wrong key"),
        (status(404, "{\"error\": \"no such model\"}"), "404 Not Found: no such model"),
        (status(400, several), "400 Bad Request: At most 1 image"),
        (status(403, ""), "403 Forbidden"),
        (status(429, spent), "No money: stopped"),
        (status(307, "elsewhere"), "307 Temporary Redirect: elsewhere"),
        (status(503, "loading"), "503 Service Unavailable: loading (3 attempts)"),
        (Answer::Body("<html>".into()), "no JSON: it is a page of HTML"),
        (Answer::Leaves, "no whole answer"),
    ] {
        let server = ChatServer::start(move |_, _| answer.clone());
        let endpoint = endpoint(server.address, QUICK);
        let halted = made(&table, folder.path(), &endpoint).unwrap_err();
        assert!(matches!(halted, PrepareError::Halted { done: 0, total: 3, .. }), "{halted}");
        let halted = halted.to_string();
        assert!(halted.contains(words) && halted.starts_with(&endpoint.address()), "{halted}");
        assert!(server.counts().is_empty(), "no row was sent");
    }
    // Nobody there: known at once, however patient one is.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let patient = Patience { attempts: 9, first_wait: Duration::from_secs(600), ..QUICK };
    let halted = made(&table, folder.path(), &endpoint(nobody, patient)).unwrap_err().to_string();
    assert!(halted.contains("no connection"), "{halted}");

    // None of it is held against the rows.
    let server = ChatServer::start(|request, _| says(request));
    let captioned = made(&table, folder.path(), &endpoint(server.address, QUICK)).unwrap();
    assert_eq!((captioned.tables.output.len(), captioned.tables.failed.len()), (3, 0));
}

#[test]
fn an_endpoint_that_breaks_off_keeps_what_it_answered() {
    let folder = tempfile::tempdir().unwrap();
    let table = clips(folder.path(), 8);
    let out = folder.path().join("out.csv");
    let serial = Options { workers: 1, ..Options::default() };
    for (from, status) in [(3, 401), (5, 429)] {
        let server = ChatServer::start(move |request, _| match request.clip {
            Some(clip) if clip >= from => Answer::Status(status, "", "enough".into()),
            _ => says(request),
        });
        let endpoint = endpoint(server.address, QUICK);
        let halted = caption(&table, &out, &spec(), &endpoint, &serial, &mut ()).unwrap_err();
        assert!(
            matches!(&halted, PrepareError::Halted { done, reason, .. }
                if *done == from && reason.contains("enough")),
            "{halted}"
        );
    }
    let server = ChatServer::start(|request, _| says(request));
    let captioned = made(&table, folder.path(), &endpoint(server.address, QUICK)).unwrap();
    assert_eq!(ids(&captioned), (0..8).collect::<Vec<_>>());
    assert_eq!(captioned.tables.output.len(), 8);
    let mut asked: Vec<usize> = server.counts().into_keys().collect();
    asked.sort_unstable();
    assert_eq!(asked, [5, 6, 7]);
}

/// Stops after so many rows.
struct StopAt(usize);

impl Watch for StopAt {
    fn advanced(&mut self, done: usize, _: usize, _: usize) -> ControlFlow<()> {
        if done >= self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[test]
fn a_stop_ends_waits_and_is_held_against_no_row() {
    let folder = tempfile::tempdir().unwrap();
    let table = clips(folder.path(), 6);
    let out = folder.path().join("out.csv");
    let server = ChatServer::start(|request, _| match request.clip {
        Some(4) => {
            // Until the others wait.
            std::thread::sleep(Duration::from_millis(300));
            says(request)
        }
        Some(_) => Answer::Status(503, "Retry-After: 3000", String::new()),
        None => says(request),
    });
    let patient = Patience { longest_wait: Duration::from_secs(3600), ..QUICK };
    let options = Options { workers: 6, ..Options::default() };
    let endpoint = endpoint(server.address, patient);
    let stopped = caption(&table, &out, &spec(), &endpoint, &options, &mut StopAt(1)).unwrap_err();
    assert!(matches!(stopped, PrepareError::Stopped { done: 1, total: 6 }), "{stopped}");
    let journal = std::fs::read_to_string(folder.path().join("out.csv.journal.jsonl")).unwrap();
    assert_eq!(journal.lines().count(), 2, "{journal}");
}

#[test]
fn failures_and_captions_are_made_again_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut table = clips(folder.path(), 3);
    table.set(0, TEXT, "Old.");
    let refusing = ChatServer::start(|request, _| match request.clip {
        Some(2) => Answer::Status(422, "", String::new()),
        _ => says(request),
    });
    let first = made(&table, folder.path(), &endpoint(refusing.address, QUICK)).unwrap();
    assert_eq!((first.tables.output.len(), first.tables.failed.len()), (2, 1));
    let out = folder.path().join("out.csv");
    first.tables.write(&out).unwrap();
    assert_eq!(Table::read(&failed_path(&out)).unwrap(), first.tables.failed);

    let server = ChatServer::start(|request, _| says(request));
    let endpoint = endpoint(server.address, QUICK);
    let options = Options { retry_failed: true, ..Options::default() };
    let second = caption(&table, &out, &spec(), &endpoint, &options, &mut ()).unwrap();
    second.tables.write(&out).unwrap();
    assert_eq!((second.tables.output.len(), second.kept, server.counts().len()), (3, 1, 1));
    assert_eq!(Table::read(&out).unwrap(), second.tables.output);
    assert!(!failed_path(&out).exists(), "no failures, no list of them");

    let anew = Options { recaption: true, ..Options::default() };
    let refused = caption(&table, &out, &spec(), &endpoint, &anew, &mut ()).unwrap_err();
    assert!(refused.to_string().contains("other settings"), "{refused}");
    let out = folder.path().join("anew.csv");
    let anew = caption(&table, &out, &spec(), &endpoint, &anew, &mut ()).unwrap();
    assert_eq!(text(&anew.tables.output, "0", TEXT), Some("Clip 0, red."));

    // Parts of the rows: each row in one of them, whether it had a caption or not.
    let mut parts = Vec::new();
    for index in 0..2 {
        let options = Options { shard: Shard::new(index, 2).unwrap(), ..Options::default() };
        let out = folder.path().join(format!("part {index}.csv"));
        let part = caption(&table, &out, &spec(), &endpoint, &options, &mut ()).unwrap();
        parts.push(ids(&part));
    }
    assert_eq!(parts, [vec![0, 2], vec![1]]);
}
