//! The structure of an MP4, checked before anything trusts it.
//!
//! The container reader walks boxes by the sizes that they declare, and would walk in place for
//! ever on a box of size zero; it also makes room for as many table entries as a table declares.
//! So every box must lie inside its parent and every table inside its box.

/// Boxes that hold boxes.
const CONTAINERS: [&[u8; 4]; 9] =
    [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"mvex", b"moof", b"traf", b"edts"];

/// Tables: name, bytes before the number of entries (after the header), bytes of an entry.
const TABLES: [(&[u8; 4], usize, usize); 7] = [
    (b"stts", 4, 8),
    (b"ctts", 4, 8),
    (b"stsc", 4, 12),
    (b"stco", 4, 4),
    (b"co64", 4, 8),
    (b"stss", 4, 4),
    (b"elst", 4, 12),
];

/// Most samples of a track whose samples share one size, for which the file holds no table.
const MAX_SAMPLES: u32 = 1 << 22;

/// Checks all boxes of a file.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    walk(bytes, true)
}

fn walk(mut bytes: &[u8], top: bool) -> Result<(), String> {
    while !bytes.is_empty() {
        let damaged = || "damaged: a box does not fit into its place".to_string();
        let (size, name, header) = header(bytes).ok_or_else(damaged)?;
        // The last box of a file may leave its size open.
        let size = if size == 0 && top { bytes.len() as u64 } else { size };
        if size < header as u64 || size > bytes.len() as u64 {
            return Err(damaged());
        }
        let (whole, rest) = bytes.split_at(size as usize);
        let content = &whole[header..];
        if CONTAINERS.iter().any(|container| **container == name) {
            walk(content, false)?;
        }
        check_table(&name, content)?;
        bytes = rest;
    }
    Ok(())
}

/// Size, name and length of a box's header.
fn header(bytes: &[u8]) -> Option<(u64, [u8; 4], usize)> {
    let size = u32::from_be_bytes(*bytes.first_chunk()?);
    let name = *bytes.get(4..)?.first_chunk()?;
    if size == 1 {
        return Some((u64::from_be_bytes(*bytes.get(8..)?.first_chunk()?), name, 16));
    }
    Some((size.into(), name, 8))
}

fn check_table(name: &[u8; 4], content: &[u8]) -> Result<(), String> {
    let number = |at: usize| {
        let bytes = content.get(at..)?.first_chunk()?;
        Some(u32::from_be_bytes(*bytes))
    };
    let lying = || {
        let name = String::from_utf8_lossy(name);
        format!("damaged: table '{name}' declares more entries than it has")
    };
    if name == b"stsz" {
        let (size, count) = number(4).zip(number(8)).ok_or_else(lying)?;
        let room = if size == 0 { (content.len() - 12) as u32 / 4 } else { MAX_SAMPLES };
        return if count <= room { Ok(()) } else { Err(lying()) };
    }
    let Some((_, before, entry)) = TABLES.iter().find(|(table, ..)| *table == name) else {
        return Ok(());
    };
    let count = number(*before).ok_or_else(lying)? as usize;
    let room = (content.len() - before - 4) / entry;
    if count <= room { Ok(()) } else { Err(lying()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_box(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let mut bytes = ((content.len() + 8) as u32).to_be_bytes().to_vec();
        bytes.extend(name);
        bytes.extend(content);
        bytes
    }

    #[test]
    fn boxes_must_lie_in_their_parents() {
        let good = a_box(b"moov", &a_box(b"trak", &a_box(b"free", b"")));
        assert_eq!(check(&good), Ok(()));
        // A box of size zero inside a container is the one that would be walked for ever.
        let mut zero = good.clone();
        zero[8..12].fill(0);
        assert!(check(&zero).is_err());
        let mut long = good.clone();
        long[11] = 200;
        assert!(check(&long).is_err());
        assert!(check(&good[..good.len() - 1]).is_err());
        assert!(check(b"abc").is_err());
        // At the end of the file it means "all the rest".
        assert_eq!(check(b"\0\0\0\0mdat and more"), Ok(()));
    }

    #[test]
    fn tables_must_hold_what_they_declare() {
        let table = |count: u32| {
            let mut content = vec![0; 4];
            content.extend(count.to_be_bytes());
            content.extend([0; 16]);
            a_box(b"stts", &content)
        };
        assert_eq!(check(&table(2)), Ok(()));
        assert!(check(&table(3)).is_err() && check(&table(u32::MAX)).is_err());
        let sizes = |size: u32, count: u32| {
            let mut content = vec![0; 4];
            content.extend(size.to_be_bytes());
            content.extend(count.to_be_bytes());
            a_box(b"stsz", &content)
        };
        assert_eq!(check(&sizes(100, 1000)), Ok(()));
        assert!(check(&sizes(100, u32::MAX)).is_err() && check(&sizes(0, 1)).is_err());
        assert!(check(&a_box(b"stsz", b"")).is_err());
    }
}
