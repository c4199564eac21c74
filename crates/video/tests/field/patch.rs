//! Patches headers of MP4 files whose header is at the end.

/// Returns the first offset of a box's name.
pub(crate) fn position(bytes: &[u8], name: &[u8; 4]) -> usize {
    bytes.windows(4).position(|window| window == name).unwrap()
}

fn a_box(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let size = (content.len() + 8) as u32;
    [&size.to_be_bytes(), name.as_slice(), content].concat()
}

/// Replaces the display matrix of the first track.
pub(crate) fn with_matrix(bytes: &[u8], matrix: [i32; 9]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = position(&bytes, b"tkhd") + 4 + 40;
    let matrix: Vec<u8> = matrix.iter().flat_map(|factor| factor.to_be_bytes()).collect();
    bytes[at..at + 36].copy_from_slice(&matrix);
    bytes
}

/// Replaces the edits of the first track: durations in ticks of the movie, and times in ticks of the track
/// (-1: an empty edit). Without edits, the edit list is removed.
pub(crate) fn with_edits(bytes: &[u8], edits: &[(u32, i32)]) -> Vec<u8> {
    let old = position(bytes, b"edts") - 4;
    let old_size = u32::from_be_bytes(bytes[old..old + 4].try_into().unwrap()) as usize;
    let mut list = vec![0, 0, 0, 0];
    list.extend((edits.len() as u32).to_be_bytes());
    for (duration, time) in edits {
        list.extend(duration.to_be_bytes());
        list.extend(time.to_be_bytes());
        list.extend([0, 1, 0, 0]);
    }
    let new = if edits.is_empty() { vec![] } else { a_box(b"edts", &a_box(b"elst", &list)) };
    let mut out = [&bytes[..old], &new, &bytes[old + old_size..]].concat();
    for parent in [b"moov", b"trak"] {
        let at = position(bytes, parent) - 4;
        let size = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let size = (size + new.len() - old_size) as u32;
        out[at..at + 4].copy_from_slice(&size.to_be_bytes());
    }
    out
}
