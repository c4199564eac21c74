//! The stream that `torch.save` wrote before PyTorch 1.6: five pickles (magic number, version, system,
//! object, keys of storages), then the storages in the order of their keys.

use super::{
    Parsed,
    objects::{Id, Objects, Value},
    pickle::{MAX_PICKLE, Unpickler},
    view::Region,
};
use crate::{error::Cause, file_range::FileRange};
use std::{
    fs::File,
    io::{Read, Seek},
};

const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const VERSION: i128 = 1001;

/// Size in bytes of the element count before each storage.
const COUNT: u64 = 8;

pub(super) fn open(mut file: &File) -> Result<Parsed, Cause> {
    let length = file.metadata()?.len();
    let mut head = Vec::new();
    file.rewind()?;
    file.take(MAX_PICKLE as u64).read_to_end(&mut head)?;
    let mut unpickler = Unpickler::new(&head);

    let magic = unpickler
        .load()
        .map_err(|error| format!("{error}; expected a file that torch.save wrote"))?;
    if !matches!(unpickler.objects.get(magic), Value::Int(MAGIC)) {
        return Err("a pickle without tensors, expected a file that torch.save wrote".into());
    }
    let version = unpickler.load()?;
    if !matches!(unpickler.objects.get(version), Value::Int(VERSION)) {
        return Err(format!("a torch.save file of an unknown version, expected {VERSION}").into());
    }
    let system = unpickler.load()?;
    if !is_little_endian(&unpickler.objects, system) {
        return Err("the file is not of a little-endian machine, others are not supported".into());
    }
    let root = unpickler.load()?;
    let keys = unpickler.load()?;
    let start = unpickler.position() as u64;
    let objects = unpickler.objects;
    let file = FileRange::new(file.try_clone()?);
    let regions = regions(&objects, keys, &file, start, length)?;
    Ok(Parsed { objects, root, regions })
}

fn is_little_endian(objects: &Objects, system: Id) -> bool {
    let Value::Dict(system) = objects.get(system) else { return false };
    let value = system.get("little_endian").map(|&value| objects.get(value));
    matches!(value, Some(Value::Bool(true)))
}

/// Computes the region of each storage. Storages follow each other, each after the number of its
/// elements.
fn regions(
    objects: &Objects,
    keys: Id,
    file: &FileRange,
    mut start: u64,
    length: u64,
) -> Result<Vec<Option<Region>>, Cause> {
    let Value::Sequence(keys) = objects.get(keys) else {
        return Err("the list of its storages is missing".into());
    };
    let mut regions = vec![None; objects.storages().len()];
    for &key in keys {
        let key = objects.storage_key(key)?;
        let unknown = || format!("storage '{key}' belongs to no tensor");
        let index = objects.storage_of(&key).ok_or_else(unknown)?;
        let storage = &objects.storages()[index];
        let size = storage.element.size.ok_or_else(|| {
            format!("storage '{key}' is of the unknown type torch.{}", storage.element.name)
        })?;
        // The declaration of the storage has checked this product.
        let len = (storage.elements * size) as u64;
        let end = start.checked_add(COUNT).and_then(|start| start.checked_add(len));
        let Some(end) = end.filter(|&end| end <= length) else {
            return Err(format!("truncated: storage '{key}' ends after the file").into());
        };
        let count = file.read(start, COUNT)?;
        if count != (storage.elements as u64).to_le_bytes() {
            return Err(format!("storage '{key}' differs in size from its declaration").into());
        }
        regions[index] = Some(Region { start: start + COUNT, len, crc32: None });
        start = end;
    }
    Ok(regions)
}
