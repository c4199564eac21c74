//! Compares the rounding to bytes with the frames of the Python reference (fixture `goldens/pipeline`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_video::Frames;
use serde_json::Value;

const GOLDEN: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/goldens/pipeline/expected.safetensors"
);

/// Returns the bytes and shape of a tensor of a safetensors file: a length, a JSON header and the data.
fn tensor<'a>(file: &'a [u8], name: &str) -> (&'a [u8], Vec<usize>) {
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: Value = serde_json::from_slice(header).unwrap();
    let numbers = |key: &str| -> Vec<usize> {
        let list = header[name][key].as_array().unwrap();
        list.iter().map(|number| number.as_u64().unwrap() as usize).collect()
    };
    let place = numbers("data_offsets");
    (&data[place[0]..place[1]], numbers("shape"))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (numbers, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn frames_are_the_references_to_the_byte() {
    let file = std::fs::read(GOLDEN).unwrap();
    for (decoded, expected) in [("decoded", "frames_u8"), ("image.decoded", "image.u8")] {
        let (decoded, shape) = tensor(&file, decoded); // [B, 3, T, H, W]
        let (expected, _) = tensor(&file, expected); // [B, T, H, W, 3], or [H, W, 3]
        let clip: [usize; 4] = shape[1..].try_into().unwrap();
        let values = floats(decoded);
        let got: Vec<u8> = values
            .chunks_exact(clip.iter().product())
            .flat_map(|values| Frames::from_signed(values, clip).unwrap().data().to_vec())
            .collect();
        assert_eq!(got.len(), expected.len());
        assert!(got == expected, "{shape:?}");
    }
}
