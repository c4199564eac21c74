//! The zip archive that `torch.save` writes since PyTorch 1.6: `NAME/data.pkl`, and storages as
//! `NAME/data/KEY`.

use super::{
    Parsed,
    objects::MAX_KEY,
    pickle::{MAX_PICKLE, Unpickler},
    view::Region,
};
use crate::{
    error::{Cause, because},
    file_range::FileRange,
    source::check_count,
};
use std::{collections::HashMap, fs::File, io::BufReader};
use zip::{
    CompressionMethod, ZipArchive,
    read::{ArchiveOffset, Config},
};

/// Maximum size of the entry `byteorder`, in bytes.
const MAX_BYTE_ORDER: u64 = 64;

const PICKLE: &str = "data.pkl";
const BYTE_ORDER: &str = "byteorder";

pub(super) fn open(file: &File) -> Result<Parsed, Cause> {
    let length = file.metadata()?.len();
    let zip = |error: zip::result::ZipError| because("damaged zip archive")(error);
    // Archives of torch.save begin at the start of the file. If the zip crate searches for the start, it
    // overlooks the 76 bytes of zip64 records behind the directory, and skips the first entry if that has
    // 76 bytes: in files with a name of 21 letters, such as STDiT-XL-2-16x256x256.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut archive = ZipArchive::with_config(config, BufReader::new(file)).map_err(zip)?;
    check_count(archive.len(), "entries")?;

    let mut regions = HashMap::new();
    let mut pickles = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(zip)?;
        let name = entry.name().map_err(zip)?.to_string();
        // The folder's name is joined with the key of each storage.
        if name.len() > MAX_KEY {
            return Err(format!(
                "an entry's name has {} bytes, expected at most {MAX_KEY}",
                name.len()
            )
            .into());
        }
        // A stored entry is at most as large as the file; a compressed one may be a thousand times
        // larger.
        if entry.compression() != CompressionMethod::Stored
            || entry.compressed_size() != entry.size()
        {
            return Err(format!(
                "entry '{name}' is compressed, expected stored entries as torch.save writes them; \
                 load the file in PyTorch and save it again"
            )
            .into());
        }
        let len = entry.size();
        let start = entry
            .data_start()
            .filter(|start| start.checked_add(len).is_some_and(|end| end <= length));
        let start = start.ok_or_else(|| format!("entry '{name}' ends after the file"))?;
        // PyTorch writes a checksum of 0 if told to compute none.
        let crc32 = Some(entry.crc32()).filter(|&crc32| crc32 != 0);
        if let Some(folder) = name.strip_suffix(PICKLE)
            && (folder.is_empty() || folder.ends_with('/'))
        {
            pickles.push((folder.to_string(), Region { start, len, crc32 }));
        }
        regions.insert(name, Region { start, len, crc32 });
    }
    let outermost = pickles.into_iter().min_by_key(|(folder, _)| folder.len());
    let (folder, pickle) = outermost.ok_or_else(|| {
        format!("a zip archive without {PICKLE}, expected a file that torch.save wrote")
    })?;
    drop(archive);
    let file = FileRange::new(file.try_clone()?);
    let read = |name: &str, region: Region, most: u64| {
        if region.len > most {
            let found = region.len;
            let reason = format!("'{folder}{name}' has {found} bytes, expected at most {most}");
            return Err(Cause::from(reason));
        }
        region.read(&file).map_err(because(format!("cannot read '{folder}{name}'")))
    };
    if let Some(&order) = regions.get(&format!("{folder}{BYTE_ORDER}")) {
        let order = read(BYTE_ORDER, order, MAX_BYTE_ORDER)?;
        if order.trim_ascii() != b"little" {
            let order = String::from_utf8_lossy(&order);
            let order = order.trim();
            return Err(format!("byte order '{order}' is not supported, expected little").into());
        }
    }
    let pickle = read(PICKLE, pickle, MAX_PICKLE as u64)?;
    let mut unpickler = Unpickler::new(&pickle);
    let root = unpickler.load()?;
    let objects = unpickler.objects;
    let region = |key: &str| regions.get(&format!("{folder}data/{key}")).copied();
    let regions = objects.storages().iter().map(|storage| region(&storage.key)).collect();
    Ok(Parsed { objects, root, regions })
}
