//! Writes `torch.save` files in the format of PyTorch 1.6 and newer, valid and hostile ones.

use std::io::{Cursor, Write};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// A value of the pickle.
#[derive(Debug, Clone)]
pub enum Value {
    /// A tensor of f32 with its shape and strides; the numbers are its storage.
    Tensor {
        /// Numbers of the storage.
        storage: Vec<f32>,
        /// Its shape.
        shape: Vec<usize>,
        /// Elements between neighbours along each axis.
        strides: Vec<usize>,
    },
    /// A dictionary.
    Dict(Vec<(String, Value)>),
    /// A value that [`Again`](Self::Again) refers to by its number.
    Memo(u8, Box<Value>),
    /// A reference to the value of that number: the same object.
    Again(u8),
    /// `None`.
    None,
    /// An integer.
    Int(i32),
}

impl Value {
    /// Returns a contiguous tensor of the numbers 0, 1, 2, ...
    pub fn tensor(shape: &[usize]) -> Self {
        let count: usize = shape.iter().product();
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        Self::Tensor {
            storage: (0..count).map(|n| n as f32).collect(),
            shape: shape.into(),
            strides,
        }
    }

    /// A dictionary.
    pub fn dict<const N: usize>(entries: [(&str, Value); N]) -> Self {
        Self::Dict(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }
}

/// Returns the bytes of a file with `value`.
///
/// # Panics
/// Panics if a number is too large for a pickle of protocol 2.
pub fn torch_file(value: &Value) -> Vec<u8> {
    let mut pickle = b"\x80\x02".to_vec();
    let mut storages = Vec::new();
    write(&mut pickle, &mut storages, value);
    pickle.push(b'.');
    archive(&pickle, &storages, CompressionMethod::Stored)
}

/// Returns a zip archive with a `data.pkl` and storages under `torch.save`'s names.
///
/// # Panics
/// Never panics: writing to memory does not fail.
pub fn archive(pickle: &[u8], storages: &[Vec<u8>], method: CompressionMethod) -> Vec<u8> {
    let options = SimpleFileOptions::default().compression_method(method);
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let named =
        (0..).map(|key| format!("archive/data/{key}")).zip(storages.iter().map(Vec::as_slice));
    for (name, bytes) in [("archive/data.pkl".to_string(), pickle)].into_iter().chain(named) {
        writer.start_file(name, options).expect("an archive in memory");
        writer.write_all(bytes).expect("an archive in memory");
    }
    writer.finish().expect("an archive in memory").into_inner()
}

fn write(out: &mut Vec<u8>, storages: &mut Vec<Vec<u8>>, value: &Value) {
    match value {
        Value::Tensor { storage, shape, strides } => {
            out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            text(out, "storage");
            out.extend(b"ctorch\nFloatStorage\n");
            text(out, &storages.len().to_string());
            text(out, "cpu");
            integer(out, storage.len());
            out.extend(b"tQK\x00");
            for numbers in [shape, strides] {
                out.push(b'(');
                numbers.iter().for_each(|&number| integer(out, number));
                out.push(b't');
            }
            out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
            storages.push(storage.iter().flat_map(|number| number.to_le_bytes()).collect());
        }
        Value::Dict(entries) => {
            out.push(b'}');
            fill(out, storages, entries);
        }
        Value::Memo(number, value) => match &**value {
            // As in Python, the dictionary gets its number before it is filled.
            Value::Dict(entries) => {
                out.extend([b'}', b'q', *number]);
                fill(out, storages, entries);
            }
            value => {
                write(out, storages, value);
                out.extend([b'q', *number]);
            }
        },
        Value::Again(number) => out.extend([b'h', *number]),
        Value::None => out.push(b'N'),
        Value::Int(number) => {
            out.push(b'J');
            out.extend(number.to_le_bytes());
        }
    }
}

fn fill(out: &mut Vec<u8>, storages: &mut Vec<Vec<u8>>, entries: &[(String, Value)]) {
    out.push(b'(');
    for (key, value) in entries {
        text(out, key);
        write(out, storages, value);
    }
    out.push(b'u');
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A non-negative number of up to eight bytes.
fn integer(out: &mut Vec<u8>, number: usize) {
    let number = i64::try_from(number).expect("a number that a pickle's reader takes");
    out.extend([0x8a, 8]);
    out.extend(number.to_le_bytes());
}
