//! The size of buckets: values of several tensors that move in one collective.

/// Bytes of a bucket for each rank.
const PER_RANK: usize = 4 << 20;

/// The largest bucket over all ranks, as it is held twice, sent and received.
const MOST: usize = 256 << 20;

/// Returns the bytes over all ranks that a collective of `ranks` ranks should move at once: 4 MiB for each rank, at
/// most 256 MiB.
///
/// A collective sends every rank its part of the bucket, so that the messages of a bucket of fixed size would shrink as
/// ranks are added, until their latency takes most of the time.
pub const fn bucket_bytes(ranks: usize) -> usize {
    let bytes = PER_RANK.saturating_mul(if ranks == 0 { 1 } else { ranks });
    if bytes < MOST { bytes } else { MOST }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_length_up_to_64_ranks() {
        let mib = |ranks| bucket_bytes(ranks) >> 20;
        assert_eq!([0, 1, 2, 8, 63, 64, 65, 4096].map(mib), [4, 4, 8, 32, 252, 256, 256, 256]);
        assert_eq!(bucket_bytes(usize::MAX), MOST);
    }
}
