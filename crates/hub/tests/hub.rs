//! Downloads from a test server that simulates the hub and its failures.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod hub_server;

use hub_server::{Answer, COMMIT, Repo, Request, Server, bytes, git_blob, sha256};
use opensora_hub::{
    Completed, Files, Hub, HubError, Locked, Lookup, Observer, Planned, Progress, Repository,
    RepositoryFile, Retrying, Settings, Snapshot, Started, Token, Unreachable, Verdict, Wanted,
};
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const TOKEN: &str = "hf_secret";

/// A hub with an empty cache.
struct Case {
    home: TempDir,
    server: Server,
}

impl Case {
    fn new(
        repo: Repo,
        overrides: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        Self { home: tempfile::tempdir().unwrap(), server: Server::start(repo, overrides) }
    }

    fn plain(repo: Repo) -> Self {
        Self::new(repo, |_| None)
    }

    fn settings(&self) -> Settings {
        Settings {
            home: self.home.path().into(),
            cache: self.cache(),
            endpoint: self.server.url.clone(),
            token: Token::new(TOKEN).unwrap(),
            offline: false,
        }
    }

    fn hub(&self) -> Hub {
        Hub::new(self.settings()).with_first_wait(Duration::from_millis(1))
    }

    fn offline(&self) -> Hub {
        Hub::new(Settings { offline: true, ..self.settings() })
    }

    fn cache(&self) -> PathBuf {
        self.home.path().join("hub")
    }

    fn repository(&self) -> PathBuf {
        self.cache().join("models--owner--name")
    }

    fn incomplete(&self, bytes: &[u8]) -> PathBuf {
        self.repository().join("blobs").join(format!("{}.incomplete", sha256(bytes)))
    }

    fn fetch(&self, files: &Files) -> Result<Snapshot, HubError> {
        fetch(&self.hub(), files, Lookup::Ask, &mut ())
    }

    /// Returns true if no snapshot and no ref is visible.
    fn no_snapshot(&self) -> bool {
        !self.repository().join("snapshots").exists() && !self.repository().join("refs").exists()
    }
}

fn named(name: &str) -> Files {
    Files::Named(vec![name.into()])
}

fn repository() -> Repository {
    "owner/name".parse().unwrap()
}

fn fetch(
    hub: &Hub,
    files: &Files,
    lookup: Lookup,
    observer: &mut dyn Observer,
) -> Result<Snapshot, HubError> {
    let repository = repository();
    hub.fetch(&Wanted { repository: &repository, revision: "main", files }, lookup, observer)
}

/// Keeps the events as text; breaks at the first one that begins so.
#[derive(Default)]
struct Log {
    events: Vec<String>,
    stop_at: Option<&'static str>,
}

impl Log {
    fn event(&mut self, event: &dyn std::fmt::Debug) -> ControlFlow<()> {
        self.events.push(format!("{event:?}"));
        let last = self.events.last().unwrap();
        match self.stop_at.is_some_and(|stop| last.starts_with(stop)) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

impl Observer for Log {
    fn planned(&mut self, event: &Planned<'_>) -> ControlFlow<()> {
        self.event(event)
    }

    fn started(&mut self, event: &Started<'_>) -> ControlFlow<()> {
        self.event(event)
    }

    fn downloaded(&mut self, event: &Progress<'_>) -> ControlFlow<()> {
        self.event(event)
    }

    fn completed(&mut self, event: &Completed<'_>) -> ControlFlow<()> {
        self.event(event)
    }

    fn retrying(&mut self, event: &Retrying<'_>) -> ControlFlow<()> {
        self.event(event)
    }

    fn locked(&mut self, event: &Locked<'_>) -> ControlFlow<()> {
        self.event(event)
    }

    fn unreachable(&mut self, event: &Unreachable<'_>) -> ControlFlow<()> {
        self.event(event)
    }

    fn waiting(&mut self) -> ControlFlow<()> {
        match self.stop_at {
            Some("Waiting") => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

fn is_cdn(request: &Request) -> bool {
    request.path.starts_with("/cdn/")
}

#[test]
fn files_of_both_kinds_are_cached_as_huggingface_hub_does() {
    let (small, large) = (b"{\"a\": 1}\n".to_vec(), bytes(300_000, 1));
    let case = Case::plain(
        Repo::default().with("vae/config.json", small.clone()).with("x.safetensors", large.clone()),
    );
    let files = Files::Named(vec!["vae/config.json".into(), "x.safetensors".into()]);
    let mut log = Log::default();
    let snapshot = fetch(&case.hub(), &files, Lookup::Ask, &mut log).unwrap();

    assert_eq!((snapshot.commit.as_str(), &snapshot.files.len()), (COMMIT, &2));
    assert_eq!(snapshot.folder, case.repository().join("snapshots").join(COMMIT));
    for (name, bytes, tag) in
        [("vae/config.json", &small, git_blob(&small)), ("x.safetensors", &large, sha256(&large))]
    {
        let path = snapshot.folder.join(name);
        assert_eq!(&fs::read(&path).unwrap(), bytes);
        let blob = case.repository().join("blobs").join(tag);
        assert_eq!(fs::canonicalize(&path).unwrap(), fs::canonicalize(&blob).unwrap());
    }
    assert_eq!(fs::read_to_string(case.repository().join("refs/main")).unwrap(), COMMIT);
    assert!(log.events[0].contains("files: 2, bytes: 300009"), "{:?}", log.events[0]);
    assert!(log.events.iter().any(|event| event.contains("bytes_per_second")));

    // The token goes to the hub and not to the host that it redirects to.
    for request in case.server.requests() {
        let expected = (!is_cdn(&request)).then(|| format!("Bearer {TOKEN}"));
        assert_eq!(request.headers.get("authorization"), expected.as_ref(), "{request:?}");
    }
    assert_eq!(case.server.requests_for("GET", "/cdn/").len(), 1);

    // A second call downloads nothing.
    let before = case.server.requests_for("GET", "/").len();
    assert_eq!(case.fetch(&files).unwrap(), snapshot);
    assert_eq!(case.server.requests_for("GET", "/").len(), before);
    let asked = case.server.requests().len();
    assert_eq!(fetch(&case.hub(), &files, Lookup::CacheFirst, &mut ()).unwrap(), snapshot);
    assert_eq!(case.server.requests().len(), asked);

    let checked = case.hub().cache().verify(&repository(), &mut ());
    assert!(checked.unwrap().iter().all(|file| file.verdict == Verdict::Good));
    fs::write(snapshot.folder.join("x.safetensors"), "damaged").unwrap();
    let checked = case.hub().cache().verify(&repository(), &mut ());
    let damaged = |file: &&opensora_hub::Checked| matches!(file.verdict, Verdict::Damaged { .. });
    assert_eq!(checked.unwrap().iter().filter(damaged).count(), 1);
}

#[test]
fn a_model_is_fetched_with_the_shards_of_its_index() {
    let index = r#"{"weight_map": {"a": "m-1.bin", "b": "m-2.bin", "c": "m-1.bin"}}"#;
    let repo = Repo::default()
        .with("README.md", "no part of it")
        .with("config.json", "{}")
        .with("pytorch_model.bin.index.json", index)
        .with("m-1.bin", bytes(1000, 1))
        .with("m-2.bin", bytes(2000, 2))
        .with("spiece.model", bytes(100, 3));
    let case = Case::plain(repo);
    let snapshot = case.fetch(&Files::Model).unwrap();
    let mut names = snapshot.files.clone();
    names.sort();
    let expected =
        ["config.json", "m-1.bin", "m-2.bin", "pytorch_model.bin.index.json", "spiece.model"];
    assert_eq!(names, expected);
    assert!(names.iter().all(|name| snapshot.folder.join(name).is_file()));

    let offline = fetch(&case.offline(), &Files::Model, Lookup::Ask, &mut ()).unwrap();
    assert_eq!(offline.files.len(), 5);
    // A shard that is missing is not overlooked.
    fs::remove_file(snapshot.folder.join("m-2.bin")).unwrap();
    let error = fetch(&case.offline(), &Files::Model, Lookup::Ask, &mut ()).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    assert_eq!(case.fetch(&Files::All).unwrap().files.len(), 6);
}

#[test]
fn a_cut_download_resumes_by_a_range() {
    let large = bytes(400_000, 5);
    let cut = |request: &Request| is_cdn(request) && request.number == 0;
    let answer = large.clone();
    let case = Case::new(Repo::default().with("x.bin", large.clone()), move |request| {
        cut(request).then(|| Answer::bytes(&answer, request).cut(150_000))
    });
    let snapshot = case.fetch(&named("x.bin")).unwrap();
    assert_eq!(fs::read(snapshot.folder.join("x.bin")).unwrap(), large);
    let requests = case.server.requests_for("GET", "/cdn/");
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].range(), Some((150_000, None)));
}

#[test]
fn bytes_of_a_stopped_call_are_used_by_the_next() {
    let large = bytes(400_000, 6);
    let case = Case::plain(Repo::default().with("x.bin", large.clone()));
    let mut log = Log { stop_at: Some("Progress"), ..Log::default() };
    let error = fetch(&case.hub(), &named("x.bin"), Lookup::Ask, &mut log).unwrap_err();
    assert!(matches!(error, HubError::Stopped), "{error}");
    let kept = fs::metadata(case.incomplete(&large)).unwrap().len();
    assert!(kept > 0 && kept < 400_000 && case.no_snapshot());

    let mut log = Log::default();
    fetch(&case.hub(), &named("x.bin"), Lookup::Ask, &mut log).unwrap();
    let left = 400_000 - kept;
    assert!(log.events[0].contains(&format!("bytes: {left}")), "{:?}", log.events[0]);
    assert!(log.events[1].contains(&format!("resumed: {kept}")), "{:?}", log.events[1]);
    assert_eq!(case.server.requests_for("GET", "/cdn/")[1].range(), Some((kept as usize, None)));
}

#[test]
fn foreign_bytes_in_an_unfinished_file_cost_one_more_download() {
    let large = bytes(100_000, 7);
    let case = Case::plain(Repo::default().with("x.bin", large.clone()));
    for foreign in [bytes(40_000, 8), bytes(100_000, 8), bytes(200_000, 8)] {
        fs::create_dir_all(case.repository().join("blobs")).unwrap();
        fs::write(case.incomplete(&large), foreign).unwrap();
        let snapshot = case.fetch(&named("x.bin")).unwrap();
        let path = snapshot.folder.join("x.bin");
        assert_eq!(fs::read(&path).unwrap(), large);
        fs::remove_file(fs::canonicalize(&path).unwrap()).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn what_is_planted_in_the_cache_is_neither_followed_nor_trusted() {
    use std::os::unix::fs::symlink;
    let large = bytes(100_000, 9);
    let case = Case::plain(Repo::default().with("x.bin", large.clone()));
    let blobs = case.repository().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let victim = case.repository().join("victim");
    let blob = blobs.join(sha256(&large));
    let plant: [&dyn Fn(); 4] = [
        &|| symlink(&victim, case.incomplete(&large)).unwrap(),
        &|| symlink(&victim, &blob).unwrap(),
        &|| fs::write(&blob, "short").unwrap(),
        &|| {
            let made = std::process::Command::new("mkfifo").arg(&blob).status().unwrap();
            assert!(made.success());
        },
    ];
    for plant in plant {
        fs::write(&victim, "precious").unwrap();
        plant();
        let snapshot = case.fetch(&named("x.bin")).unwrap();
        assert_eq!(fs::read(snapshot.folder.join("x.bin")).unwrap(), large);
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert!(fs::symlink_metadata(&blob).unwrap().is_file());
        fs::remove_file(&blob).unwrap();
    }
}

#[test]
fn a_server_without_ranges_sends_the_file_again() {
    let large = bytes(100_000, 9);
    let answer = large.clone();
    let case = Case::new(Repo::default().with("x.bin", large.clone()), move |request| {
        is_cdn(request).then(|| Answer { body: answer.clone(), ..Answer::status(200) })
    });
    fs::create_dir_all(case.repository().join("blobs")).unwrap();
    fs::write(case.incomplete(&large), &large[..30_000]).unwrap();
    let snapshot = case.fetch(&named("x.bin")).unwrap();
    assert_eq!(fs::read(snapshot.folder.join("x.bin")).unwrap(), large);
}

#[test]
fn a_wrong_checksum_removes_the_file() {
    let large = bytes(100_000, 10);
    for (name, wrong_path) in [("x.bin", "/cdn/"), ("x.json", "/owner/name/resolve/")] {
        let case = Case::new(Repo::default().with(name, large.clone()), move |request| {
            let is_wrong = request.path.starts_with(wrong_path) && request.method == "GET";
            is_wrong.then(|| Answer { body: bytes(100_000, 11), ..Answer::status(200) })
        });
        let error = case.fetch(&named(name)).unwrap_err();
        assert!(matches!(error, HubError::Checksum { .. }), "{error}");
        assert!(error.to_string().contains(name) && case.no_snapshot(), "{error}");
        assert_eq!(fs::read_dir(case.repository().join("blobs")).unwrap().count(), 0);
    }
}

#[test]
fn the_bytes_before_patience_ends_are_kept() {
    let large = bytes(300_000, 12);
    let answer = large.clone();
    let case = Case::new(Repo::default().with("x.bin", large.clone()), move |request| {
        is_cdn(request).then(|| match request.number {
            0 => Answer::bytes(&answer, request).cut(200_000),
            _ => Answer::status(503),
        })
    });
    let error = case.fetch(&named("x.bin")).unwrap_err();
    assert!(matches!(error, HubError::Status { status: 503, .. }), "{error}");
    assert_eq!(fs::read(case.incomplete(&large)).unwrap(), large[..200_000]);
    assert!(case.no_snapshot() && !error.to_string().contains("secret"), "{error}");
}

#[test]
fn refusals_say_what_to_do() {
    let refuse = |status: u16, code: &'static str| {
        let case = Case::new(Repo::default().with("x.bin", "x"), move |_| {
            Some(match code {
                "" => Answer::status(status),
                code => Answer::status(status).with("X-Error-Code", code),
            })
        });
        let without = Hub::new(Settings { token: None, ..case.settings() });
        let text = |hub: &Hub| {
            let error = fetch(hub, &named("x.bin"), Lookup::Ask, &mut ()).unwrap_err();
            assert!(!error.to_string().contains(['\n', '\r']));
            error.to_string()
        };
        (text(&case.hub()), text(&without))
    };
    let (with, without) = refuse(403, "GatedRepo");
    assert!(with.contains("accept its terms at http://127.0.0.1"), "{with}");
    assert!(with.contains("/owner/name") && without.contains("set HF_TOKEN"), "{without}");
    let (with, without) = refuse(401, "RepoNotFound");
    assert!(with.contains("this token may not read"), "{with}");
    assert!(without.contains("those need HF_TOKEN"), "{without}");
    assert!(refuse(401, "").0.contains("no such repository"));
    assert!(refuse(404, "RepoNotFound").0.contains("no such repository"));
    assert_eq!(refuse(404, "RevisionNotFound").0, "owner/name has no revision 'main'");
    let (with, _) = refuse(404, "EntryNotFound");
    assert_eq!(with, "owner/name has no file 'x.bin' at revision main");
    assert!(refuse(403, "").0.contains("the server answers 403"));

    let case = Case::new(Repo::default().with("x.bin", "x"), |_| {
        let message = "Invalid credentials in Authorization header";
        Some(Answer::status(401).with("X-Error-Message", message))
    });
    // The description of the repository, and a file.
    for files in [Files::All, named("x.bin")] {
        let error = case.fetch(&files).unwrap_err();
        assert!(matches!(error, HubError::InvalidToken { .. }), "{error}");
        assert!(error.to_string().contains("invalid or has expired: replace it (HF_TOKEN"));
    }
}

#[test]
fn too_many_requests_are_repeated_after_the_stated_wait() {
    let case = Case::new(Repo::default().with("x.json", "{}"), |request| {
        let busy = request.method == "HEAD" && request.number == 0;
        busy.then(|| Answer::status(429).with("Retry-After", "1"))
    });
    let started = Instant::now();
    let mut log = Log::default();
    fetch(&case.hub(), &named("x.json"), Lookup::Ask, &mut log).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(log.events[0].contains("RateLimited") && log.events[0].contains("wait: 1s"));

    let case = Case::new(Repo::default(), |_| Some(Answer::status(429).with("Retry-After", "0")));
    let error = case.fetch(&named("x.json")).unwrap_err();
    assert!(matches!(error, HubError::RateLimited { .. }), "{error}");
    // A wait of minutes can be ended.
    let case = Case::new(Repo::default(), |_| Some(Answer::status(429).with("Retry-After", "250")));
    let mut log = Log { stop_at: Some("Waiting"), ..Log::default() };
    let error = fetch(&case.hub(), &named("x.json"), Lookup::Ask, &mut log).unwrap_err();
    assert!(matches!(error, HubError::Stopped), "{error}");
}

#[test]
fn free_space_is_compared_before_the_first_byte() {
    let case = Case::plain(Repo::default().with("x.bin", bytes(5000, 13)));
    let hub = case.hub().with_free_space(|_: &Path| Ok(4999));
    let error = fetch(&hub, &named("x.bin"), Lookup::Ask, &mut ()).unwrap_err();
    assert!(
        matches!(error, HubError::Space { needed: 5000, available: 4999, .. })
            && error.to_string().contains("HF_HUB_CACHE"),
        "{error}"
    );
    assert!(case.server.requests_for("GET", "/").is_empty() && case.no_snapshot());
    let hub = case.hub().with_free_space(|_: &Path| Ok(5000));
    fetch(&hub, &named("x.bin"), Lookup::Ask, &mut ()).unwrap();
    // The real function, in a folder that does not exist yet.
    let case = Case::plain(Repo::default().with("x.bin", bytes(5000, 13)));
    case.fetch(&named("x.bin")).unwrap();
}

#[test]
fn the_space_for_an_address_is_that_of_its_own_folder() {
    let file = bytes(5000, 13);
    let case = Case::new(Repo::default(), move |request| Some(Answer::bytes(&file, request)));
    // The disk of the cache is full, that of the file is not.
    let cache = case.cache();
    let free = move |folder: &Path| Ok(if folder.starts_with(&cache) { 0 } else { 5000 });
    let hub = case.hub().with_free_space(free);
    hub.fetch_address(&format!("{}/x.pt", case.server.url), &mut ()).unwrap();
}

#[test]
fn wrong_bytes_over_a_broken_connection_are_fetched_twice_at_most() {
    let wrong = bytes(100_000, 11);
    let case = Case::new(Repo::default().with("x.bin", bytes(100_000, 10)), move |request| {
        is_cdn(request).then(|| {
            let answer = Answer::bytes(&wrong, request);
            if request.range().is_none() { answer.cut(50_000) } else { answer }
        })
    });
    let error = case.fetch(&named("x.bin")).unwrap_err();
    assert!(matches!(error, HubError::Checksum { .. }), "{error}");
    assert_eq!(case.server.requests_for("GET", "/cdn/").len(), 4);
}

#[test]
fn offline_reads_the_cache_only() {
    let case = Case::plain(Repo::default().with("x.json", "{}"));
    let error = fetch(&case.offline(), &named("x.json"), Lookup::Ask, &mut ()).unwrap_err();
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    let error = case.offline().list(&repository(), "main", &mut ()).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    assert!(case.server.requests().is_empty());
    let fetched = case.fetch(&named("x.json")).unwrap();
    let asked = case.server.requests().len();
    let cached = fetch(&case.offline(), &named("x.json"), Lookup::Ask, &mut ()).unwrap();
    assert_eq!((cached, case.server.requests().len()), (fetched.clone(), asked));

    // An unreachable hub: the cached copy is used and reported.
    let gone = Hub::new(Settings { endpoint: "http://127.0.0.1:9".into(), ..case.settings() })
        .with_first_wait(Duration::from_millis(1));
    let mut log = Log::default();
    assert_eq!(fetch(&gone, &named("x.json"), Lookup::Ask, &mut log).unwrap(), fetched);
    assert!(log.events.iter().any(|event| event.starts_with("Unreachable")));
    let error = fetch(&gone, &named("y.json"), Lookup::Ask, &mut ()).unwrap_err();
    assert!(matches!(error, HubError::Connection { .. }), "{error}");
}

#[test]
fn some_files_do_not_count_as_all() {
    let repo = Repo::default().with("a.json", "{}").with("x.bin", bytes(1000, 15));
    let case = Case::new(repo, |request| is_cdn(request).then(|| Answer::status(503)));
    // Records the commit of `main`.
    let fetched = case.fetch(&named("a.json")).unwrap();
    // A failed download of all files records nothing.
    for lookup in [Lookup::Ask, Lookup::CacheFirst] {
        let error = fetch(&case.hub(), &Files::All, lookup, &mut ()).unwrap_err();
        assert!(matches!(error, HubError::Status { status: 503, .. }), "{error}");
    }
    // Without a listing, the cached files are all that can be had.
    let gone = Hub::new(Settings { endpoint: "http://127.0.0.1:9".into(), ..case.settings() })
        .with_first_wait(Duration::from_millis(1));
    let mut log = Log::default();
    assert_eq!(fetch(&gone, &Files::All, Lookup::Ask, &mut log).unwrap(), fetched);
    assert!(log.events.iter().any(|event| event.starts_with("Unreachable")));
}

#[test]
fn all_files_are_known_after_a_complete_download() {
    let repo = Repo::default()
        .with(".gitattributes", "hidden")
        .with("a.json", "{}")
        .with("vae/x.bin", bytes(1000, 16));
    let case = Case::plain(repo);
    let first = |files: &Files| fetch(&case.hub(), files, Lookup::CacheFirst, &mut ()).unwrap();
    first(&named("a.json"));
    let fetched = first(&Files::All);
    assert_eq!(fetched.files, ["a.json", "vae/x.bin"]);
    let asked = case.server.requests().len();
    assert_eq!(first(&Files::All), fetched);
    assert_eq!(fetch(&case.offline(), &Files::All, Lookup::Ask, &mut ()).unwrap(), fetched);
    assert_eq!(case.server.requests().len(), asked);
    // The record does not count as a file.
    let found = case.hub().cache().describe(repository()).unwrap();
    assert_eq!((found.files.len(), found.bytes), (2, 1002));

    let removed = fetched.folder.join("vae/x.bin");
    fs::remove_file(&removed).unwrap();
    assert_eq!(first(&Files::All), fetched);
    assert!(case.server.requests().len() > asked && removed.is_file());
}

#[test]
fn two_calls_download_a_file_once() {
    let large = bytes(2_000_000, 14);
    let case = Case::plain(Repo::default().with("x.bin", large.clone()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let snapshot = case.fetch(&named("x.bin")).unwrap();
                assert_eq!(fs::read(snapshot.folder.join("x.bin")).unwrap(), large);
            });
        }
    });
    assert_eq!(case.server.requests_for("GET", "/cdn/").len(), 1);
}

#[test]
fn hostile_names_of_a_server_lead_nowhere() {
    for (header, value) in [
        ("ETag", "\"../../../x\""),
        ("ETag", "\"\""),
        ("X-Repo-Commit", "../../x"),
        ("X-Repo-Commit", ""),
    ] {
        let case = Case::new(Repo::default(), move |request| {
            let good = [("ETag", "\"tag\""), ("X-Repo-Commit", COMMIT)];
            let answer = Answer { body: b"x".to_vec(), ..Answer::status(200) };
            let kept = good.into_iter().filter(|(name, _)| *name != header);
            let answer = kept.fold(answer, |answer, (name, value)| answer.with(name, value));
            let _ = request;
            Some(answer.with(header, value))
        });
        let error = case.fetch(&named("x.json")).unwrap_err();
        assert!(matches!(error, HubError::Answer { .. }), "{error}");
        assert!(!case.cache().exists());
    }
    let case = Case::new(Repo::default(), |_| {
        let body =
            format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{{\"rfilename\": \"../x\"}}]}}");
        Some(Answer { body: body.into_bytes(), ..Answer::status(200) })
    });
    let error = case.fetch(&Files::All).unwrap_err();
    assert!(matches!(error, HubError::Name { .. }), "{error}");
    assert!(case.fetch(&named("../x")).is_err());
}

#[test]
fn a_header_of_safetensors_is_read_without_its_tensors() {
    let header = br#"{"x":{"dtype":"F32","shape":[2000],"data_offsets":[0,8000]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(bytes(8000, 15));
    let size = file.len() as u64;
    let case = Case::plain(Repo::default().with("x.safetensors", file).with("y.bin", "no tensors"));
    let header_of = |name: &str| {
        let file = RepositoryFile { repository: &repository(), revision: "main", name };
        case.hub().safetensors_header(&file, &mut ())
    };
    let (head, total) = header_of("x.safetensors").unwrap();
    assert_eq!((&head[8..], total), (&header[..], size));
    let asked = case.server.requests_for("GET", "/cdn/");
    assert!(asked.iter().all(|request| request.range().is_some_and(|(_, last)| last.is_some())));
    let error = header_of("y.bin").unwrap_err();
    assert!(error.to_string().contains("not a safetensors file"), "{error}");
}

#[test]
fn a_plain_address_is_fetched_without_a_token() {
    let large = bytes(200_000, 16);
    let answer = large.clone();
    let case = Case::new(Repo::default(), move |request| {
        let whole = Answer::bytes(&answer, request).with("ETag", "\"v1\"");
        Some(if request.number == 1 { whole.cut(90_000) } else { whole })
    });
    // Another host than the hub's.
    let url = format!("{}/models/x.pt?key=1", case.server.url.replace("127.0.0.1", "localhost"));
    let path = case.hub().fetch_address(&url, &mut ()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), large);
    assert!(path.ends_with("models/x.pt"), "{}", path.display());
    let requests = case.server.requests();
    assert_eq!(requests[2].range(), Some((90_000, None)));
    assert_eq!(requests[2].headers["if-range"], "\"v1\"");
    assert!(requests.iter().all(|request| !request.headers.contains_key("authorization")));
    assert_eq!(case.offline().fetch_address(&url, &mut ()).unwrap(), path);
    assert_eq!(case.server.requests().len(), requests.len());
    assert!(case.hub().fetch_address("ftp://host/x", &mut ()).is_err());
    assert!(case.hub().fetch_address("http://host/../../x", &mut ()).is_err());
}

/// Stops when it has been asked for a while.
struct Impatient(Instant);

impl Observer for Impatient {
    fn waiting(&mut self) -> ControlFlow<()> {
        match self.0.elapsed() < Duration::from_millis(500) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }
}

#[test]
fn a_server_that_is_silent_does_not_keep_the_observer_from_stopping() {
    const SILENCE: Duration = Duration::from_secs(20);
    let large = bytes(400_000, 5);
    let shared = large.clone();
    // In the middle of the bytes, and before the answer.
    let in_body = move |request: &Request| {
        let stalls = is_cdn(request) && request.number == 0;
        let answer = Answer::bytes(&shared, request).cut(100_000);
        stalls.then_some(Answer { silence: SILENCE, ..answer })
    };
    let before = |request: &Request| {
        if is_cdn(request) && request.number == 0 {
            std::thread::sleep(SILENCE);
        }
        None
    };
    let repo = || Repo::default().with("x.bin", large.clone());
    for (case, kept) in [(Case::new(repo(), in_body), 100_000), (Case::new(repo(), before), 0)] {
        let start = Instant::now();
        let error = fetch(&case.hub(), &named("x.bin"), Lookup::Ask, &mut Impatient(start));
        let took = start.elapsed();
        assert!(matches!(error, Err(HubError::Stopped)), "{error:?}");
        assert!(took < SILENCE / 2, "{took:?}");
        let there = fs::metadata(case.incomplete(&large)).map_or(0, |partial| partial.len());
        assert_eq!(there, kept);
        let snapshot = case.fetch(&named("x.bin")).unwrap();
        assert!(fs::read(snapshot.folder.join("x.bin")).unwrap() == large);
        let last = case.server.requests_for("GET", "/cdn/").pop().unwrap();
        let range = (kept > 0).then_some((kept as usize, None));
        assert_eq!(last.range(), range);
    }
}
