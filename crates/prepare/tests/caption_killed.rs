//! Captions across kills of the process: the manifest is that of an undisturbed run.
//!
//! A separate test binary: while a process is started, it briefly holds the locks of journals that other
//! tests of the same process have open.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod chat_server;

use chat_server::{
    Answer, ChatServer, Request,
    clips::{QUICK, clips, endpoint, ids, says, spec},
};
use opensora_manifest::{Table, table::TEXT};
use opensora_prepare::{
    RunOptions,
    assemble::{Tables, failed_path},
    caption::{self, Job, Report},
};
use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// Environment variables with the worker's input, output and server.
const WORKER: [&str; 3] = ["CAPTION_TEST_INPUT", "CAPTION_TEST_OUT", "CAPTION_TEST_ADDRESS"];
const WORKERS: usize = 3;

/// Not a test: the process that the test below starts and kills.
#[test]
fn worker_process() {
    let Ok(values) = WORKER.iter().map(std::env::var).collect::<Result<Vec<_>, _>>() else {
        return;
    };
    let [input, out, address] = values.try_into().unwrap();
    let options = RunOptions { workers: WORKERS, ..RunOptions::default() };
    let endpoint = endpoint(address.parse().unwrap(), QUICK);
    let table = Table::read(Path::new(&input)).unwrap();
    let job = Job { options, ..Job::new(spec(), endpoint) };
    caption::run(&job, &table, Path::new(&out), &mut ()).unwrap();
}

#[test]
fn a_killed_process_resumes_to_the_same_manifest() {
    const CLIPS: usize = 24;
    let folder = tempfile::tempdir().unwrap();
    let mut table = clips(folder.path(), CLIPS);
    table.set(7, TEXT, "As it was.");
    let input = folder.path().join("clips.csv");
    table.write(&input).unwrap();
    let answer = |request: &Request, before: usize| {
        std::thread::sleep(Duration::from_millis(20));
        match request.clip {
            Some(clip) if clip % 5 == 3 => Answer::Status(400, "", "not this".into()),
            Some(clip) if clip % 5 == 4 && before == 0 => Answer::Status(500, "", String::new()),
            _ => says(request),
        }
    };
    let start = |out: &Path, server: &ChatServer| {
        let values = [input.to_str().unwrap(), out.to_str().unwrap(), &server.address.to_string()];
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "worker_process"])
            .envs(WORKER.into_iter().zip(values))
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let server = ChatServer::start(answer);
    let whole = folder.path().join("whole.csv");
    assert!(start(&whole, &server).wait().unwrap().success());
    let smooth = server.counts().values().sum::<usize>();

    let server = ChatServer::start(answer);
    let out = folder.path().join("killed.csv");
    let asked = || server.counts().values().sum::<usize>();
    let (mut kills, mut random) = (0, 12345u64);
    loop {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mut child = start(&out, &server);
        // Some time after a number of requests, the last of which may never be sent.
        let (until, more) = (asked() + (random >> 33) as usize % 4, (random >> 40) % 25);
        while child.try_wait().unwrap().is_none() && asked() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(more));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        if child.wait().unwrap().success() {
            break;
        }
        assert!(kills < 200, "it does not come to an end");
    }
    assert!(kills >= 4, "{kills} kills");
    // A kill loses at most the rows in progress.
    assert!(asked() <= smooth + kills * WORKERS, "{} {smooth} {kills}", asked());

    for (a, b) in [(&whole, &out), (&failed_path(&whole), &failed_path(&out))] {
        assert_eq!(std::fs::read_to_string(a).unwrap(), std::fs::read_to_string(b).unwrap());
    }
    let (output, failed) = (Table::read(&out).unwrap(), Table::read(&failed_path(&out)).unwrap());
    let both = Report { tables: Tables { output, failed }, kept: 1 };
    assert_eq!(ids(&both), (0..CLIPS).collect::<Vec<_>>(), "no row lost or doubled");
    assert_eq!(both.tables.failed.len(), 5);
    let once = asked();
    assert!(start(&out, &server).wait().unwrap().success());
    assert_eq!(asked(), once, "all is known");
}
