//! Small messages that all ranks of a group agree on: gathered bytes, and the first error.

use crate::{Communicator, Reduction};

/// Returns the bytes of every rank, in the order of ranks. The lengths may differ. A collective.
pub fn gather_bytes(group: &dyn Communicator, bytes: &[u8]) -> Vec<Vec<u8>> {
    if group.size() == 1 {
        return vec![bytes.to_vec()];
    }
    let mut lengths = vec![0; 8 * group.size()];
    group.all_gather(&(bytes.len() as u64).to_le_bytes(), &mut lengths);
    let (lengths, _) = lengths.as_chunks::<8>();
    let lengths: Vec<usize> = lengths.iter().map(|n| u64::from_le_bytes(*n) as usize).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if longest == 0 {
        return vec![Vec::new(); group.size()];
    }
    let mut padded = bytes.to_vec();
    padded.resize(longest, 0);
    let mut all = vec![0; longest * group.size()];
    group.all_gather(&padded, &mut all);
    all.chunks(longest).zip(lengths).map(|(part, length)| part[..length].to_vec()).collect()
}

/// A message that one rank has sent to all, from [`lowest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lowest {
    /// Key of the message.
    pub key: u64,
    /// Rank that sent it.
    pub rank: usize,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Returns the message with the lowest key of all ranks, of several the one of the lowest rank, or `None` if no
/// rank has one. Keys are less than 2^53. A collective; without a message it is one reduction of a number.
pub fn lowest(group: &dyn Communicator, message: Option<(u64, &[u8])>) -> Option<Lowest> {
    if group.size() == 1 {
        return message.map(|(key, bytes)| Lowest { key, rank: 0, bytes: bytes.to_vec() });
    }
    // The maximum of the negative keys, and then of the negative ranks that have it.
    let mine = message.map_or(f64::NEG_INFINITY, |(key, _)| -(key as f64));
    let mut found = [mine];
    group.all_reduce_f64(Reduction::Max, &mut found);
    let [best] = found;
    if best == f64::NEG_INFINITY {
        return None;
    }
    let mut found = [if mine == best { -(group.rank() as f64) } else { f64::NEG_INFINITY }];
    group.all_reduce_f64(Reduction::Max, &mut found);
    let rank = -found[0] as usize;
    let own = message.map_or(&[][..], |(_, bytes)| bytes);
    let mut length = (own.len() as u64).to_le_bytes();
    group.broadcast(rank, &mut length);
    let mut bytes = vec![0; u64::from_le_bytes(length) as usize];
    if rank == group.rank() {
        bytes.copy_from_slice(own);
    }
    if !bytes.is_empty() {
        group.broadcast(rank, &mut bytes);
    }
    Some(Lowest { key: -best as u64, rank, bytes })
}

/// Returns rank and text of the error of the lowest rank that has one, or `None` if no rank has. A collective:
/// a rank without an error passes `None`.
pub fn first_error(group: &dyn Communicator, error: Option<&str>) -> Option<(usize, String)> {
    let message = error.map(|error| (group.rank() as u64, error.as_bytes()));
    let found = lowest(group, message)?;
    Some((found.rank, String::from_utf8_lossy(&found.bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Solo;

    #[test]
    fn one_process_has_only_its_own_messages() {
        assert_eq!(gather_bytes(&Solo, b"abc"), [b"abc"]);
        assert_eq!(lowest(&Solo, None), None);
        assert_eq!(first_error(&Solo, Some("no disk")), Some((0, "no disk".into())));
    }
}
