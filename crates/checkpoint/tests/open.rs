//! Opening of files, indices and folders, and the errors of bad ones.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod files;

use burn::tensor::{DType, FloatDType};
use files::{archive, pickle, safetensors, storage, text, torch_file};
use opensora_checkpoint::{Checkpoint, CheckpointError};
use opensora_files::error_line;
use std::{
    fs,
    path::{Path, PathBuf},
};

fn keys(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.keys().collect()
}

/// Returns the one line of the error of opening `path`.
fn error(path: &Path) -> String {
    let line = error_line(&Checkpoint::open(path).unwrap_err());
    assert!(!line.contains('\n') && line.contains(&*path.to_string_lossy()), "{line}");
    line
}

/// Writes `bytes` and returns the error of opening them.
fn error_of(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    error(file.path())
}

#[test]
fn both_formats_have_the_same_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let paths = [
        safetensors(&folder.path().join("a"), &[("bias", &[3]), ("b.weight", &[2])]),
        torch_file(&folder.path().join("b"), &[("bias", 3), ("b.weight", 2)]),
    ];
    for path in paths {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(keys(&checkpoint), ["b.weight", "bias"]);
        assert!(checkpoint.contains("bias") && !checkpoint.contains("weight"));
        assert_eq!((checkpoint.path(), checkpoint.taken()), (&*path, &*path));
        assert_eq!((checkpoint.wrappers().len(), checkpoint.outside()), (0, 0));
        assert_eq!(checkpoint.files(), [&*path]);
        let entry = &checkpoint.tensors()["bias"];
        assert_eq!((entry.dtype(), entry.shape()), (Some(DType::F32), &[3][..]));
        assert_eq!(format!("{entry:?}"), format!("F32[3] in {}", path.display()));
        let data = entry.read("bias").unwrap();
        assert_eq!(data.iter::<f32>().collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
    }
}

#[test]
fn state_dicts_in_well_known_dictionaries_are_unwrapped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pth");
    for (tensors, wrapper, outside) in [
        (&[("state_dict.x", 2), ("optimizer.m", 2)][..], "state_dict", 1),
        (&[("ema.x", 2), ("state_dict.x", 2), ("step.y", 1)], "ema", 2),
    ] {
        let checkpoint = Checkpoint::open(torch_file(&path, tensors)).unwrap();
        assert_eq!(keys(&checkpoint), ["x"]);
        assert_eq!(checkpoint.wrappers(), [wrapper]);
        assert_eq!(checkpoint.outside(), outside);
    }
    let checkpoint = Checkpoint::open(torch_file(&path, &[("ema", 2)])).unwrap();
    assert_eq!(keys(&checkpoint), ["ema"]);
}

#[test]
fn tensors_outside_of_several_shards_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    torch_file(&path("a.bin"), &[("state_dict.x", 2), ("step", 1)]);
    torch_file(&path("b.bin"), &[("state_dict.y", 2), ("m.y", 2), ("v.y", 2)]);
    let index = path("model.bin.index.json");
    fs::write(&index, r#"{"weight_map": {"x": "a.bin", "y": "b.bin"}}"#).unwrap();
    let checkpoint = Checkpoint::open(index).unwrap();
    assert_eq!((keys(&checkpoint), checkpoint.outside()), (vec!["x", "y"], 3));
}

#[test]
fn names_and_byte_orders_of_archives_are_limited() {
    let of = |name: &str, bytes: Vec<u8>| {
        let pickle = pickle(&[("x", 1)]);
        let entries = [("data.pkl", pickle), ("data/0", storage(1)), (name, bytes)];
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), archive(&entries)).unwrap();
        Checkpoint::open(file.path()).map(|_| ()).map_err(|error| error_line(&error))
    };
    assert_eq!(of(&"n".repeat(4096), vec![]), Ok(()));
    let error = of(&"n".repeat(4097), vec![]).unwrap_err();
    assert!(error.contains("an entry's name has 4097 bytes, expected at most 4096"), "{error}");
    let order = |bytes: usize| format!("little{}", " ".repeat(bytes - 6)).into_bytes();
    assert_eq!(of("byteorder", order(64)), Ok(()));
    let error = of("byteorder", order(65)).unwrap_err();
    assert!(error.contains("'byteorder' has 65 bytes, expected at most 64"), "{error}");
}

/// A method other than "stored", or a size that differs, means that an entry is compressed.
#[test]
fn compressed_entries_are_rejected() {
    let entries = [("data.pkl", pickle(&[("x", 1)])), ("data/0", storage(1))];
    let whole = archive(&entries);
    let first = whole.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    // In the directory of the archive: the method, and the compressed size.
    for (at, byte) in [(10, 8), (20, whole[first + 20] - 1)] {
        let mut bytes = whole.clone();
        bytes[first + at] = byte;
        let error = error_of(&bytes);
        assert!(error.contains("entry 'data.pkl' is compressed"), "{at}: {error}");
    }
}

#[test]
fn wrappers_of_training_programs_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let shape: &[usize] = &[2];
    let open = |tensors: &[(&str, &[usize])]| {
        Checkpoint::open(safetensors(&path, tensors)).unwrap().unwrapped("x.weight")
    };
    let plain = open(&[("x.weight", shape), ("y", shape)]).unwrap();
    assert_eq!((keys(&plain), plain.wrappers().len()), (vec!["x.weight", "y"], 0));
    let wrapped = open(&[
        ("module.a.x.weight", shape),
        ("module.a.y", shape),
        ("step", shape),
        ("epoch", shape),
        ("rate", shape),
    ])
    .unwrap();
    assert_eq!(keys(&wrapped), ["x.weight", "y"]);
    assert_eq!(wrapped.wrappers(), ["module", "a"]);
    assert_eq!(wrapped.outside(), 3);
    let compiled = open(&[("_orig_mod.x.weight", shape), ("y._orig_mod.z", shape)]).unwrap();
    assert_eq!(keys(&compiled), ["x.weight", "y.z"]);
    assert_eq!(compiled.wrappers(), ["_orig_mod"]);
    let unknown = open(&[("module.z", shape)]).unwrap();
    assert_eq!(keys(&unknown), ["module.z"]);
    let error = open(&[("_orig_mod.x.weight", shape), ("x.weight", shape)]).unwrap_err();
    assert!(error.to_string().contains("with and without its wrapper"), "{error}");
    let error = open(&[("a.x.weight", shape), ("b.x.weight", shape)]).unwrap_err();
    assert!(error.to_string().contains("several models found ('a', 'b')"), "{error}");
}

#[test]
fn configurations_with_many_more_blocks_than_tensors_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let shape: &[usize] = &[1];
    let small = Checkpoint::open(safetensors(&path, &[("x", shape)])).unwrap();
    small.check_blocks("depth", 256).unwrap();
    let error = small.check_blocks("depth", 257).unwrap_err().to_string();
    assert!(error.contains("depth is 257 in the config, but the file has 1 tensors"), "{error}");
    let names: Vec<String> = (0..8 * 300 + 7).map(|index| format!("{index}")).collect();
    let tensors: Vec<(&str, &[usize])> = names.iter().map(|name| (&**name, shape)).collect();
    let large = Checkpoint::open(safetensors(&path, &tensors)).unwrap();
    large.check_blocks("depth", 300).unwrap();
    assert!(large.check_blocks("depth", 301).is_err());
}

#[test]
fn files_that_are_no_checkpoint_are_named() {
    for (bytes, says) in [
        (&b""[..], "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (b" \n<!DOCTYPE html><html>", "HTML"),
        (b"certainly no weights", "not a readable checkpoint"),
        (b"{\"a\": 1}", "not an index with a weight_map: missing field `weight_map`"),
        (br#"  {"weight_map": {}}"#, "its weight_map is empty"),
    ] {
        let line = error_of(bytes);
        assert!(line.contains(says), "{line}");
    }
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(error_of(&tar).contains("save it again with torch.save"));
    let missing = error(Path::new("no/such/file.pth"));
    assert!(missing.contains("cannot open: "), "{missing}");
}

#[test]
fn damaged_safetensors_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let whole = fs::read(safetensors(&path, &[("x", &[4]), ("y", &[2])])).unwrap();
    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for (bytes, says) in [
        (whole[..whole.len() - 1].to_vec(), "truncated: 23 bytes of tensors, its header says 24"),
        ([&whole[..], b"!"].concat(), "trailing bytes: 25 bytes of tensors"),
        (whole[..header_end - 1].to_vec(), "truncated: its header claims"),
        (whole[..9].to_vec(), "truncated: its header claims"),
        ([&whole[..12], b"\xff", &whole[13..]].concat(), "damaged safetensors header: "),
    ] {
        let line = error_of(&bytes);
        assert!(line.contains(says), "{line}");
    }
    // A header that is far larger than the tensors need.
    let header = format!("{{\"__metadata__\": {{\"a\": \"{}\"}}}}", "x".repeat(2 << 20));
    let large = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    assert!(error_of(&large).contains("bytes, expected at most 1048576"));
}

#[test]
fn damaged_torch_files_are_named() {
    let (pickle, numbers) = (pickle(&[("x", 3)]), storage(3));
    let whole = archive(&[("a/data.pkl", pickle.clone()), ("a/data/0", numbers.clone())]);
    for (bytes, says) in [
        (whole[..whole.len() - 30].to_vec(), "damaged zip archive: "),
        (archive(&[("a/other", pickle.clone())]), "a zip archive without data.pkl"),
        (archive(&[("a/data.pkl", b"\x80\x02K\x01.".to_vec())]), "expected a dictionary"),
        (archive(&[("a/data.pkl", b"\x80\x02}.".to_vec())]), "it holds no tensors"),
        (
            archive(&[("a/data.pkl", pickle.clone()), ("a/byteorder", b"big".to_vec())]),
            "byte order 'big' is not supported",
        ),
        (
            archive(&[("a/data.pkl", pickle.clone()), ("a/byteorder", vec![b'x'; 65])]),
            "'a/byteorder' has 65 bytes, expected at most 64",
        ),
        (archive(&[(&"n".repeat(4097), pickle.clone())]), "an entry's name has 4097 bytes"),
    ] {
        let line = error_of(&bytes);
        assert!(line.contains(says), "{line}");
    }
    let little = archive(&[
        ("a/data.pkl", pickle.clone()),
        ("a/data/0", numbers.clone()),
        ("a/byteorder", b"little\n".to_vec()),
        // Only the outermost pickle counts.
        ("a/deeper/data.pkl", b"no pickle".to_vec()),
    ]);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), little).unwrap();
    assert_eq!(keys(&Checkpoint::open(file.path()).unwrap()), ["x"]);

    // A byte of the storage differs from the checksum of the archive.
    let at = whole.windows(12).position(|window| window == numbers).unwrap();
    let damaged = [&whole[..at], &[whole[at] ^ 1], &whole[at + 1..]].concat();
    fs::write(file.path(), damaged).unwrap();
    let checkpoint = Checkpoint::open(file.path()).unwrap();
    let line = error_line(&checkpoint.tensors()["x"].read("x").unwrap_err());
    assert!(line.contains("tensor 'x': cannot read: its checksum is wrong"), "{line}");

    // A storage that is missing or too short is an error of its tensor only.
    for (entries, says) in [
        (vec![("a/data.pkl", pickle.clone())], "its storage '0' is not in the file"),
        (
            vec![("a/data.pkl", pickle), ("a/data/0", storage(2))],
            "its storage has 8 bytes, 12 expected",
        ),
    ] {
        fs::write(file.path(), archive(&entries)).unwrap();
        let checkpoint = Checkpoint::open(file.path()).unwrap();
        let entry = &checkpoint.tensors()["x"];
        assert_eq!((entry.dtype(), entry.shape()), (None, &[3][..]));
        let error = entry.read("x").unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = safetensors(&folder.path().join("a.safetensors"), &[("x", &[4])]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    fs::File::options().write(true).open(&path).unwrap().set_len(length - 4).unwrap();
    let error = checkpoint.tensors()["x"].read("x").unwrap_err();
    assert!(matches!(&error, CheckpointError::Tensor { key, .. } if key == "x"), "{error}");
    assert!(error_line(&error).contains("it has shrunk"), "{}", error_line(&error));
    assert!(std::error::Error::source(&error).is_some());
}

/// A folder with two shards and their index.
struct Sharded {
    folder: tempfile::TempDir,
}

impl Sharded {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        safetensors(&folder.path().join("a.safetensors"), &[("x", &[2]), ("y", &[1])]);
        safetensors(&folder.path().join("b.safetensors"), &[("z", &[3])]);
        Self { folder }
    }

    fn index(&self, weight_map: &str) -> PathBuf {
        let path = self.folder.path().join("model.safetensors.index.json");
        fs::write(&path, format!("{{\"weight_map\": {weight_map}}}")).unwrap();
        path
    }
}

#[test]
fn an_index_is_opened_with_all_its_shards() {
    let sharded = Sharded::new();
    // Different names of one file are one shard.
    let index =
        sharded.index(r#"{"x": "a.safetensors", "y": "./a.safetensors", "z": "b.safetensors"}"#);
    for path in [&*index, sharded.folder.path()] {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(keys(&checkpoint), ["x", "y", "z"]);
        assert_eq!((checkpoint.path(), checkpoint.taken()), (path, &*index));
        assert_eq!(checkpoint.files().len(), 2);
        assert_eq!(checkpoint.tensors()["z"].read("z").unwrap().shape()[..], [3]);
    }
}

#[test]
fn an_index_that_does_not_match_its_shards_is_an_error() {
    let sharded = Sharded::new();
    for (weight_map, says) in [
        (r#"{"x": "c.safetensors"}"#, "its shard 'c.safetensors' is missing"),
        (r#"{"x": "../a.safetensors"}"#, "bad name of a shard: "),
        (r#"{"q": "a.safetensors"}"#, "key 'q' is not in its shard 'a.safetensors'"),
        (
            r#"{"x": "model.safetensors.index.json"}"#,
            "shard 'model.safetensors.index.json' is an index itself",
        ),
    ] {
        let line = error(&sharded.index(weight_map));
        assert!(line.contains(says), "{line}");
    }
    // Also under another name, where it would be opened without end.
    let named = sharded.folder.path().join("c.bin");
    fs::write(&named, r#"{"weight_map": {"x": "c.bin"}}"#).unwrap();
    assert!(error(&named).contains("a shard is an index itself"), "{}", error(&named));
    safetensors(&sharded.folder.path().join("b.safetensors"), &[("x", &[2])]);
    let index = sharded.index(r#"{"x": "a.safetensors", "y": "b.safetensors"}"#);
    assert!(error(&index).contains("key 'x' is in two shards"));
}

#[test]
fn the_checkpoint_of_a_folder_has_an_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let taken = || Checkpoint::open(folder.path()).unwrap().taken().to_path_buf();
    fs::write(path("notes.txt"), "").unwrap();
    assert!(error(folder.path()).contains("no checkpoint in this folder"));
    torch_file(&path("weights.pth"), &[("x", 1)]);
    assert_eq!(taken(), path("weights.pth"));
    torch_file(&path("other.pt"), &[("x", 1)]);
    let line = error(folder.path());
    assert!(line.contains("several checkpoints") && line.contains("other.pt, weights.pth"));
    // ColossalAI's folder, an index of any name, and well-known names, from the last to the first.
    fs::create_dir(path("model")).unwrap();
    torch_file(&path("model/pytorch_model.bin"), &[("x", 1)]);
    assert_eq!(taken(), path("model/pytorch_model.bin"));
    fs::write(path("z.bin.index.json"), r#"{"weight_map": {"x": "weights.pth"}}"#).unwrap();
    assert_eq!(taken(), path("z.bin.index.json"));
    let index = r#"{"weight_map": {"x": "weights.pth"}}"#;
    fs::write(path("zz.safetensors.index.json"), index).unwrap();
    assert_eq!(taken(), path("zz.safetensors.index.json"));
    torch_file(&path("pytorch_model.bin"), &[("x", 1)]);
    assert_eq!(taken(), path("pytorch_model.bin"));
    safetensors(&path("model.safetensors"), &[("x", &[1])]);
    assert_eq!(taken(), path("model.safetensors"));
}

#[test]
fn metadata_is_that_of_all_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let bytes = 1.0f32.to_le_bytes();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &bytes);
    let metadata = [("made_by".to_string(), "a test".to_string())];
    let views = [("x", view.unwrap())];
    safetensors::serialize_to_file(views, Some(metadata.clone().into()), &path).unwrap();
    let found = Checkpoint::open(&path).unwrap().metadata().unwrap();
    assert_eq!(found, metadata.into());
    let torch = Checkpoint::open(torch_file(&folder.path().join("a.pth"), &[("x", 1)])).unwrap();
    assert!(torch.metadata().unwrap().is_empty());
    fs::remove_file(&path).unwrap();
    assert!(torch.metadata().is_ok());
}

#[test]
fn values_that_are_not_finite_in_a_type_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let float = |values: [f32; 2]| values.map(f32::to_le_bytes).concat();
    let bytes = [float([1.0, 7e4]), float([1.0, f32::NAN]), float([1.0, 2.0]), vec![0; 8]];
    let types = [safetensors::Dtype::F32; 3].into_iter().chain([safetensors::Dtype::I32]);
    let views = types.zip(&bytes).zip(["large", "nan", "small", "integer"]);
    let views = views.map(|((dtype, bytes), key)| {
        (key, safetensors::tensor::TensorView::new(dtype, vec![2], bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.non_finite(FloatDType::F32).unwrap(), ["nan"]);
    assert_eq!(checkpoint.non_finite(FloatDType::F16).unwrap(), ["large", "nan"]);
}

/// The parts of a file of `torch.save` before PyTorch 1.6, with one vector of three numbers.
#[derive(Clone)]
struct Legacy {
    magic: Vec<u8>,
    version: Vec<u8>,
    system: Vec<u8>,
    object: Vec<u8>,
    keys: Vec<u8>,
    storages: Vec<u8>,
}

impl Legacy {
    fn new() -> Self {
        Self {
            magic: b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(),
            version: b"\x80\x02M\xe9\x03.".to_vec(),
            system: [b"\x80\x02}", &*text("little_endian"), b"\x88s."].concat(),
            object: pickle(&[("x", 3)]),
            keys: [b"\x80\x02]", &*text("0"), b"a."].concat(),
            storages: [&3u64.to_le_bytes()[..], &storage(3)].concat(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let Self { magic, version, system, object, keys, storages } = self;
        [&**magic, version, system, object, keys, storages].concat()
    }
}

#[test]
fn files_before_pytorch_1_6_are_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), Legacy::new().bytes()).unwrap();
    let checkpoint = Checkpoint::open(file.path()).unwrap();
    let data = checkpoint.tensors()["x"].read("x").unwrap();
    assert_eq!(data.iter::<f32>().collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
}

#[test]
fn damaged_files_before_pytorch_1_6_are_named() {
    let good = Legacy::new();
    let big_endian = [b"\x80\x02}", &*text("little_endian"), b"\x89s."].concat();
    let cut = good.storages[..good.storages.len() - 1].to_vec();
    let of_four = [&4u64.to_le_bytes()[..], &storage(3)].concat();
    let keys = |key: &str| [b"\x80\x02]", &*text(key), b"a."].concat();
    for (file, says) in [
        (Legacy { magic: b"\x80\x02K\x01.".to_vec(), ..good.clone() }, "a pickle without tensors"),
        (Legacy { version: b"\x80\x02K\x01.".to_vec(), ..good.clone() }, "expected 1001"),
        (Legacy { system: big_endian, ..good.clone() }, "not of a little-endian machine"),
        (Legacy { keys: b"\x80\x02K\x01.".to_vec(), ..good.clone() }, "list of its storages"),
        (Legacy { keys: keys("7"), ..good.clone() }, "storage '7' belongs to no tensor"),
        (Legacy { storages: cut, ..good.clone() }, "storage '0' ends after the file"),
        (Legacy { storages: of_four, ..good.clone() }, "storage '0' differs in size"),
    ] {
        let line = error_of(&file.bytes());
        assert!(line.contains(says), "{line}");
    }
}

#[test]
fn a_safetensors_file_without_tensors_is_empty() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), [&2u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
    assert!(Checkpoint::open(file.path()).unwrap().tensors().is_empty());
}
