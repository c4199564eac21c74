//! Runs the commands of `docs/preparing-data.md` unchanged.
//!
//! A mock server replaces the vision-language model: it recognises the shapes of the demo world in the
//! images of a request and returns a caption.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use base64::{Engine, prelude::BASE64_STANDARD};
use opensora::{
    manifest::Table,
    nn::random::{HostRng, Purpose},
    video::Frames,
};
use opensora_demo::{Labels, Shape, captions, judge};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// Returns the `sh` code blocks of a page.
fn commands(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while lines.by_ref().any(|line| line == "```sh") {
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push(block.join("\n"));
    }
    blocks
}

/// Returns a caption of the images of a request.
fn described(request: &Value) -> String {
    let content = request["messages"][0]["content"].as_array().unwrap();
    let (mut pixels, mut size) = (Vec::new(), [0, 0]);
    for part in content.iter().filter(|part| part["type"] == "image_url") {
        let url = part["image_url"]["url"].as_str().unwrap();
        let coded = url.strip_prefix("data:image/jpeg;base64,").unwrap();
        let bytes = BASE64_STANDARD.decode(coded).unwrap();
        let picture = image::load_from_memory(&bytes).unwrap().into_rgb8();
        size = [picture.height() as usize, picture.width() as usize];
        pixels.extend(picture.into_raw());
    }
    let count = pixels.len() / (3 * size[0] * size[1]);
    let seen = judge(&Frames::from_rgb(pixels, [count, size[0], size[1]]).unwrap()).verdict;
    let (Some(colour), Some(background)) = (seen.colour, seen.background) else {
        return "nothing that has a name".into();
    };
    let shape = seen.shape.unwrap_or(Shape::Circle);
    let labels = Labels { shape, colour, background, motion: seen.motion };
    captions::complete(&labels, &mut HostRng::new(0, Purpose::DemoWorld, 0, 0))
}

/// Answers one request and closes the connection. `None`: the client has disconnected.
fn answer(stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(&stream);
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line).ok()? > 2 {
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let caption = described(&serde_json::from_slice(&body).unwrap());
    let choice = json!({"message": {"role": "assistant", "content": caption},
                        "finish_reason": "stop"});
    let text = json!({"choices": [choice]}).to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
    write!(&stream, "{head}Content-Length: {}\r\n\r\n{text}", text.len()).ok()
}

/// Starts the mock server and returns its address.
fn stand_in() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(|| answer(stream.unwrap()));
        }
    });
    endpoint
}

#[test]
fn the_page_leads_from_a_folder_of_videos_to_a_trained_stage() {
    let endpoint = stand_in();
    let folder = tempfile::tempdir().unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_opensora")).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/preparing-data.md");
    let blocks = commands(&fs::read_to_string(page).unwrap());
    assert!(blocks.len() >= 8, "{blocks:?}");
    for block in &blocks {
        let output = Command::new("sh")
            .args(["-euc", block])
            .current_dir(folder.path())
            .env("PATH", format!("{}:{path}", programs.display()))
            .env("ENDPOINT", &endpoint)
            .env("MODEL", "stand-in")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{block}\n{said}");
    }

    // Each shot is a clip whose caption names its colours. One clip of each near-duplicate pair is kept.
    for table in ["train.csv", "all.csv"] {
        let table = Table::read(&folder.path().join(table)).unwrap();
        assert!((9..=12).contains(&table.len()), "{}", table.len());
        let mut named = 0;
        for row in 0..table.len() {
            let film = table.get(row, "source").unwrap();
            let record = folder.path().join(format!("{film}.json"));
            let film: Value = serde_json::from_str(&fs::read_to_string(record).unwrap()).unwrap();
            let start: f64 = table.get(row, "start").unwrap().parse().unwrap();
            // A shot has 16 frames at 8 frames per second.
            let shot = &film["shots"][(start / 2.0).round() as usize]["labels"];
            // Both spellings are used.
            let caption = table.get(row, "text").unwrap().replace("grey", "gray");
            named += usize::from(
                caption.contains(shot["colour"].as_str().unwrap())
                    && caption.contains(shot["background"].as_str().unwrap()),
            );
        }
        assert_eq!(named, table.len());
    }
    // With two shards, the same near-duplicates are dropped and the order is the same.
    let paths = |name: &str| -> Vec<String> {
        let table = Table::read(&folder.path().join(name)).unwrap();
        (0..table.len()).map(|row| table.get(row, "path").unwrap().into()).collect()
    };
    assert_eq!(paths("merged.csv"), paths("filtered.csv"));
    assert!(folder.path().join("run/stdit/ema.safetensors").exists());
    assert!(fs::read_to_string(folder.path().join("preview.html")).unwrap().contains("<img"));
}

/// Runs a shell command in a folder and returns its standard error.
fn shell(folder: &Path, line: &str) -> String {
    let programs = Path::new(env!("CARGO_BIN_EXE_opensora")).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-euc", line])
        .current_dir(folder)
        .env("PATH", format!("{}:{path}", programs.display()))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{line}\n{said}");
    said
}

#[test]
fn near_duplicates_in_two_parts_go_as_they_would_without_parts() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    shell(folder.path(), "opensora data demo -o . --clips 3 --seed 5 --num-frames 4 --size 48 -q");
    fs::copy(at("clips/000002.mp4"), at("clips/twin.mp4")).unwrap();
    // Shards take every other row: the first of the two duplicates is in shard 1, the second in shard 0.
    let names = ["000000", "twin", "000002", "000001"];
    let rows: String = names.iter().map(|name| format!("clips/{name}.mp4,{name}\n")).collect();
    fs::write(at("all clips.csv"), format!("path,text\n{rows}")).unwrap();
    let filter = "opensora data filter --data 'all clips.csv' --min-frames 2";
    shell(folder.path(), &format!("{filter} -o whole.csv --duplicates"));
    let texts = |name: &str| -> Vec<String> {
        let table = Table::read(&at(name)).unwrap();
        (0..table.len()).map(|row| table.get(row, "text").unwrap().into()).collect()
    };
    let whole = texts("whole.csv");
    assert!(whole.contains(&"twin".into()) && !whole.contains(&"000002".into()), "{whole:?}");

    let pipeline = "input = 'all clips.csv'\nwork = 'work'\nout = 'run parts.csv'\n\
                    [filter]\nduplicates = true\nmin = { num_frames = 2 }\n";
    fs::write(at("pipeline.toml"), pipeline).unwrap();
    let filter = format!("{filter} -o 'parts.csv' --hashes");
    for (part, out) in [
        (filter.as_str(), "parts.kept.csv"),
        ("opensora data run --config pipeline.toml", "run parts.kept.csv"),
    ] {
        shell(folder.path(), &format!("{part} --shard 0/2"));
        let said = shell(folder.path(), &format!("{part} --shard 1/2"));
        // The last shard prints the commands that merge the shards.
        let commands: Vec<&str> =
            said.lines().filter(|line| line.starts_with("  opensora data")).collect();
        assert_eq!(commands.len(), 2, "{said}");
        for command in commands {
            shell(folder.path(), command);
        }
        assert_eq!(texts(out), whole, "{part}");
    }
    let missing = shell(folder.path(), "opensora data merge parts.1-of-2.csv -o one.csv");
    assert!(missing.contains("not merged: shard 0-of-2"), "{missing}");
}

#[test]
fn no_step_overwrites_the_table_that_it_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clips.csv");
    let table = "path,text\nclips/a.mp4,fog\n";
    fs::write(&path, table).unwrap();
    let caption = "caption --endpoint http://127.0.0.1:9 --model none";
    for step in ["split", "filter --hashes", "clean", caption] {
        let output = Command::new(env!("CARGO_BIN_EXE_opensora"))
            .arg("data")
            .args(step.split(' '))
            .args(["--data", "clips.csv", "--out", "./clips.csv"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{step}");
        assert!(said.contains("--out: ./clips.csv: it is the table that is read"), "{said}");
        assert_eq!(fs::read_to_string(&path).unwrap(), table, "{step}");
    }
}

#[test]
fn a_pipeline_killed_anywhere_and_started_again_gives_the_same_table() {
    let endpoint = stand_in();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let opensora = |folder: &Path, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_opensora"));
        command.args(args).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let settings = format!(
        "input = 'films'\nwork = 'work'\nout = 'all.csv'\n\
         [split]\nfps = 'source'\nshorter_side = 64\n\
         [filter]\nmin = {{ num_frames = 8 }}\n\
         [caption]\nendpoint = '{endpoint}'\nmodel = 'stand-in'\n[clean]\n"
    );
    let run = ["data", "run", "--config", "pipeline.toml"];
    for folder in &folders {
        let films = ["data", "demo", "--out", ".", "--films", "4", "--shots", "3", "--seed", "2"];
        assert!(opensora(folder.path(), &films).status().unwrap().success());
        // A broken file is listed once, even if the steps are restarted.
        fs::write(folder.path().join("films/broken.mp4"), b"no video").unwrap();
        fs::write(folder.path().join("pipeline.toml"), &settings).unwrap();
    }
    assert!(opensora(folders[0].path(), &run).status().unwrap().success());

    let mut kills = 0;
    for round in 0..40u64 {
        let mut child = opensora(folders[1].path(), &run).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(30 + 40 * round));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(kills >= 3, "the run was too short to be killed: {kills}");
    assert!(opensora(folders[1].path(), &run).status().unwrap().success());
    for name in ["all.csv", "all.failed.csv"] {
        // The column `source` has absolute paths.
        let [whole, killed] = [0, 1].map(|of| {
            let text = fs::read_to_string(folders[of].path().join(name)).unwrap();
            text.replace(&folders[of].path().display().to_string(), "")
        });
        assert_eq!(whole, killed, "{name}");
        assert!(whole.lines().count() > 1, "{whole}");
    }
    assert_eq!(Table::read(&folders[1].path().join("all.csv")).unwrap().len(), 12);
}
