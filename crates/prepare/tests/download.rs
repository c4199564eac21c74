//! Downloads from a server that misbehaves: every row ends done with the bytes of the source, or failed with
//! its reason.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod files_server;

use files_server::{After, Answer, Request, Server, bytes};
use opensora_manifest::Table;
use opensora_prepare::{
    PrepareError, RunOptions, Shard,
    download::{self, DownloadError, List, ListFormat, Part, Report, Timeouts, YtDlp, failed_path},
    retry::RetryPolicy,
};
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A list in a folder, and the options of its download.
struct Job {
    folder: TempDir,
    spec: download::Job,
    part: Part,
}

impl Job {
    fn new(list: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("list.csv"), list).unwrap();
        let spec = download::Job {
            folder: folder.path().join("videos"),
            timeouts: Timeouts {
                connect: Duration::from_secs(5),
                idle: Duration::from_millis(400),
                attempt: Duration::from_secs(20),
            },
            retry: RetryPolicy {
                attempts: 3,
                first_wait: Duration::from_millis(5),
                longest_wait: Duration::from_secs(2),
            },
            yt_dlp: YtDlp { program: "/there/is/no/yt-dlp".into(), ..YtDlp::default() },
            // The test server is on this machine.
            allow_private: true,
            ..download::Job::default()
        };
        Self { folder, spec, part: Part::WHOLE }
    }

    /// A list of these addresses.
    fn of(urls: &[String]) -> Self {
        Self::new(&format!("url\n{}\n", urls.join("\n")))
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out.csv")
    }

    fn try_run(&self) -> Result<Report, PrepareError> {
        let path = self.folder.path().join("list.csv");
        let format = ListFormat::of(&path).unwrap();
        let list = List::read(&path, format, self.part).unwrap();
        download::run(&self.spec, &list, &self.out(), &mut ())
    }

    fn run(&self) -> Report {
        self.try_run().unwrap()
    }

    fn manifest(&self) -> Table {
        Table::read(&self.out()).unwrap()
    }

    /// Returns the bytes of a row's file.
    fn file(&self, row: usize) -> Vec<u8> {
        std::fs::read(self.manifest().get(row, "path").unwrap()).unwrap()
    }

    /// Returns addresses and reasons of the failed rows.
    fn failures(&self) -> Vec<(String, String)> {
        let table = Table::read(&failed_path(&self.out())).unwrap();
        let field = |row, name| table.get(row, name).unwrap().to_string();
        (0..table.len()).map(|row| (field(row, "url"), field(row, "reason"))).collect()
    }

    /// Returns the reason of the only failure.
    fn reason(&self) -> String {
        let failures = self.failures();
        assert_eq!(failures.len(), 1, "{failures:?}");
        failures[0].1.clone()
    }

    /// Returns the names in the folder of videos.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.spec.folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Downloads a list of one address from a server with these answers.
fn one(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> (Job, Server) {
    let server = Server::start(answer);
    let job = Job::of(&[format!("{}/fox.mp4", server.url)]);
    let done = job.run();
    assert_eq!(done.clips + done.failed, 1);
    (job, server)
}

#[test]
fn an_interrupted_file_is_resumed() {
    let (job, server) = one(|request| {
        let answer = Answer::version(&bytes(300_000, 1), "\"v1\"", request);
        if request.number == 0 { answer.cut(100_000) } else { answer }
    });
    assert_eq!(job.file(0), bytes(300_000, 1));
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!((requests[0].range(), requests[1].range()), (None, Some(100_000)));
    assert_eq!(requests[1].headers["if-range"], "\"v1\"");
    assert_eq!(requests[0].headers["accept-encoding"], "identity");
    let manifest = job.manifest();
    assert_eq!(manifest.get(0, "sha256").unwrap(), sha256(&bytes(300_000, 1)));
    assert_eq!(manifest.get(0, "bytes"), Some("300000"));
    assert_eq!(manifest.get(0, "source"), manifest.get(0, "url"));
    assert_eq!(job.names().len(), 1, "nothing else stays");
}

#[test]
fn halves_of_different_versions_are_never_joined() {
    let old = |request: &Request| Answer::version(&bytes(300_000, 1), "\"v1\"", request);
    // A server that supports If-Range, and one that does not.
    for honours in [true, false] {
        let (job, server) = one(move |request| match (request.number, request.range()) {
            (0, _) => old(request).cut(100_000),
            (_, Some(first)) if !honours => {
                Answer::range(&bytes(300_000, 2), first).with("ETag", "\"v2\"")
            }
            _ => Answer::version(&bytes(300_000, 2), "\"v2\"", request),
        });
        assert!(job.file(0) == bytes(300_000, 2), "{:?}", server.requests());
        assert_eq!(server.requests().len(), if honours { 2 } else { 3 });
    }
    // Another length, another position: without entity tags, times and ranges differ.
    for wrong in ["bytes 99999-299999/300000", "bytes 100000-299999/400000", "nonsense"] {
        let (job, _) = one(move |request| match request.number {
            0 => Answer::file(&bytes(300_000, 1)).with("Last-Modified", "then").cut(100_000),
            1 => Answer { status: 206, ..Answer::file(&bytes(200_000, 3)) }
                .with("Content-Range", wrong),
            _ => Answer::file(&bytes(300_000, 2)).with("Last-Modified", "now"),
        });
        assert!(job.file(0) == bytes(300_000, 2), "{wrong}");
    }
}

#[test]
fn a_server_without_ranges_or_versions_starts_again() {
    for tag in ["\"v1\"", "W/\"weak\"", ""] {
        let (job, server) = one(move |request| {
            let answer = Answer::file(&bytes(200_000, 1));
            let answer = if tag.is_empty() { answer } else { answer.with("ETag", tag) };
            if request.number < 2 { answer.cut(150_000) } else { answer }
        });
        assert_eq!(job.file(0), bytes(200_000, 1));
        let ranges: Vec<_> = server.requests().iter().map(Request::range).collect();
        let asked = (tag == "\"v1\"").then_some(150_000);
        assert_eq!(ranges, [None, asked, asked], "{tag}");
    }
}

#[test]
fn statuses_are_permanent_or_transient() {
    for status in [401, 403, 404, 410, 451, 304] {
        let (job, server) = one(move |_| Answer::status(status));
        assert!(job.reason().contains(&status.to_string()), "{}", job.reason());
        assert_eq!((server.requests().len(), job.names().len()), (1, 0));
    }
    for status in [500, 502, 503, 408] {
        let (job, server) = one(move |request| match request.number {
            0 | 1 => Answer::status(status),
            _ => Answer::file(b"fog"),
        });
        assert_eq!((job.file(0), server.requests().len()), (b"fog".to_vec(), 3));
    }
    let (job, server) = one(|_| Answer::status(500));
    assert!(job.reason().contains("500") && job.reason().contains("3 attempts"));
    assert_eq!((server.requests().len(), job.names().len()), (3, 0));
}

#[test]
fn retry_after_is_respected() {
    let started = Instant::now();
    let (job, server) = one(|request| match request.number {
        0 => Answer::status(429).with("Retry-After", "1"),
        _ => Answer::file(b"fog"),
    });
    assert_eq!((job.file(0), server.requests().len()), (b"fog".to_vec(), 2));
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[test]
fn large_bodies_end_at_the_limit() {
    let server = Server::start(|request| match request.path.as_str() {
        "/endless.mp4" => Answer { after: After::Endless, ..Answer::file(&bytes(60_000, 1)) }
            .with("Transfer-Encoding", "chunked"),
        _ => Answer::file(b"fog").with("Content-Length", "1000000000000"),
    });
    let urls = ["endless", "large"].map(|name| format!("{}/{name}.mp4", server.url));
    let mut job = Job::of(&urls);
    job.spec.max_bytes = Some(1_000_000);
    assert_eq!(job.run().failed, 2);
    for (_, reason) in job.failures() {
        assert_eq!(reason, "it is larger than 1000000 bytes");
    }
    assert_eq!((job.names().len(), server.requests().len()), (0, 2));
}

#[test]
fn files_with_another_digest_are_rejected() {
    let server = Server::start(|request| {
        let answer = Answer::version(&bytes(200_000, 1), "\"v1\"", request);
        // The first half of one file is of another file with the same tag.
        match (request.path.as_str(), request.number) {
            ("/joined.mp4", 0) => Answer { body: bytes(200_000, 9), ..answer }.cut(100_000),
            _ => answer,
        }
    });
    let [right, wrong] = [1, 2].map(|seed| sha256(&bytes(200_000, seed)));
    let job = Job::new(&format!(
        "sha256,url\n{},{url}/a.mp4\n{wrong},{url}/b.mp4\n,{url}/c.mp4\n{right},{url}/joined.mp4\n\
         {wrong},{url}/a.mp4\nnonsense,{url}/d.mp4\n",
        right.to_uppercase(),
        url = server.url,
    ));
    let done = job.run();
    assert_eq!((done.videos, done.clips, done.failed), (3, 3, 3));
    for row in 0..3 {
        assert_eq!(job.file(row), bytes(200_000, 1));
    }
    let failures = job.failures();
    let reason = |name: &str| {
        let found = failures.iter().find(|(url, _)| url.ends_with(name));
        found.unwrap_or_else(|| panic!("{failures:?}")).1.clone()
    };
    assert!(reason("/b.mp4").contains(&format!("its SHA-256 is {right}, the list says {wrong}")));
    assert!(reason("/a.mp4").contains("another row says"));
    assert!(reason("/d.mp4").contains("\"nonsense\" is not a SHA-256"));
    assert_eq!(server.requests_for("/joined.mp4").len(), 3);
    assert_eq!(job.names().len(), 3);
}

#[test]
fn a_hanging_server_times_out() {
    let started = Instant::now();
    let (job, server) = one(|request| {
        let answer = Answer::version(&bytes(100_000, 1), "\"v1\"", request);
        Answer { after: After::Hang, cut: Some(10_000.min(answer.body.len())), ..answer }
    });
    assert!(job.reason().contains("no answer in time"), "{}", job.reason());
    assert_eq!(server.requests().len(), 3);
    assert!(started.elapsed() < Duration::from_secs(5));
    let (job, _) = one(|request| match request.number {
        0 => Answer { after: After::Hang, ..Answer::file(&bytes(9, 1)) }.cut(3),
        _ => Answer::file(&bytes(9, 1)),
    });
    assert_eq!(job.file(0), bytes(9, 1));
}

#[test]
fn redirects_are_bounded_and_stay_within_http() {
    let server = Server::start(|request| match request.path.as_str() {
        "/loop.mp4" => Answer::status(302).with("Location", "/loop.mp4"),
        "/file.mp4" => Answer::status(302).with("Location", "file:///etc/hostname"),
        "/ftp.mp4" => Answer::status(301).with("Location", "ftp://127.0.0.1/a.mp4"),
        // Other addresses can be requested from the same host, but files are never opened.
        path if path.contains("hostname") => Answer::status(404),
        "/moved.mp4" => Answer::status(307).with("Location", "/here"),
        "/here" if request.number == 0 => {
            Answer::version(&bytes(9000, 1), "\"v1\"", request).cut(4000)
        }
        _ => Answer::version(&bytes(9000, 1), "\"v1\"", request),
    });
    let urls = ["loop", "file", "ftp", "moved"].map(|name| format!("{}/{name}.mp4", server.url));
    let job = Job::of(&urls);
    let done = job.run();
    assert_eq!((done.clips, done.failed), (1, 3), "{:?}", job.failures());
    assert_eq!(job.file(0), bytes(9000, 1));
    assert_eq!(server.requests_for("/here")[1].range(), Some(4000));
    assert!(job.failures()[0].1.contains("too many redirects"), "{:?}", job.failures());
    assert!(server.requests_for("/loop.mp4").len() <= 10);
}

#[test]
fn pages_and_encoded_or_empty_bodies_are_rejected() {
    for (name, value, words) in [
        ("Content-Type", "text/html; charset=utf-8", "text/html in place of a video"),
        ("Content-Type", "application/json", "application/json in place"),
        ("Content-Encoding", "gzip", "encoded as gzip"),
        ("X-Nothing", "", "it is empty"),
    ] {
        let body = if value.is_empty() { vec![] } else { b"<html>".to_vec() };
        let (job, server) =
            one(move |_| Answer { body: body.clone(), ..Answer::status(200) }.with(name, value));
        assert!(job.reason().contains(words), "{}", job.reason());
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn a_video_is_downloaded_once_and_its_clips_keep_their_columns() {
    let server = Server::start(|_| Answer::file(b"fog"));
    let job = Job::new(&format!(
        "id,url,start,end,caption,License,path\n\
         1,{url}/a.mp4,0:00:01.5,3,\"A fox, red\",CC0,old.mp4\n\
         2,{url}/a.mp4,4,5.25,Fog,,\n3,{url}/b.mp4,,,,,\n4,nowhere,,,Lost,,\n\
         5,{url}/c.mp4,9,3,Backwards,,\n6,{url}/d.mp4\n7,{url}/e.mp4,soon,,,,\n",
        url = server.url
    ));
    let spec = download::Job { licence: Some("ours".into()), ..job.spec.clone() };
    let job = Job { spec, ..job };
    let done = job.run();
    assert_eq!((done.videos, done.clips, done.failed, done.bytes), (2, 3, 4, 6));
    assert_eq!(server.requests().len(), 2);
    let manifest = job.manifest();
    let row = |at: usize| {
        let columns = ["id", "clip_start", "clip_end", "text", "licence"];
        columns.map(|name| manifest.get(at, name).unwrap())
    };
    assert_eq!(row(0), ["1", "1.5", "3", "A fox, red", "CC0"]);
    assert_eq!(row(1), ["2", "4", "5.25", "Fog", "ours"]);
    assert_eq!(row(2), ["3", "", "", "", "ours"]);
    assert_eq!(manifest.get(0, "path"), manifest.get(1, "path"));
    assert!(manifest.column("path") == Some(0) && manifest.column("License").is_none());
    // `data split` would read these columns as times of the file in its source.
    assert_eq!((manifest.column("start"), manifest.column("end")), (None, None));
    let failed = Table::read(&failed_path(&job.out())).unwrap();
    let field = |row, name| failed.get(row, name).unwrap();
    assert_eq!((field(0, "id"), field(0, "text"), field(0, "url")), ("4", "Lost", "nowhere"));
    for (row, words) in [
        (0, "row 4 of the list: \"nowhere\" is not an address"),
        (1, "it ends at 3 s and begins at 9 s"),
        (2, "it has 2 fields, expected 7"),
        (3, "\"soon\" is not a time"),
    ] {
        assert!(field(row, "reason").contains(words), "{}", field(row, "reason"));
    }
}

#[test]
fn failures_and_manifests_can_be_read_as_lists() {
    let server = Server::start(|request| match request.number {
        0 => Answer::status(404),
        _ => Answer::file(b"fog"),
    });
    let list = format!("url,start,end,text\n{0}/a.mp4,1.5,3,A fox\n{0}/a.mp4,4,,Fog\n", server.url);
    let first = Job::new(&list);
    assert_eq!(first.run().failed, 2);
    let failures = std::fs::read_to_string(failed_path(&first.out())).unwrap();
    assert!(failures.starts_with("url,start,end,text,"), "{failures}");

    let second = Job::new(&failures);
    assert_eq!(second.run().clips, 2);
    let third = Job::new(&std::fs::read_to_string(second.out()).unwrap());
    assert_eq!(third.run().clips, 2);
    for job in [&second, &third] {
        let table = job.manifest();
        let columns = ["clip_start", "clip_end", "text"];
        let row = |row: usize| columns.map(|column| table.get(row, column).unwrap());
        assert_eq!([row(0), row(1)], [["1.5", "3", "A fox"], ["4", "", "Fog"]]);
        assert_eq!((table.column("start"), table.column("end")), (None, None));
        // Otherwise the manifest would look like a list of failures.
        assert_eq!(table.column("reason"), None);
    }
    // Times of a list that has both pairs of columns.
    let both = format!("url,clip_start,end,start,clip_end\n{}/a.mp4,1,20,10,2\n", server.url);
    let both = Job::new(&both);
    assert_eq!(both.run().clips, 1);
    let table = both.manifest();
    let range = ["clip_start", "clip_end"].map(|column| table.get(0, column));
    assert_eq!(range, [Some("10"), Some("20")]);
}

#[test]
fn rejected_rows_stay_rejected_in_the_list_of_failures() {
    let server = Server::start(|_| Answer::file(b"fog"));
    let wrong = sha256(b"other");
    let first = Job::new(&format!(
        "url,start,end,sha256\n{0}/a.mp4,9,3,\n{0}/b.mp4,,,{wrong}\n{0}/c.mp4,,,nonsense\n",
        server.url
    ));
    assert_eq!(first.run().failed, 3);
    let again = Job::new(&std::fs::read_to_string(failed_path(&first.out())).unwrap());
    let done = again.run();
    assert_eq!((done.clips, done.failed), (0, 3), "{:?}", again.failures());
}

#[test]
fn a_checksum_that_the_list_gets_later_is_checked() {
    let server = Server::start(|request| match request.number {
        0 => Answer::file(b"old"),
        _ => Answer::file(b"new"),
    });
    let job = Job::of(&[format!("{}/a.mp4", server.url)]);
    assert_eq!(job.run().clips, 1);
    let list = |digest: String| {
        let text = format!("url,sha256\n{}/a.mp4,{digest}\n", server.url);
        std::fs::write(job.folder.path().join("list.csv"), text).unwrap();
    };
    list(sha256(b"new"));
    assert_eq!((job.run().clips, job.file(0)), (1, b"new".to_vec()));
    list(sha256(b"third"));
    assert_eq!(job.run().failed, 1);
}

#[test]
fn done_rows_are_not_downloaded_again_and_failed_ones_only_on_request() {
    let server = Server::start(|request| match (request.path.as_str(), request.number) {
        ("/b.mp4", 0) => Answer::status(404),
        _ => Answer::file(request.path.as_bytes()),
    });
    let mut job = Job::of(&["a", "b"].map(|name| format!("{}/{name}.mp4", server.url)));
    for retry in [false, false, true, true] {
        job.spec.options.retry_failed = retry;
        let done = job.run();
        assert_eq!(done.clips, if retry { 2 } else { 1 });
    }
    assert_eq!(server.requests().len(), 3);
    // Without the journal, a complete file is kept, and another one is not.
    let journal = job.folder.path().join("out.csv.journal.jsonl");
    std::fs::remove_file(&journal).unwrap();
    assert_eq!(job.run().clips, 2);
    assert_eq!(server.requests().len(), 3);
    std::fs::remove_file(job.manifest().get(0, "path").unwrap()).unwrap();
    let done = job.run();
    assert_eq!((done.clips, done.failed), (1, 1));
    assert!(job.reason().contains("it was downloaded and is missing"), "{}", job.reason());
}

#[test]
fn another_run_resumes_after_the_last_whole_block() {
    let server = Server::start(|request| {
        let answer = Answer::version(&bytes(9 << 20, 1), "\"v1\"", request);
        if request.number == 0 { answer.cut(5 << 20) } else { answer }
    });
    let mut job = Job::of(&[format!("{}/a.mp4", server.url)]);
    job.spec.retry.attempts = 1;
    // Enough progress restarts the count of attempts, even of a single attempt.
    assert_eq!(job.run().clips, 1);
    assert_eq!(server.requests()[1].range(), Some(5 << 20));

    let server = Server::start(|request| match request.number {
        0 => Answer::version(&bytes(9 << 20, 1), "\"v1\"", request).cut(5 << 20),
        1 => Answer::status(500),
        _ => Answer::version(&bytes(9 << 20, 1), "\"v1\"", request),
    });
    let mut job = Job::of(&[format!("{}/a.mp4", server.url)]);
    job.spec.retry.attempts = 1;
    assert_eq!(job.run().failed, 1);
    assert_eq!(job.names().len(), 2, "{:?}", job.names());
    job.spec.options.retry_failed = true;
    assert_eq!(job.run().clips, 1);
    assert_eq!(server.requests()[2].range(), Some(4 << 20));
    assert!(job.file(0) == bytes(9 << 20, 1));
    assert_eq!(job.names().len(), 1);
}

/// The process that the next test kills.
#[test]
fn child_that_is_killed() {
    let Ok(folder) = std::env::var("OPENSORA_TEST_DOWNLOAD") else { return };
    let folder = Path::new(&folder);
    let list = List::read(&folder.join("list.csv"), ListFormat::Csv, Part::WHOLE).unwrap();
    let spec = download::Job {
        folder: folder.join("videos"),
        options: RunOptions { workers: 2, ..RunOptions::default() },
        allow_private: true,
        ..download::Job::default()
    };
    download::run(&spec, &list, &folder.join("out.csv"), &mut ()).unwrap();
}

#[test]
fn a_killed_download_is_resumed() {
    let server = Server::start(|request| {
        let seed = request.path.len() as u32;
        let answer = Answer::version(&bytes(6 << 20, seed), "\"v1\"", request);
        Answer { pause: Duration::from_millis(1), ..answer }
    });
    let urls: Vec<_> =
        (1..=6).map(|count| format!("{}/{}.mp4", server.url, "x".repeat(count))).collect();
    let job = Job::of(&urls);
    let mut kills = 0;
    for requests in [1, 3, 5] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed"])
            .env("OPENSORA_TEST_DOWNLOAD", job.folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while server.requests().len() < requests && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(60));
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(kills > 0, "the child was too quick to be killed");
    let done = job.run();
    assert_eq!((done.clips, done.failed), (6, 0), "{:?}", job.failures());
    for row in 0..6 {
        let seed = "/.mp4".len() + row + 1;
        assert!(job.file(row) == bytes(6 << 20, seed as u32), "row {row}");
    }
    assert_eq!(job.names().len(), 6, "{:?}", job.names());
}

#[test]
fn parts_and_shards_cover_the_list() {
    let server = Server::start(|request| Answer::file(request.path.as_bytes()));
    let urls: Vec<_> = (0..20).map(|row| format!("{}/{row}.mp4", server.url)).collect();
    let mut seen = vec![];
    for (offset, limit) in [(0, Some(7)), (7, Some(7)), (14, None)] {
        for index in 0..2 {
            let shard = Shard::new(index, 2).unwrap();
            let part = Part { offset, limit, shard };
            let mut job = Job { part, ..Job::of(&urls) };
            job.spec.options.shard = shard;
            job.run();
            let manifest = job.manifest();
            seen.extend(
                (0..manifest.len()).map(|row| manifest.get(row, "url").unwrap().to_string()),
            );
        }
    }
    seen.sort();
    let mut urls = urls;
    urls.sort();
    assert_eq!(seen, urls);
}

/// Runs `second` while `first` downloads.
fn overlapping(first: &Job, second: &Job, server: &Server) -> [Report; 2] {
    std::thread::scope(|scope| {
        let running = scope.spawn(|| first.run());
        while server.requests().is_empty() {
            std::thread::sleep(Duration::from_millis(2));
        }
        let second = second.run();
        [running.join().unwrap(), second]
    })
}

#[test]
fn a_file_that_another_run_downloads_is_waited_for() {
    let server = Server::start(|_| {
        let pause = Duration::from_millis(200);
        Answer { pause, ..Answer::file(&bytes(100_000, 1)) }
    });
    let urls = [format!("{}/a.mp4", server.url)];
    let (first, mut second) = (Job::of(&urls), Job::of(&urls));
    second.spec.folder = first.spec.folder.clone();
    let [first, later] = overlapping(&first, &second, &server);
    assert_eq!((later.clips, first.clips), (1, 1));
    assert_eq!((server.requests().len(), second.names().len()), (1, 1));
    assert_eq!(second.file(0), bytes(100_000, 1));
}

#[test]
fn a_file_that_another_run_downloads_for_too_long_is_not_failed_for_good() {
    let server = Server::start(|_| {
        let pause = Duration::from_millis(500);
        Answer { pause, ..Answer::file(&bytes(100_000, 1)) }
    });
    let urls = [format!("{}/a.mp4", server.url)];
    let (mut first, mut second) = (Job::of(&urls), Job::of(&urls));
    first.spec.timeouts.idle = Duration::from_secs(10);
    second.spec.folder = first.spec.folder.clone();
    second.spec.timeouts.attempt = Duration::from_millis(10);
    let [first, later] = overlapping(&first, &second, &server);
    assert_eq!((later.failed, first.clips), (1, 1));
    assert_eq!(second.reason(), "it cannot be written: another process is downloading it");
    assert_eq!((second.run().clips, server.requests().len()), (1, 1));
    assert_eq!(second.file(0), bytes(100_000, 1));
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written_ends_the_step() {
    use std::os::unix::fs::PermissionsExt;
    let server = Server::start(|_| Answer::file(b"fog"));
    let job = Job::of(&["a", "b"].map(|name| format!("{}/{name}.mp4", server.url)));
    let folder = &job.spec.folder;
    std::fs::create_dir(folder).unwrap();
    let open = |mode| {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(0o555);
    // An administrator may write to it nevertheless.
    let is_closed = std::fs::write(folder.join("try"), "").is_err();
    let result = job.try_run();
    open(0o755);
    if is_closed {
        let error = result.unwrap_err();
        assert!(matches!(error, PrepareError::Halted { done: 0, total: 2, .. }), "{error}");
        assert!(!job.out().exists());
        // Nothing is recorded: the next run downloads both.
        assert_eq!(job.run().clips, 2);
    }
}

#[test]
fn rates_hold_for_all_workers_together() {
    let server = Server::start(|_| Answer::file(&bytes(50_000, 1)));
    let urls: Vec<_> = (0..4).map(|row| format!("{}/{row}.mp4", server.url)).collect();
    let mut job = Job::of(&urls);
    job.spec.bytes_per_second = Some(400_000);
    let started = Instant::now();
    assert_eq!(job.run().clips, 4);
    // Nothing waits for the last piece, at most 64 KiB.
    assert!(started.elapsed() >= Duration::from_millis(330), "{:?}", started.elapsed());
    let mut job = Job::of(&urls);
    job.spec.requests_per_second = Some(10.0);
    let started = Instant::now();
    assert_eq!(job.run().clips, 4);
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        job.spec.requests_per_second = Some(wrong);
        assert!(job.try_run().unwrap_err().to_string().contains("requests_per_second"));
    }
}

#[test]
fn nothing_is_downloaded_before_its_terms_are_accepted() {
    let panda = "videoID,url,timestamp,caption,matching_score\n\
                 -2yHu5qgTzM,https://www.youtube.com/watch?v=-2yHu5qgTzM,\
                 \"[['0:00:01.000', '0:00:02.500']]\",\"['A fox.']\",[0.5]\n";
    for (list, words) in [
        (panda, "Panda-70M/blob/main/LICENSE"),
        ("url\nhttps://videos.pexels.com/video-files/1/1.mp4\n", "https://www.pexels.com/license/"),
        ("url\nhttps://youtu.be/-2yHu5qgTzM\n", "https://www.youtube.com/t/terms"),
    ] {
        let job = Job::new(list);
        let error = job.try_run().unwrap_err();
        assert!(matches!(error, PrepareError::Download(DownloadError::Terms(_))));
        let text = error.to_string();
        assert!(text.contains(words) && text.contains("--accept-license"), "{text}");
        assert!(!job.spec.folder.exists() && !job.out().exists());
    }
    let mut job = Job::new(panda);
    job.spec.accept_license = true;
    let done = job.run();
    assert!(done.no_yt_dlp.unwrap().contains("there is no /there/is/no/yt-dlp"));
    assert!(job.reason().contains("need the program yt-dlp"), "{}", job.reason());
}

#[cfg(unix)]
mod yt_dlp {
    use super::*;
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    /// Writes a program that records its arguments and then runs `body`; `$out` is the output file, `$url` the
    /// address.
    fn program(folder: &Path, body: &str) -> PathBuf {
        let path = folder.join("yt-dlp");
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\n\
             for word in \"$@\"; do echo \"$word\" >> '{words}'; done\n\
             while [ $# -gt 1 ]; do [ \"$1\" = -o ] && out=$2; shift; done; url=$1\n{body}\n",
            words = folder.join("words").display(),
        );
        // Written by another process: a program that this process has open for writing cannot be started, and
        // a process that another thread starts inherits the open file for a moment.
        let mut writer = Command::new("/bin/sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
        path
    }

    fn job(body: &str) -> Job {
        let mut job = Job::new(
            "url,start,end\nhttps://youtu.be/-2yHu5qgTzM,1,2\nhttps://youtu.be/-2yHu5qgTzM,3,4\n",
        );
        job.spec.accept_license = true;
        job.spec.yt_dlp.program = program(job.folder.path(), body);
        job.spec.yt_dlp.arguments = vec!["--cookies".into(), "a b; touch $HOME".into()];
        job
    }

    #[test]
    fn a_partial_file_of_another_format_is_not_continued() {
        let mut job = job(
            "if [ -e \"$out.part\" ]; then cp \"$out.part\" \"$out\"; printf B >> \"$out\"; exit 0; fi\n\
             flag=\"${out%/*}/../../flag\"\n\
             if [ -e \"$flag\" ]; then printf B > \"$out\"; exit 0; fi\n\
             touch \"$flag\"; printf A > \"$out.part\"; echo 'ERROR: timed out' >&2; exit 1",
        );
        job.spec.retry.attempts = 1;
        assert_eq!(job.run().failed, 2);
        std::fs::remove_file(job.folder.path().join("out.csv.journal.jsonl")).unwrap();
        job.spec.yt_dlp.format = "18".into();
        assert_eq!((job.run().clips, job.file(0)), (2, b"B".to_vec()));
    }

    #[test]
    fn the_program_gets_arguments_and_its_file_the_final_name() {
        let mut job = job("printf '%s' \"$url\" > \"$out\"");
        job.spec.max_bytes = Some(1000);
        let done = job.run();
        assert_eq!((done.videos, done.clips, done.failed, done.no_yt_dlp), (1, 2, 0, None));
        assert_eq!(job.file(1), b"https://www.youtube.com/watch?v=-2yHu5qgTzM");
        assert!(job.manifest().get(0, "licence").unwrap().contains("YouTube"));
        let words = std::fs::read_to_string(job.folder.path().join("words")).unwrap();
        let words: Vec<_> = words.lines().collect();
        assert_eq!(words[words.len() - 2..], ["--", "https://www.youtube.com/watch?v=-2yHu5qgTzM"]);
        assert!(words.contains(&"a b; touch $HOME") && words.contains(&"--ignore-config"));
        assert_eq!(job.names().len(), 1, "{:?}", job.names());
    }

    #[test]
    fn its_last_error_is_the_reason() {
        let last = "echo 'ERROR: [youtube] x: Video unavailable' >&2; echo bye >&2; exit 1";
        let job = job(&format!("echo 'ERROR: first' >&2; {last}"));
        assert_eq!(job.run().failed, 2);
        assert_eq!(job.failures()[0].1, "[youtube] x: Video unavailable");
        assert_eq!(job.names().len(), 0);
    }

    #[test]
    fn it_is_retried_after_transient_failures_and_killed_if_it_hangs() {
        let job1 =
            job("mkdir \"$out.d\" 2>/dev/null && { echo 'ERROR: HTTP Error 429' >&2; exit 1; }\
                        \nprintf fog > \"$out\"");
        assert_eq!(job1.run().clips, 2);
        assert_eq!((job1.file(0), job1.names().len()), (b"fog".to_vec(), 1));

        let mut job2 = job("exec sleep 30");
        job2.spec.timeouts.attempt = Duration::from_millis(200);
        let started = Instant::now();
        assert_eq!(job2.run().failed, 2);
        assert!(job2.failures()[0].1.contains("took longer"), "{:?}", job2.failures());
        assert!(started.elapsed() < Duration::from_secs(10));

        let mut job3 = job("exit 0");
        job3.spec.max_bytes = Some(10);
        assert_eq!(job3.run().failed, 2);
        assert!(job3.failures()[0].1.contains("larger than 10 bytes?"), "{:?}", job3.failures());
    }

    #[test]
    fn a_full_disk_ends_the_step_and_keeps_its_files() {
        let full = "ERROR: unable to write data: [Errno 28] No space left on device";
        let job = job(&format!("printf fo > \"$out.part\"; echo '{full}' >&2; exit 1"));
        let error = job.try_run().unwrap_err();
        assert!(matches!(error, PrepareError::Halted { done: 0, total: 1, .. }), "{error}");
        assert!(!job.out().exists());
        // The lock is released, and the work folder has the bytes so far.
        let names = job.names();
        assert!(names.len() == 1 && names[0].starts_with(".yt-dlp-"), "{names:?}");
        assert!(job.spec.folder.join(&names[0]).join("video.mp4.part").is_file());
    }
}

#[test]
fn hosts_that_are_not_public_are_rejected_unless_allowed() {
    let server = Server::start(|_| Answer::file(b"fog"));
    let port = server.url.rsplit(':').next().unwrap();
    for host in ["127.0.0.1", "localhost", "[::1]", "127.1", "0.0.0.0", "169.254.169.254"] {
        let mut job = Job::of(&[format!("http://{host}:{port}/fox.mp4")]);
        job.spec.allow_private = false;
        assert_eq!(job.run().failed, 1);
        let reason = job.reason();
        assert!(reason.contains("needs private hosts to be allowed"), "{host}: {reason}");
        assert!(!reason.contains("attempts"), "asked once: {reason}");
        assert_eq!(job.names().len(), 0);
    }
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn redirects_stay_within_http() {
    for (to, words, requests) in [
        ("ftp://a.example/fox.mp4", "unknown scheme", 1),
        ("gopher://127.0.0.1:70/", "unknown scheme", 1),
        // Without a host, it is a path on the same server, which redirects forever here.
        ("file:///etc/passwd", "too many redirects", 9),
    ] {
        let (job, server) = one(move |_| Answer::status(302).with("Location", to));
        let reason = job.reason();
        assert!(reason.contains(words), "{to}: {reason}");
        assert_eq!((server.requests().len(), job.names().len()), (requests, 0), "{reason}");
    }
    let (job, _) = one(|request| match request.path.as_str() {
        "/fox.mp4" => Answer::status(301).with("Location", "/there.mp4"),
        _ => Answer::file(b"fog"),
    });
    assert_eq!(job.file(0), b"fog");
}

#[test]
fn credentials_in_addresses_are_used_and_never_stored() {
    let server = Server::start(|request| match request.path.as_str() {
        path if path.starts_with("/missing") => Answer::status(404),
        path if path.starts_with("/cut") => {
            Answer::version(&bytes(5_000_000, 1), "\"v1\"", request).cut(4_500_000)
        }
        _ => Answer::file(b"fog"),
    });
    let host = server.url.strip_prefix("http://").unwrap();
    let mut job = Job::new(&format!(
        "url,page\n\
         http://me:s3cret@{host}/fox.mp4?token=s3cret&t=1,https://me:s3cret@a.example/\n\
         http://me:s3cret@{host}/missing.mp4,\n\
         http://me:s3cret@{host}/cut.mp4?X-Amz-Signature=s3cret,\n\
         ftp://me:s3cret@{host}/fox.mp4,\n\
         me:s3cret@{host}/fox.mp4,\n\
         http://me:s3cret@no such host/fox.mp4,\n"
    ));
    job.spec.retry.attempts = 1;
    assert_eq!((job.run().clips, job.failures().len()), (1, 5));
    // The server received the secrets.
    let asked = server.requests();
    let first = asked.iter().find(|request| request.path.starts_with("/fox")).unwrap();
    assert_eq!(first.path, "/fox.mp4?token=s3cret&t=1");
    assert_eq!(first.headers["authorization"], "Basic bWU6czNjcmV0");
    let manifest = job.manifest();
    let shown = format!("http://{host}/fox.mp4?token=...&t=1");
    assert_eq!((manifest.get(0, "url"), manifest.get(0, "source")), (Some(&*shown), Some(&*shown)));
    assert_eq!(manifest.get(0, "page"), Some("https://a.example/"));

    let mut folders = vec![job.folder.path().to_path_buf()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            let is_list = path.file_name().is_some_and(|name| name == "list.csv");
            let bytes = std::fs::read(&path).unwrap();
            let is_told = bytes.windows(6).any(|window| window == b"s3cret");
            assert_eq!(is_told, is_list, "{}", path.display());
        }
    }
    // List, manifest, failures, journal, the video, and the partial file with its metadata.
    assert!(files >= 6, "{files}");
}
