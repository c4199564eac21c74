//! Tests of `opensora weights` and of models by name, with a mock of the hub.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../hub/tests/hub_server/mod.rs"]
mod hub_server;

use hub_server::{COMMIT, Repo, Server, bytes};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

/// An empty cache, and a hub with one repository.
struct Case {
    folder: TempDir,
    server: Server,
}

impl Case {
    fn new(repo: Repo) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), server: Server::start(repo, |_| None) }
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("hf")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_opensora"));
        command.args(args).current_dir(self.folder.path());
        for name in ["HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.home()).env("HF_ENDPOINT", &self.server.url);
        command
    }

    fn run(&self, args: &[&str]) -> String {
        text(&self.command(args).output().unwrap())
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[args, &["--json"]].concat())).unwrap()
    }

    /// Runs a command that fails, without the hub, and returns the error message.
    fn error(&self, args: &[&str]) -> String {
        let output = self.command(args).env("HF_HUB_OFFLINE", "1").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn text(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn demo_model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../demo/model")
}

/// All files of the bundled model.
fn demo_repository() -> Repo {
    fn add(mut repo: Repo, folder: &Path, prefix: &str) -> Repo {
        for entry in fs::read_dir(folder).unwrap() {
            let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
            let name = format!("{prefix}{}", name.to_str().unwrap());
            repo = match path.is_dir() {
                true => add(repo, &path, &format!("{name}/")),
                false => repo.with(&name, fs::read(&path).unwrap()),
            };
        }
        repo
    }
    add(Repo::default(), &demo_model(), "")
}

#[test]
fn a_model_of_the_hub_is_sampled_by_its_name() {
    let case = Case::new(demo_repository());
    let prompt = "a red circle grows on a black background";
    let args = ["sample", prompt, "--model", "owner/name", "--num-frames", "1", "--steps", "2"];
    let first = case.command(&[&args[..], &["--device", "flex", "-o", "a.png"]].concat()).output();
    let first = first.unwrap();
    text(&first);
    // Size and folder are printed before the download.
    let said = String::from_utf8(first.stderr).unwrap();
    assert!(said.contains("fetching") && said.contains("MiB, from owner/name to "), "{said}");
    let record = fs::read(case.folder.path().join("a.png.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert_eq!(record["weights"][0]["repository"], "owner/name");
    assert_eq!(record["weights"][0]["commit"], COMMIT);
    assert_eq!(record["weights"].as_array().unwrap().len(), 3, "{record}");

    // With all files in the cache, nothing is requested.
    let asked = case.server.requests().len();
    case.run(&[&args[..], &["--device", "flex", "-o", "b.png"]].concat());
    assert_eq!(case.server.requests().len(), asked);
    let pixels = |name: &str| fs::read(case.folder.path().join(name)).unwrap();
    assert!(pixels("a.png") == pixels("b.png"));
}

#[test]
fn files_are_fetched_listed_and_verified() {
    let repo = Repo::default().with("config.json", "{}").with("x.bin", bytes(100_000, 1));
    let case = Case::new(repo);
    let fetched = case.json(&["weights", "fetch", "owner/name", "config.json", "x.bin"]);
    assert_eq!(fetched["files"][1]["commit"], COMMIT);
    let path = PathBuf::from(fetched["files"][1]["path"].as_str().unwrap());
    assert_eq!(fs::read(&path).unwrap(), bytes(100_000, 1));

    let listed = case.json(&["weights", "list"]);
    assert_eq!(listed["presets"].as_array().unwrap().len(), 10);
    assert_eq!(listed["presets"][0]["path"], Value::Null);
    assert_eq!(listed["repositories"][0]["bytes"], 100_002);
    assert_eq!(listed["repositories"][0]["refs"]["main"], COMMIT);
    let text = case.run(&["weights", "list"]);
    assert!(text.contains("opensora-v1-hq-16x512x512") && text.contains("not cached"), "{text}");
    assert!(text.contains("main at 01234567"), "{text}");

    assert_eq!(case.json(&["weights", "verify"])["damaged"], 0);
    fs::write(&path, "damaged").unwrap();
    let message = case.error(&["weights", "verify", "owner/name"]);
    assert!(message.contains("1 file is damaged"), "{message}");
    case.error(&["weights", "verify", "owner/name", "--remove-damaged"]);
    case.run(&["weights", "fetch", "owner/name", "x.bin", "-q"]);
    assert_eq!(fs::read(&path).unwrap(), bytes(100_000, 1));

    // Damaged files are removed also if the reader of the result has closed the pipe.
    for options in [&["--remove-damaged"][..], &["--remove-damaged", "--json"]] {
        fs::write(&path, "damaged").unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let verify = [&["weights", "verify", "owner/name"][..], options].concat();
        let output = case.command(&verify).stdout(writer).output().unwrap();
        assert!(!output.status.success() && !path.exists(), "{options:?}: {output:?}");
        case.run(&["weights", "fetch", "owner/name", "x.bin", "-q"]);
    }
}

#[test]
fn a_preset_is_fetched_with_its_text_encoder_and_vae() {
    let repo = Repo::default()
        .with("config.json", fs::read(demo_model().join("t5/config.json")).unwrap())
        .with("spiece.model", "no tokenizer")
        .with("pytorch_model.bin", "no weights")
        .with("OpenSora-v1-16x256x256.pth", "no weights");
    let case = Case::new(repo);
    let preset = "opensora-v1-16x256x256";
    let fetched = case.json(&["weights", "fetch", preset]);
    let from = |at: usize| (&fetched["files"][at]["repository"], &fetched["files"][at]["file"]);
    let file = "OpenSora-v1-16x256x256.pth";
    assert_eq!(from(0), (&"hpcai-tech/Open-Sora".into(), &file.into()));
    assert_eq!(from(1), (&"DeepFloyd/t5-v1_1-xxl".into(), &"".into()));
    assert_eq!(from(2), (&"stabilityai/sd-vae-ft-ema".into(), &"".into()));

    let listed = case.json(&["weights", "list"]);
    assert_eq!(listed["presets"][0]["name"], preset);
    assert_eq!(
        (&listed["presets"][0]["bytes"], &listed["presets"][0]["commit"]),
        (&10.into(), &COMMIT.into())
    );
    assert_eq!(listed["presets"][1]["bytes"], Value::Null);
    // Sampling opens the cached files without a request.
    let message = case.error(&["sample", "a fox", "--model", preset]);
    assert!(!message.contains("HF_HUB_OFFLINE"), "{message}");
    let verified = case.json(&["weights", "verify", preset]);
    assert_eq!(verified["files"].as_array().unwrap().len(), 1 + 3 + 3, "{verified}");
    assert_eq!(verified["missing"], serde_json::json!([]));

    // Another file of the repository does not count as the preset's file.
    let other = case.command(&["weights", "verify", "opensora-v1-hq-16x512x512"]).output().unwrap();
    assert_eq!(other.status.code(), Some(1));
    let rows = String::from_utf8(other.stdout).unwrap();
    assert!(rows.contains("Open-Sora OpenSora-v1-HQ-16x512x512.pth: not cached"), "{rows}");
    assert!(!rows.contains(file) && rows.contains("pytorch_model.bin: good"), "{rows}");
    // A repository without cached files.
    let nothing = case.command(&["weights", "verify", "owner/unknown"]).output().unwrap();
    assert_eq!(nothing.status.code(), Some(1));
    assert_eq!(String::from_utf8(nothing.stdout).unwrap(), "owner/unknown: not cached\n");
    assert!(case.error(&["weights", "verify", "dit-xl-2-256x256"]).contains("not cached"));
    // A text encoder without weights does not count as cached.
    fs::remove_file(
        PathBuf::from(fetched["files"][1]["path"].as_str().unwrap()).join("pytorch_model.bin"),
    )
    .unwrap();
    let partly = case.command(&["weights", "verify", preset]).output().unwrap();
    let rows = String::from_utf8(partly.stdout).unwrap();
    assert_eq!(partly.status.code(), Some(1));
    assert!(rows.contains("DeepFloyd/t5-v1_1-xxl: not cached"), "{rows}");
}

#[test]
fn files_from_outside_the_hub_are_listed_as_unknown() {
    let case = Case::new(Repo::default());
    let place = "dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt";
    let path = case.home().join("opensora").join(place);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "no weights").unwrap();
    let row = format!("https://{place}: unknown\n");
    assert_eq!(case.run(&["weights", "verify"]), row);
    let verified = case.json(&["weights", "verify"]);
    let file = &verified["files"][0];
    assert_eq!((&file["verdict"], &file["commit"]), (&"unknown".into(), &Value::Null));
    assert_eq!(file["path"], path.to_str().unwrap());
    // By its name, with the VAE that it is used with.
    let named = case.command(&["weights", "verify", "dit-xl-2-256x256"]).output().unwrap();
    let rows = String::from_utf8(named.stdout).unwrap();
    assert_eq!(rows, row + "stabilityai/sd-vae-ft-ema: not cached\n");
}

#[test]
fn a_local_file_of_a_preset_is_found_as_by_sampling() {
    let file = "OpenSora-v1-16x256x256.pth";
    let repo = Repo::default()
        .with("config.json", "{}")
        .with("spiece.model", "no tokenizer")
        .with("pytorch_model.bin", "no weights")
        .with(file, "no weights");
    let case = Case::new(repo);
    let local = Path::new("pretrained_models").join(file);
    let local = local.to_str().unwrap();
    fs::create_dir(case.folder.path().join("pretrained_models")).unwrap();
    fs::write(case.folder.path().join(local), "no weights").unwrap();
    let preset = "opensora-v1-16x256x256";
    let fetched = case.json(&["weights", "fetch", preset]);
    assert_eq!(fetched["files"][0]["path"], local);
    for command in [&["inspect", preset][..], &["convert", preset, "-o", "out"]] {
        let message = case.error(&[&["weights"][..], command].concat());
        assert!(message.contains(&format!("{local}: ")), "{message}");
    }
    let message = case.error(&["weights", "verify", preset]);
    assert!(message.contains("files in pretrained_models are not verified"), "{message}");
    // A revision is one of the repository, so that the local file is not used.
    let fetched = case.json(&["weights", "fetch", preset, "--revision", COMMIT]);
    assert_eq!(fetched["files"][0]["commit"], COMMIT);
    let message = case.error(&["weights", "inspect", preset, "--revision", COMMIT]);
    assert!(message.contains(COMMIT) && message.contains(file), "{message}");
}

#[test]
fn errors_of_the_hub_are_one_line() {
    let case = Case::new(Repo::default());
    let error = |args: &[&str]| {
        let output = case.command(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        text
    };
    let missing = error(&["weights", "fetch", "owner/other"]);
    assert!(missing.contains("owner/other: no such repository"), "{missing}");
    assert!(error(&["weights", "fetch", "owner/name", "x"]).contains("no file 'x'"));
    assert!(error(&["weights", "fetch", "owner/name"]).contains("--all"));
    assert!(error(&["weights", "fetch", "no-such-preset/"]).contains("no such preset"));
    // Names that look like a preset or a file cause no request.
    let before = case.server.requests().len();
    for name in ["no-preset", "no-file.pth", "folder/no-file.safetensors"] {
        for command in ["fetch", "inspect", "verify"] {
            let message = error(&["weights", command, name]);
            let expected = format!("no such preset or file '{name}'");
            assert!(message.contains(&expected), "{message}");
            assert!(message.contains("opensora-v1-16x256x256"), "{message}");
        }
        let message = error(&["weights", "convert", name, "-o", "x"]);
        assert!(message.contains("no such preset or file"), "{message}");
    }
    assert_eq!(case.server.requests().len(), before);
    let error = case.error(&["sample", "a fox", "--model", "opensora-v1-16x256x256"]);
    assert!(error.contains("HF_HUB_OFFLINE") && error.contains("t5-v1_1-xxl"), "{error}");
    let error = case.error(&["sample", "a fox", "--model", "hpcai-tech/Open-Sora"]);
    assert!(error.contains("several models") && error.contains("opensora-v1-16x256x256"));
}

#[cfg(unix)]
#[test]
fn read_only_files_beside_the_weights_are_copied() {
    let case = Case::new(Repo::default());
    let from = case.folder.path().join("vae");
    fs::create_dir(&from).unwrap();
    for name in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(demo_model().join("vae").join(name), from.join(name)).unwrap();
        let mut permissions = fs::metadata(from.join(name)).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(from.join(name), permissions).unwrap();
    }
    case.run(&["weights", "convert", "vae", "-o", "out"]);
    let copy = fs::metadata(case.folder.path().join("out/config.json")).unwrap();
    assert!(!copy.permissions().readonly());
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_not_utf8_have_a_json_form() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let case = Case::new(Repo::default());
    let (out, vae) = (OsStr::from_bytes(b"caf\xe9"), demo_model().join("vae"));
    let mut command = case.command(&["weights", "convert", "--json", "-o"]);
    let printed = text(&command.arg(out).arg(vae).output().unwrap());
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed["out"], "caf\u{fffd}");
    assert!(case.folder.path().join(out).join("config.json").is_file());
}

#[cfg(unix)]
#[test]
fn folders_that_cannot_be_replaced_are_found_before_the_conversion() {
    let case = Case::new(Repo::default());
    fs::create_dir(case.folder.path().join("empty")).unwrap();
    std::os::unix::fs::symlink("empty", case.folder.path().join("link")).unwrap();
    let vae = demo_model().join("vae");
    let message = case.error(&["weights", "convert", vae.to_str().unwrap(), "-o", "link"]);
    assert!(message.contains("link: it cannot be replaced"), "{message}");
}

#[test]
fn weights_are_identified_by_their_headers() {
    let model = demo_model();
    let case = Case::new(
        Repo::default().with("config.json", fs::read(model.join("vae/config.json")).unwrap()).with(
            "diffusion_pytorch_model.safetensors",
            fs::read(model.join("vae/diffusion_pytorch_model.safetensors")).unwrap(),
        ),
    );
    let inspect = |path: &str| case.json(&["weights", "inspect", path]);
    for (part, artefact) in [
        ("stdit.safetensors", "STDiT (Open-Sora 1.0)"),
        ("t5", "T5 v1.1 encoder"),
        ("vae", "Stable Diffusion VAE"),
    ] {
        let found = inspect(model.join(part).to_str().unwrap());
        assert_eq!((&found["artefact"], &found["fits"]), (&artefact.into(), &true.into()));
    }
    // For a repository, only the headers are fetched.
    let found = inspect("owner/name");
    assert_eq!(
        (&found["artefact"], &found["fits"]),
        (&"Stable Diffusion VAE".into(), &true.into())
    );
    let large = case.server.requests_for("GET", "/cdn/");
    assert!(large.iter().all(|request| request.range().is_some()), "{large:?}");

    // Missing and unused tensors are listed.
    let foreign = tempfile::tempdir().unwrap();
    let path = foreign.path().join("x.safetensors");
    let bytes = [1.0f32; 4].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let header =
        r#"{"blocks.0.attn.qkv.weight":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(bytes);
    fs::write(&path, file).unwrap();
    let found = inspect(path.to_str().unwrap());
    assert_eq!(found["fits"], false);
    assert!(!found["missing"].as_array().unwrap().is_empty(), "{found}");
    let text = case.run(&["weights", "inspect", path.to_str().unwrap(), "--keys"]);
    assert!(text.contains("artefact: unknown") && text.contains("F32  [4]"), "{text}");
}

#[test]
fn weights_of_the_cache_that_cannot_be_opened_are_not_called_missing() {
    let vae = fs::read(demo_model().join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    let repo = Repo::default()
        .with("config.json", "{}")
        .with("a.safetensors", &vae[..])
        .with("b.safetensors", &vae[..20]);
    let case = Case::new(repo);
    let inspect = ["weights", "inspect", "owner/name"];
    let convert = ["weights", "convert", "owner/name", "-o", "out"];
    // Without a weight file, the repository is not in the cache.
    case.run(&["weights", "fetch", "owner/name", "config.json"]);
    let message = case.error(&convert);
    assert!(message.contains("not in the cache: fetch it with"), "{message}");

    case.run(&["weights", "fetch", "owner/name", "b.safetensors"]);
    for args in [&inspect[..], &convert] {
        let message = case.error(args);
        assert!(
            message.contains("b.safetensors: not a readable checkpoint: truncated"),
            "{message}"
        );
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    case.run(&["weights", "fetch", "owner/name", "a.safetensors"]);
    for args in [&inspect[..], &convert] {
        let message = case.error(args);
        let wanted =
            "several checkpoints in this folder, choose one of a.safetensors, b.safetensors";
        assert!(message.contains(wanted), "{message}");
    }
    let found = case.json(&[&inspect[..], &["a.safetensors"]].concat());
    assert!(found["numbers"].as_u64().unwrap() > 0, "{found}");
}

#[test]
fn files_and_revisions_are_for_repositories() {
    const OUTSIDE: &str = "dit-xl-2-256x256: a revision is for repositories of the hub, the file of this \
                           preset is https://";
    let case = Case::new(Repo::default());
    let vae = demo_model().join("vae");
    let vae = vae.to_str().unwrap();
    for (args, wanted) in [
        (
            &[vae, "config.json"][..],
            "vae: FILE and --revision are for repositories, this is a path",
        ),
        (&[vae, "--revision", "v1.0"][..], "vae: FILE and --revision are for repositories"),
        (
            &["opensora-v1-16x256x256", "OpenSora-v1-HQ-16x256x256.pth"][..],
            "opensora-v1-16x256x256: FILE is for repositories, a preset has a fixed file",
        ),
        (&["dit-xl-2-256x256", "--revision", "v1.0"][..], OUTSIDE),
    ] {
        let message = case.error(&[&["weights", "inspect"][..], args].concat());
        assert!(message.contains(wanted), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    let message = case.error(&["weights", "fetch", "dit-xl-2-256x256", "--revision", "v1.0"]);
    assert!(message.contains(OUTSIDE), "{message}");
    // The default revision has no effect, and is no error.
    let found = case.json(&["weights", "inspect", vae, "--revision", "main"]);
    assert_eq!(found["fits"], true, "{found}");
    // A preset of the hub has revisions.
    let message =
        case.error(&["weights", "inspect", "opensora-v1-16x256x256", "--revision", "v1.0"]);
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
}

#[test]
fn converted_weights_sample_the_same_image() {
    let case = Case::new(Repo::default());
    let model = demo_model();
    let t5 = model.join("t5");
    let convert = |from: &Path, args: &[&str]| {
        case.json(&[&["weights", "convert", from.to_str().unwrap()], args].concat())
    };
    let converted = convert(&t5, &["-o", "t5", "--max-shard-size", "100KB"]);
    assert!(converted["files"].as_array().unwrap().len() > 1, "{converted}");
    assert!(case.folder.path().join("t5/model.safetensors.index.json").exists());
    assert!(case.folder.path().join("t5/config.json").exists());
    let sample = |args: &[&str], out: &str| {
        let prompt = "a red circle grows on a black background";
        let sample = ["sample", prompt, "--device", "flex", "--num-frames", "1", "--steps", "2"];
        case.run(&[&sample[..], &["-o", out], args].concat());
        fs::read(case.folder.path().join(out)).unwrap()
    };
    assert!(sample(&[], "a.png") == sample(&["--t5", "t5"], "b.png"));

    let stdit = model.join("stdit.safetensors");
    // The bundled denoiser is in f16.
    let bytes = |out: &str, dtype: &str| {
        convert(&stdit, &["-o", out, "--dtype", dtype])["bytes"].as_u64().unwrap()
    };
    assert_eq!(bytes("wide.safetensors", "f32"), 2 * bytes("stdit.safetensors", "bf16"));
    let message = case.error(&[
        "weights",
        "convert",
        stdit.to_str().unwrap(),
        "-o",
        "stdit.safetensors",
        "--no-overwrite",
    ]);
    assert!(message.contains("it exists already"), "{message}");
    let found = case.json(&["weights", "inspect", "stdit.safetensors"]);
    assert_eq!(found["fits"], true, "{found}");
}

#[test]
fn weights_of_the_cache_are_converted_by_name() {
    let vae = demo_model().join("vae");
    let file = "diffusion_pytorch_model.safetensors";
    let case = Case::new(
        Repo::default()
            .with("config.json", fs::read(vae.join("config.json")).unwrap())
            .with(file, fs::read(vae.join(file)).unwrap()),
    );
    let convert = |out: &str| ["weights", "convert", "owner/name", "-o", out].map(String::from);
    let message = case.error(&convert("out").each_ref().map(String::as_str));
    assert!(message.contains("`opensora weights fetch owner/name`"), "{message}");
    case.run(&["weights", "fetch", "owner/name"]);

    // A path needs no home folder.
    let mut homeless = case.command(&["weights", "convert", vae.to_str().unwrap(), "-o", "path"]);
    for name in ["HF_HOME", "HOME", "USERPROFILE", "XDG_CACHE_HOME"] {
        homeless.env_remove(name);
    }
    text(&homeless.output().unwrap());

    // Exports diffusers' tensor names into new folders, with few lines of progress.
    let output = case.command(&convert("new/vae").each_ref().map(String::as_str)).output().unwrap();
    text(&output);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.lines().count() <= 2, "{said}");
    let out = case.folder.path().join("new/vae");
    assert!(out.join(file).is_file() && out.join("config.json").is_file());
    let shards = ["--max-shard-size", "100KB", "-q"];
    let many = convert("many");
    case.run(&[&many.each_ref().map(String::as_str)[..], &shards[..]].concat());
    assert!(case.folder.path().join(format!("many/{file}.index.json")).is_file());
    for folder in ["new/vae", "many"] {
        let found = case.json(&["weights", "inspect", folder]);
        assert_eq!(
            (&found["fits"], &found["artefact"]),
            (&true.into(), &"Stable Diffusion VAE".into())
        );
    }

    // A folder that is not empty is rejected before the conversion.
    let output = case.command(&convert("new").each_ref().map(String::as_str)).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("new: the folder is not empty") && !said.contains("converting"),
        "{said}"
    );
}
