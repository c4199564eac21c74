//! Small checkpoints in both formats.

#![allow(dead_code, reason = "each test file uses its own part")]

use safetensors::{Dtype, tensor::TensorView};
use std::{
    io::{Cursor, Write},
    path::{Path, PathBuf},
};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// Writes f32 tensors of the numbers 1, 2, 3, ... as a safetensors file.
pub(crate) fn safetensors(path: &Path, tensors: &[(&str, &[usize])]) -> PathBuf {
    let bytes = tensors.iter().map(|(_, shape)| {
        let count: usize = shape.iter().product();
        (0..count).flat_map(|number| (number as f32 + 1.0).to_le_bytes()).collect::<Vec<u8>>()
    });
    let bytes: Vec<_> = bytes.collect();
    let views = tensors.iter().zip(&bytes).map(|((key, shape), bytes)| {
        (key.to_string(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
    path.into()
}

/// Returns the instruction that pushes a text.
pub(crate) fn text(text: &str) -> Vec<u8> {
    let mut bytes = b"X".to_vec();
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

/// Returns the pickle of a state dict of f32 vectors, each with a storage of the numbers 1, 2, 3, ...
pub(crate) fn pickle(tensors: &[(&str, usize)]) -> Vec<u8> {
    let names: Vec<String> = (0..tensors.len()).map(|index| index.to_string()).collect();
    let tensors = tensors.iter().zip(&names);
    pickle_of(tensors.map(|((key, length), storage)| (*key, &**storage, *length)))
}

/// Returns the pickle of a state dict of f32 vectors: key, name of the storage, and length.
pub(crate) fn pickle_of<'a>(tensors: impl Iterator<Item = (&'a str, &'a str, usize)>) -> Vec<u8> {
    let number = |number: usize| [&b"J"[..], &(number as i32).to_le_bytes()].concat();
    let mut out = b"\x80\x02}(".to_vec();
    for (key, storage, length) in tensors {
        out.extend(text(key));
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        out.extend(text("storage"));
        out.extend(b"ctorch\nFloatStorage\n");
        out.extend(text(storage));
        out.extend(text("cpu"));
        out.extend(number(length));
        out.extend(b"tQK\x00(");
        out.extend(number(length));
        out.extend(b"t(K\x01t\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

/// Returns the storage of a vector of the numbers 1, 2, 3, ...
pub(crate) fn storage(length: usize) -> Vec<u8> {
    (0..length).flat_map(|number| (number as f32 + 1.0).to_le_bytes()).collect()
}

/// An entry of a zip archive.
pub(crate) type Entry<'a> = (&'a str, Vec<u8>);

/// Returns a zip archive.
pub(crate) fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Writes a `torch.save` file of f32 vectors of the numbers 1, 2, 3, ...
pub(crate) fn torch_file(path: &Path, tensors: &[(&str, usize)]) -> PathBuf {
    let names: Vec<String> = (0..tensors.len()).map(|key| format!("archive/data/{key}")).collect();
    let mut entries: Vec<Entry<'_>> = vec![("archive/data.pkl", pickle(tensors))];
    for (name, (_, length)) in names.iter().zip(tensors) {
        entries.push((name, storage(*length)));
    }
    std::fs::write(path, archive(&entries)).unwrap();
    path.into()
}
