//! Files made to exhaust memory or time: each gives an error within two seconds and takes less than 200 MB.
//!
//! A single test, so that the memory of the process is that of the readers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType};
use opensora::{
    checkpoint::{Checkpoint, PublishedModel, parameter_slots},
    stdit::{DenoiserConfig, StDit, keys},
    t5::{T5Config, T5Encoder, T5Tokenizer},
    train::Recipe,
    vae::{AutoencoderKl, VaeConfig},
};
use opensora_tests::{
    devices, fixture,
    torch_file::{Value, archive, torch_file},
    with_causes,
};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use zip::CompressionMethod::{Deflated, Stored};

const MOST_TIME: Duration = Duration::from_secs(2);
const MOST_MEMORY: u64 = 200 << 20;

/// Returns a field of Linux's `/proc/self/status` in bytes; `None` on other systems.
fn memory(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

/// Runs `read`, which must fail with one line and in time.
fn refused<T>(what: &str, read: impl FnOnce() -> Result<T, String>) {
    // Resets the peak memory.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let (start, before) = (Instant::now(), memory("VmRSS:"));
    let message = read().err().unwrap_or_else(|| panic!("{what}: was accepted"));
    assert!(!message.is_empty() && !message.contains('\n'), "{what}: {message}");
    let time = start.elapsed();
    assert!(time < MOST_TIME, "{what}: took {time:?}: {message}");
    let highest = memory("VmHWM:");
    let grown = highest.zip(before).map_or(0, |(highest, before)| highest.saturating_sub(before));
    assert!(grown < MOST_MEMORY, "{what}: took {} MB: {message}", grown >> 20);
    println!("{what}: {time:?}, {} MB more: {message}", grown >> 20);
}

fn text<T, E: std::error::Error + 'static>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| with_causes(&error))
}

struct Files {
    folder: tempfile::TempDir,
    device: Device,
}

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Opens a checkpoint and, if it opens, loads it as an STDiT.
    fn checkpoint(&self, what: &str, path: &Path, config: &DenoiserConfig) {
        refused(what, || {
            let checkpoint = text(Checkpoint::open(path))?;
            text(StDit::load(config, &checkpoint, FloatDType::F32, &self.device))
        });
    }
}

#[test]
fn hostile_files_are_errors_in_bounded_time_and_memory() {
    let files = Files { folder: tempfile::tempdir().unwrap(), device: devices().remove(0).1 };
    special_files(&files);
    configurations(&files);
    pickles(&files);
    archives(&files);
    expanded_tensors(&files);
    safetensors(&files);
    indices(&files);
    tokenizers(&files);
}

/// Pipes, devices, folders and endless files in place of each file that is read whole.
fn special_files(files: &Files) {
    let pipe = files.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let sparse = files.path("sparse");
    File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
    for path in [&pipe, Path::new("/dev/zero"), files.folder.path(), &sparse] {
        let name = |what: &str| format!("{} as {what}", path.display());
        files.checkpoint(&name("checkpoint"), path, &DenoiserConfig::xl_2());
        refused(&name("VAE config"), || text(VaeConfig::read(path)));
        refused(&name("T5 config"), || text(T5Config::read(path)));
        refused(&name("recipe"), || text(Recipe::open(path)));
        refused(&name("tokenizer"), || text(T5Tokenizer::from_path(path)));
    }
    // Inside a folder.
    let model = files.path("folder");
    std::fs::create_dir(&model).unwrap();
    for name in ["config.json", "spiece.model", "model.safetensors"] {
        assert!(Command::new("mkfifo").arg(model.join(name)).status().unwrap().success());
    }
    files.checkpoint("pipe as model.safetensors", &model, &DenoiserConfig::xl_2());
    refused("pipe as config.json", || text(VaeConfig::beside(&model)));
    refused("pipe as spiece.model", || text(T5Tokenizer::from_path(&model)));
    let index = files.write("pipe.index.json", br#"{"weight_map": {"a": "pipe"}}"#);
    files.checkpoint("pipe as shard", &index, &DenoiserConfig::xl_2());
}

/// Configurations with sizes that differ from the checkpoint's.
fn configurations(files: &Files) {
    let golden = fixture("goldens/pipeline");
    let stdit = Checkpoint::open(golden.join("STDiT.pth")).unwrap();
    for fields in [
        r#"{"hidden_size": 1000000000}"#,
        r#"{"depth": 1000000}"#,
        r#"{"depth": 1024, "hidden_size": 1048576, "num_heads": 16}"#,
        r#"{"depth": 1, "hidden_size": 1048576, "num_heads": 16, "caption_channels": 1048576}"#,
        r#"{"depth": 1, "model_max_length": 1048576}"#,
    ] {
        let config: DenoiserConfig = serde_json::from_str(fields).unwrap();
        refused(fields, || text(StDit::load(&config, &stdit, FloatDType::F32, &files.device)));
    }
    let t5 = Checkpoint::open(golden.join("t5")).unwrap();
    for fields in [
        r#"{"num_layers": 1000000}"#,
        r#"{"num_layers": 1024}"#,
        r#"{"d_model": 1048576, "d_ff": 1048576, "vocab_size": 1048576}"#,
    ] {
        refused(fields, || {
            let config = text(T5Config::read(&files.write("config.json", fields.as_bytes())))?;
            text(T5Encoder::load(&config, &t5, FloatDType::F32, &files.device))
        });
    }
    let vae = Checkpoint::open(golden.join("vae")).unwrap();
    for fields in [
        r#"{"layers_per_block": 4000}"#,
        r#"{"layers_per_block": 64, "block_out_channels": [65536, 65536, 65536, 65536, 65536]}"#,
        r#"{"block_out_channels": [65536], "norm_num_groups": 4096}"#,
    ] {
        refused(fields, || {
            let config = text(VaeConfig::read(&files.write("config.json", fields.as_bytes())))?;
            text(AutoencoderKl::load(&config, &vae, FloatDType::F32, &files.device))
        });
    }
    let deep = [vec![b'['; 500_000], vec![b']'; 500_000]].concat();
    let path = files.write("config.json", &deep);
    refused("a deeply nested config", || text(VaeConfig::read(&path)));
    refused("a config of 8 MB", || {
        text(T5Config::read(&files.write("config.json", &vec![b' '; 8 << 20])))
    });
}

/// Pickles that are larger in memory than on disk.
fn pickles(files: &Files) {
    let config = DenoiserConfig::xl_2();
    let pickle = |body: &[u8]| archive(&[b"\x80\x02", body, b"."].concat(), &[], Stored);
    let repeat = |bytes: &[u8], count: usize| bytes.repeat(count);
    // The magic number and the version of a file before PyTorch 1.6.
    let legacy = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    let bomb = [b"]q\x00".to_vec(), repeat(b"(h\x00h\x00lq\x00", 30)].concat();
    let string = [
        b"B\x00\x00\x20\x00".to_vec(),
        vec![b'x'; 2 << 20],
        b"q\x00".to_vec(),
        repeat(b"h\x00", 60),
    ];
    for (what, bytes) in [
        ("a pickle of 20 MB", pickle(&repeat(b"N", 20 << 20))),
        ("a pickle of 7 MB of values", pickle(&repeat(b"N", 7 << 20))),
        ("a pickle of 480,000 values", pickle(&repeat(b"N", 480_000))),
        ("a pickle of 240,000 memos", pickle(&repeat(b"Nq\x00", 240_000))),
        ("a legacy file of values", [&legacy[..], &repeat(b"N", 20 << 20)].concat()),
        ("a plain pickle of values", [b"\x80\x02".to_vec(), repeat(b"}", 20 << 20)].concat()),
        ("a memo bomb", pickle(&bomb)),
        ("copies of a long string", pickle(&string.concat())),
        ("a nest of lists", pickle(&[repeat(b"]", 1), repeat(b"\x85", 400_000)].concat())),
        ("a string without end", pickle(b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc")),
        (
            "a number without end",
            pickle(&[b"L".to_vec(), repeat(b"9", 4 << 20), b"\n".to_vec()].concat()),
        ),
        ("calls of calls", pickle(&[&b"cA\nB\n"[..], &repeat(b")R", 240_000)].concat())),
    ] {
        files.checkpoint(what, &files.write("hostile.pth", &bytes), &config);
    }
    for (what, body) in shared_objects() {
        files.checkpoint(what, &files.write("hostile.pth", &pickle(&body)), &config);
    }
}

/// Pickles that use one large object many times.
fn shared_objects() -> Vec<(&'static str, Vec<u8>)> {
    let memo = |number: u32| [&b"j"[..], &number.to_le_bytes()].concat();
    let text = |length: u32| {
        [&b"X"[..], &length.to_le_bytes(), &vec![b'x'; length as usize], b"q\x000"].concat()
    };
    let list = |items: usize| [b"(".to_vec(), b"N".repeat(items), b"lq\x000".to_vec()].concat();
    let storage =
        |class: &str, key: &str| format!("(U\x07storage{class}{key}NK\x01tQ0").into_bytes();
    // Keys that differ in their last four bytes, each set many times.
    let mut long_keys = Vec::new();
    for number in 0..1500u32 {
        long_keys.extend(b"X\x00\x10\x00\x00");
        long_keys.extend([b'x'; 4092]);
        long_keys.extend(format!("{number:04}r").bytes());
        long_keys.extend(number.to_le_bytes());
        long_keys.push(b'0');
    }
    long_keys.push(b'}');
    for number in (0..1500u32).cycle().take(160_000) {
        long_keys.extend([&memo(number)[..], b"Ns"].concat());
    }
    let tensor = b"ctorch._utils\n_rebuild_sparse_tensor\n(NNtRq\x010";
    let sparse = b"ctorch._utils\n_rebuild_sparse_tensor\n(Nh\x00tq\x010";
    let module = b"}(U\x0b_parameters}U\x08_buffersh\x02U\x08_modules}\
                   U\x1b_non_persistent_buffers_seth\x00uq\x010";
    let buffers: Vec<u8> = (0..60_000u32)
        .flat_map(|number| [&b"J"[..], &number.to_le_bytes(), b"N"].concat())
        .collect();
    let buffers = [&b"}("[..], &buffers, b"uq\x020"].concat();
    vec![
        (
            "a long key that is set again",
            [&text(4 << 20)[..], b"}", &b"h\x00Ns".repeat(150_000)].concat(),
        ),
        ("long keys that are set again", long_keys),
        (
            "a long key of storages",
            [text(4 << 20), storage("ctorch\nFloatStorage\n", "h\0").repeat(40_000)].concat(),
        ),
        ("a long type of storages", {
            let storages = (0..20_000).map(|key| storage("h\0", &format!("I{key}\n")));
            [text(4 << 20), storages.flatten().collect()].concat()
        }),
        (
            "sparse tensors of a long list",
            [&list(200_000)[..], sparse, b"ctorch._utils\n_rebuild_sparse_tensor\nq\x020"]
                .into_iter()
                .chain([&b"h\x02h\x01R0".repeat(60_000)[..]])
                .collect::<Vec<_>>()
                .concat(),
        ),
        (
            "modules of many buffers",
            [&list(100_000)[..], &buffers, module, b"ca\nB\n)Rh\x01b"].concat(),
        ),
        (
            "a list of few tensors on many paths",
            [
                &tensor[..],
                b"(",
                &b"N".repeat(240_000),
                b"h\x01lq\x000}K\x01(",
                &b"h\x00".repeat(60_000),
                b"ls",
            ]
            .concat(),
        ),
        (
            "long keys on many paths",
            [
                &text(4096)[..],
                tensor,
                b"}h\x00N",
                b"s}h\x00h\x01sq\x020}K\x01(",
                &b"h\x02".repeat(60_000),
                b"ls",
            ]
            .concat(),
        ),
    ]
}

/// Archives with compressed entries or too many entries.
fn archives(files: &Files) {
    let config = DenoiserConfig::xl_2();
    let nothing = b"\x80\x02}.".to_vec();
    let compressed = archive(&[b"\x80\x02".to_vec(), vec![b'N'; 90 << 20]].concat(), &[], Deflated);
    files.checkpoint("a compressed pickle", &files.write("hostile.pth", &compressed), &config);
    let compressed = archive(&nothing, &[vec![0; 64 << 20]], Deflated);
    files.checkpoint("a compressed storage", &files.write("hostile.pth", &compressed), &config);
    let many = archive(&nothing, &vec![Vec::new(); 70_000], Stored);
    files.checkpoint("an archive of many entries", &files.write("hostile.pth", &many), &config);
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    files.checkpoint("a tar archive", &files.write("hostile.pth", &tar), &config);
}

/// Views that repeat one number: whole models in a small file.
fn expanded_tensors(files: &Files) {
    for (what, config) in [
        ("expanded matrices", DenoiserConfig { depth: 1, ..DenoiserConfig::xl_2() }),
        (
            "many expanded tensors",
            DenoiserConfig {
                depth: 200,
                hidden_size: 96,
                caption_channels: 64,
                ..DenoiserConfig::xl_2()
            },
        ),
    ] {
        let map = keys::stdit();
        let slots = parameter_slots(&config.init::<StDit>(&files.device).unwrap());
        let tensors = slots.into_iter().map(|slot| {
            let strides = vec![0; slot.shape.len()];
            let value = Value::Tensor { storage: vec![1.0], shape: slot.shape, strides };
            (map.published_key(&slot.path), value)
        });
        let path = files.write("hostile.pth", &torch_file(&Value::Dict(tensors.collect())));
        files.checkpoint(what, &path, &config);
    }
}

fn safetensors(files: &Files) {
    let config = DenoiserConfig::xl_2();
    let file = |header: &[u8]| [&(header.len() as u64).to_le_bytes()[..], header].concat();
    let entry =
        |n: usize| format!(r#""{n}":{{"dtype":"F8_E5M2","shape":[0],"data_offsets":[0,0]}},"#);
    let end = r#""z":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    let many = format!("{{{}{end}", (0..120_000).map(entry).collect::<String>());
    let padded = [b"{".to_vec(), vec![b' '; 90_000_000], b"}".to_vec()].concat();
    let padding = [b"{".to_vec(), vec![b' '; 2 << 20], b"}".to_vec()].concat();
    for (what, bytes) in [
        ("a header of 90 MB", file(&padded)),
        ("a header of 2 MB without tensors", file(&padding)),
        ("a header of many tensors", file(many.as_bytes())),
        ("a header that is longer than the file", [&u64::MAX.to_le_bytes()[..], b"{}"].concat()),
        (
            "a shape that overflows",
            file(
                br#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}"#,
            ),
        ),
        (
            "offsets behind the file",
            file(
                br#"{"a":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}}"#,
            ),
        ),
    ] {
        files.checkpoint(what, &files.write("hostile.safetensors", &bytes), &config);
    }
    // The same number of tensors in a sparse file that is large enough for such a header.
    let hole = 1usize << 30;
    let end = format!(r#""z":{{"dtype":"U8","shape":[{hole}],"data_offsets":[0,{hole}]}}}}"#);
    let many = format!("{{{}{end}", (0..120_000).map(entry).collect::<String>());
    let path = files.write("hostile.safetensors", &file(many.as_bytes()));
    let length = (hole + 8 + many.len()) as u64;
    File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
    files.checkpoint("many tensors before a large one", &path, &config);
    // A tensor whose data is a hole in a sparse file.
    let header =
        br#"{"a":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}}"#;
    let path = files.write("hostile.safetensors", &file(header));
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len((1 << 40) + 8 + header.len() as u64)
        .unwrap();
    files.checkpoint("a tensor of 1 TB", &path, &config);
}

fn indices(files: &Files) {
    let config = DenoiserConfig::xl_2();
    files.write("a.index.json", br#"{"weight_map": {"a": "a.index.json"}}"#);
    files.write("one.safetensors", b"\x02\0\0\0\0\0\0\0{}");
    let many: Vec<String> = (0..200_000).map(|n| format!(r#""{n}":"one.safetensors""#)).collect();
    for (what, json) in [
        ("an index of itself", r#"{"weight_map": {"a": "./a.index.json"}}"#.to_string()),
        ("an index of many keys", format!(r#"{{"weight_map": {{{}}}}}"#, many.join(","))),
        ("an index of a device", r#"{"weight_map": {"a": "/dev/zero"}}"#.into()),
        ("an index that leads out", r#"{"weight_map": {"a": "b/../../c"}}"#.into()),
        ("an index of 9 MB", format!(r#"{{"weight_map": {{"a": "{}"}}}}"#, "x".repeat(9 << 20))),
        ("an index of a folder", r#"{"weight_map": {"a": "folder"}}"#.into()),
    ] {
        files.checkpoint(what, &files.write("a.index.json", json.as_bytes()), &config);
    }
}

fn tokenizers(files: &Files) {
    let arrays = format!(r#"{{"model": [{}[]]}}"#, "[],".repeat(9 << 20));
    for (name, bytes) in [
        ("tokenizer.json", arrays.as_bytes()),
        ("tokenizer.json", &vec![b'['; 31 << 20]),
        ("spiece.model", &vec![b'\n'; 7 << 20]),
        ("spiece.model", &b"\n\x02\n\x00".repeat(2_000_000)),
    ] {
        let path = files.write(name, bytes);
        refused(&format!("{name} of {} MB", bytes.len() >> 20), || {
            text(T5Tokenizer::from_path(&path))
        });
    }
}
