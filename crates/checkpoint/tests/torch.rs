//! Files that PyTorch wrote: every element type, every protocol, with and without checksums. The README of
//! `tests/fixtures/checkpoints` in the repository describes them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_checkpoint::Checkpoint;
use opensora_files::error_line;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/fixtures", name].iter().collect()
}

const EVERY_TYPE: [&str; 3] = ["every-type.pt", "every-type-protocol-5.pt", "every-type-legacy.pt"];

#[test]
fn tensors_of_every_type_are_read_or_fail_only_if_they_are_needed() {
    for file in EVERY_TYPE {
        let checkpoint = Checkpoint::open(fixture(file)).unwrap();
        for (key, shape, values) in [
            ("weight", &[2, 3][..], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0][..]),
            ("transposed", &[2, 3], &[0.0, 2.0, 4.0, 1.0, 3.0, 5.0]),
            ("slice", &[2, 2], &[4.0, 6.0, 8.0, 10.0]),
            ("expanded", &[2, 3], &[0.0, 1.0, 2.0, 0.0, 1.0, 2.0]),
            ("scalar", &[], &[7.0]),
            ("empty", &[0, 3], &[]),
            ("half", &[5], &[0.0, 1.0, 2.0, 3.0, 4.0]),
            ("bfloat16", &[5], &[0.0, 1.0, 2.0, 3.0, 4.0]),
            ("double", &[3], &[0.0, 1.0, 2.0]),
            ("bool", &[3], &[1.0, 0.0, 1.0]),
            ("uint16", &[2], &[1.0, 65535.0]),
            ("int64", &[2], &[-1.0, 1_099_511_627_776.0]),
            ("parameter", &[2, 2], &[0.0, 1.0, 2.0, 3.0]),
            ("subclass", &[2], &[0.0, 1.0]),
        ] {
            // The same tensor under the dictionary's other name.
            for key in [format!("model.{key}"), format!("ema_of_it.{key}")] {
                let data = checkpoint.tensors()[&key].read(&key).unwrap();
                assert_eq!(data.shape()[..], *shape, "{file}: {key}");
                assert_eq!(data.iter::<f64>().collect::<Vec<_>>(), values, "{file}: {key}");
            }
        }
        assert!(checkpoint.contains("defaults.a.0"), "{file}");
        assert!(checkpoint.contains("optimizer.state.0.exp_avg"), "{file}");
        for (key, shape, says) in [
            ("f8_e4m3", &[2, 3][..], "element type torch.float8_e4m3fn is not supported"),
            ("f8_e5m2", &[4], "element type torch.float8_e5m2 is not supported"),
            ("f4", &[4], "element type torch.float4_e2m1fn_x2 is not supported"),
            ("complex", &[2, 2], "element type torch.complex64 is not supported"),
            ("quantised", &[2, 3], "element type torch.qint8 is not supported"),
            ("quantised_axis", &[2, 3], "element type torch.quint8 is not supported"),
            ("sparse", &[3, 3], "sparse tensors are not supported"),
            ("sparse_csr", &[3, 3], "sparse tensors are not supported"),
            ("meta", &[], "_rebuild_meta_tensor_no_storage"),
        ] {
            let key = format!("model.{key}");
            let entry = &checkpoint.tensors()[&key];
            assert_eq!((entry.dtype(), entry.shape()), (None, shape), "{file}: {key}");
            let error = entry.read(&key).unwrap_err().to_string();
            assert!(error.contains(&key) && error.contains(says), "{error}");
        }
    }
}

/// PyTorch writes a checksum of 0 if checksums are disabled.
#[test]
fn archives_without_checksums_are_read_and_wrong_checksums_are_not() {
    let checkpoint = Checkpoint::open(fixture("no-checksum.pt")).unwrap();
    let data = checkpoint.tensors()["weight"].read("weight").unwrap();
    assert_eq!(data.iter::<f32>().collect::<Vec<_>>(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);

    let mut bytes = std::fs::read(fixture("every-type.pt")).unwrap();
    let numbers: Vec<u8> = [0.0f32, 1.0, 2.0, 3.0].iter().flat_map(|n| n.to_le_bytes()).collect();
    let place = bytes.windows(16).position(|window| window == numbers).unwrap();
    bytes[place + 5] ^= 1;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let checkpoint = Checkpoint::open(file.path()).unwrap();
    let error = checkpoint.tensors()["model.weight"].read("model.weight").unwrap_err();
    let error = error_line(&error);
    assert!(error.contains("model.weight") && error.contains("checksum"), "{error}");
}
