//! Import of modules, and the reports and errors of checkpoints that do not match.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod files;

use burn::{
    module::Module,
    nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig},
    tensor::{Device, FloatDType},
};
use files::{archive, pickle_of, safetensors, storage};
use opensora_checkpoint::{
    Checkpoint, CheckpointError, ConvertSpec, KeyMap, Mismatch, StreamedImport, check_import,
    import, parameter_slots,
};
use std::path::Path;

#[derive(Module, Debug)]
struct Block {
    proj: Linear,
    norm: GroupNorm,
}

fn block() -> Block {
    let device = Device::flex();
    Block {
        proj: LinearConfig::new(3, 2).init(&device),
        norm: GroupNormConfig::new(1, 2).init(&device),
    }
}

const TENSORS: [(&str, &[usize]); 4] =
    [("norm.bias", &[2]), ("norm.weight", &[2]), ("proj.bias", &[2]), ("proj.weight", &[2, 3])];

fn open(folder: &Path, tensors: &[(&str, &[usize])]) -> Checkpoint {
    Checkpoint::open(safetensors(&folder.join("a.safetensors"), tensors)).unwrap()
}

fn values<const D: usize>(tensor: &burn::tensor::Tensor<D>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}

#[test]
fn parameters_have_the_names_and_shapes_of_pytorch() {
    let mut slots: Vec<(String, Vec<usize>)> =
        parameter_slots(&block()).into_iter().map(|slot| (slot.path, slot.shape)).collect();
    slots.sort();
    let expected = TENSORS.map(|(key, shape)| (key.to_string(), shape.to_vec()));
    assert_eq!(slots, expected);
}

#[test]
fn a_module_is_filled_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = [&TENSORS[..], &[("step", &[1][..])]].concat();
    let checkpoint = open(folder.path(), &tensors);
    let map = KeyMap::new("a block").allow_unused("st*");
    let (block, report) = import(block(), &checkpoint, &map, FloatDType::F32).unwrap();
    // PyTorch's [out, in] is transposed to burn's [in, out].
    assert_eq!(values(&block.proj.weight.val()), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    assert_eq!(values(&block.norm.gamma.unwrap().val()), [1.0, 2.0]);
    assert_eq!((report.tensors, report.elements), (4, 12));
    assert_eq!((report.ignored, report.outside), (vec!["step".to_string()], 0));
    let report = check_import(&self::block(), &checkpoint, &map).unwrap();
    let text = report.to_string();
    assert_eq!(
        text,
        "a block: 4 tensors, 0.0 M parameters from a.safetensors (1 known keys not used)"
    );
}

#[test]
fn wrappers_are_part_of_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let names = TENSORS.map(|(key, shape)| (format!("module.{key}"), shape));
    let mut tensors: Vec<(&str, &[usize])> =
        names.iter().map(|(key, shape)| (&**key, *shape)).collect();
    tensors.push(("optimizer", &[1]));
    let checkpoint = open(folder.path(), &tensors).unwrapped("proj.weight").unwrap();
    let report = check_import(&block(), &checkpoint, &KeyMap::new("a block")).unwrap();
    let text = report.to_string();
    assert!(text.ends_with("unwrapped from 'module' (1 tensors outside not used)"), "{text}");
}

/// Returns how a checkpoint of these tensors differs from the block.
fn mismatch(tensors: &[(&str, &[usize])], map: &KeyMap) -> Mismatch {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = open(folder.path(), tensors);
    let error = import(block(), &checkpoint, map, FloatDType::F32).unwrap_err();
    let text = error.to_string();
    let CheckpointError::Mismatch { mismatch, .. } = error else { panic!("{text}") };
    assert!(text.contains(&mismatch.to_string()), "{text}");
    *mismatch
}

#[test]
fn keys_and_shapes_must_match() {
    let map = KeyMap::new("a block");
    let lacks = mismatch(&TENSORS[1..], &map);
    assert_eq!((&*lacks.missing, lacks.unused.len()), (&["norm.bias".to_string()][..], 0));
    assert!(lacks.likely_cause.contains("more or deeper layers"), "{lacks}");
    let more = mismatch(&[&TENSORS[..], &[("extra", &[1][..])]].concat(), &map);
    assert_eq!((more.missing.len(), &*more.unused), (0, &["extra".to_string()][..]));
    assert!(more.likely_cause.contains("fewer layers"), "{more}");
    let both = mismatch(&[&TENSORS[1..], &[("extra", &[1][..])]].concat(), &map);
    assert_eq!(both.likely_cause, "a variant of the model with other names");
    let mut wide = TENSORS;
    wide[3].1 = &[2, 4];
    let wide = mismatch(&wide, &map);
    assert_eq!((&*wide.shapes[0].found, &*wide.shapes[0].expected), (&[2, 4][..], &[2, 3][..]));
    assert!(wide.to_string().contains("proj.weight: file [2, 4], model [2, 3]"), "{wide}");
    assert!(wide.likely_cause.contains("layers of another size"), "{wide}");
}

#[test]
fn a_wrong_artefact_is_recognised() {
    let map = KeyMap::new("a block");
    let shape: &[usize] = &[1];
    for (key, says) in [
        ("encoder.down.0.block.0.x", "looks like a VAE in CompVis layout"),
        ("a.b.lora_x", "looks like a LoRA adapter under 'a.b'"),
        ("net.a.x", "no kind known here; they begin with 'net'"),
    ] {
        let found = mismatch(&[(key, shape)], &map);
        assert!(found.likely_cause.contains(says), "{found}");
        assert_eq!(found.missing.len(), 4);
    }
    let many = ["a.x", "b.x", "c.x", "d.x", "e.x"].map(|key| (key, shape));
    let found = mismatch(&many, &map);
    assert!(found.likely_cause.ends_with("no kind known here"), "{found}");
    assert!(found.to_string().contains("5 keys left over (a.x, b.x, c.x, d.x, and 1 more)"));
}

#[test]
fn long_lists_are_cut_and_half_of_the_keys_is_not_another_artefact() {
    let map = KeyMap::new("a block");
    let shape: &[usize] = &[1];
    let four = ["a.x", "b.x", "c.x", "d.x"].map(|key| (key, shape));
    let found = mismatch(&four, &map);
    assert!(found.to_string().contains("4 keys left over (a.x, b.x, c.x, d.x);"), "{found}");
    assert!(found.likely_cause.ends_with("they begin with 'a', 'b', 'c', 'd'"), "{found}");
    let half = mismatch(&TENSORS[2..], &map);
    assert!(half.likely_cause.contains("an incomplete file"), "{half}");
    assert!(half.to_string().contains("2 keys missing (norm.weight, norm.bias)"), "{half}");
    let more_than_half = mismatch(&TENSORS[3..], &map);
    assert!(more_than_half.likely_cause.contains("wrong artefact"), "{more_than_half}");
}

/// Number of elements of a storage of 256 KiB.
const LENGTH: usize = 1 << 16;

/// Writes a file whose `layers` tensors have one storage. The limit of their size is eight times the file, and a megabyte:
/// 8 * 256 KiB + 1 MiB, and some for the pickle.
fn of_one_storage(path: &Path, layers: usize) -> Checkpoint {
    let keys: Vec<String> = (0..layers).map(|layer| format!("{layer}.weight")).collect();
    let pickle = pickle_of(keys.iter().map(|key| (&**key, "0", LENGTH)));
    let entries = [("a/data.pkl", pickle), ("a/data/0", storage(LENGTH))];
    std::fs::write(path, archive(&entries)).unwrap();
    Checkpoint::open(path).unwrap()
}

/// Tensors of one storage can take far more memory than their file.
#[test]
fn tensors_that_take_far_more_memory_than_their_file_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let check = |layers: usize| {
        let layer = || LinearConfig::new(LENGTH, 1).with_bias(false).init(&Device::flex());
        let model: Vec<Linear> = (0..layers).map(|_| layer()).collect();
        let map = KeyMap::new("layers").any_unit_axes("*");
        check_import(&model, &of_one_storage(&folder.path().join("a.pth"), layers), &map)
    };
    assert_eq!(check(12).unwrap().elements, 12 * LENGTH);
    let error = check(14).unwrap_err().to_string();
    assert!(error.contains("its tensors take 3670016 bytes,"), "{error}");
}

/// A conversion writes each tensor by itself, so that a file of 100 MB could fill a disk.
#[test]
fn tensors_that_take_far_more_than_their_file_are_not_converted() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("a.pth"), folder.path().join("out"));
    std::fs::create_dir(&out).unwrap();
    let spec = ConvertSpec::default();
    let checkpoint = of_one_storage(&path, 14);
    for converted in [
        checkpoint.convert(&spec, &out, &mut ()),
        checkpoint.convert_to_file(None, &out.join("x.safetensors"), &mut ()),
    ] {
        let error = converted.unwrap_err().to_string();
        assert!(error.contains("its tensors take 3670016 bytes,"), "{error}");
    }
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    assert_eq!(of_one_storage(&path, 12).convert(&spec, &out, &mut ()).unwrap().tensors, 12);
}

#[test]
fn only_allowed_keys_may_be_missing_and_keep_their_values() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = open(folder.path(), &TENSORS[2..]);
    let map = KeyMap::new("a block").allow_missing("norm.*");
    let (block, report) = import(block(), &checkpoint, &map, FloatDType::F32).unwrap();
    assert_eq!(values(&block.norm.gamma.unwrap().val()), [1.0, 1.0]);
    assert_eq!((report.tensors, report.elements), (2, 8));
}

#[test]
fn tensors_of_integers_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let bytes = [0; 24];
    let view = |shape: &[usize]| {
        let bytes = &bytes[..4 * shape.iter().product::<usize>()];
        safetensors::tensor::TensorView::new(safetensors::Dtype::I32, shape.to_vec(), bytes)
    };
    let views = TENSORS.map(|(key, shape)| (key, view(shape).unwrap()));
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let error = check_import(&block(), &checkpoint, &KeyMap::new("a block")).unwrap_err();
    assert!(error.to_string().contains("element type I32 found, a float expected"), "{error}");
}

#[test]
fn rows_of_a_matrix_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = open(folder.path(), &TENSORS);
    let map = KeyMap::new("a block");
    let (import, _) = StreamedImport::new(&block(), checkpoint, map, FloatDType::F32).unwrap();
    assert_eq!(import.dtype(), FloatDType::F32);
    let rows = import.rows("proj.weight", &[1, 0, 1]).unwrap();
    assert_eq!(rows.shape()[..], [3, 3]);
    let found: Vec<f32> = rows.iter::<f32>().collect();
    assert_eq!(found, [4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let error = import.rows("proj.bias", &[0]).unwrap_err();
    assert!(error.to_string().contains("shape [2] found, a matrix expected"), "{error}");
    let proj: Linear = import.part("proj.", LinearConfig::new(3, 2).init(&Device::flex())).unwrap();
    assert_eq!(values(&proj.bias.unwrap().val()), [1.0, 2.0]);
}
