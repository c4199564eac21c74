//! The frames of a clip that each rank decodes.

use super::{PipelineError, observer::Decoded};
use crate::{parallel::Group, video::Frames};
use std::ops::Range;

/// How the decoding of a rank's frames ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Decoded,
    NonFinite,
    Stopped(Decoded),
}

impl Outcome {
    /// Returns the rank of this outcome: of several, the largest is that of the clip.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Decoded => 0,
            Self::NonFinite => 1,
            Self::Stopped(_) => 2,
        }
    }
}

/// The frames of a clip in micro-batches, divided among ranks.
#[derive(Debug)]
pub(super) struct DecodeShards {
    group: Group,
    /// Frames of the clip.
    pub(super) frames: usize,
    /// Frames of a micro-batch; the last one may have fewer.
    batch: usize,
    /// Frames of a rank; the last ranks may have fewer or none.
    per_rank: usize,
}

impl DecodeShards {
    /// Divides `frames` frames among the ranks of `group`, in micro-batches of at most `most` frames.
    pub(super) fn new(group: &Group, frames: usize, most: usize) -> Self {
        let per_rank = frames.div_ceil(group.size());
        Self { group: group.clone(), frames, batch: most.max(1), per_rank }
    }

    /// Returns the micro-batches of this rank.
    pub(super) fn held(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (frames, batch) = (self.frames, self.batch);
        let first = self.group.rank() * self.per_rank;
        let end = (first + self.per_rank).min(frames);
        (first..end).step_by(batch).map(move |first| first..(first + batch).min(end))
    }

    /// Returns about how many frames all ranks have decoded when this one has decoded `batches` micro-batches.
    pub(super) fn frames_after(&self, batches: usize) -> usize {
        let of_rank = (batches * self.batch).min(self.per_rank);
        (of_rank * self.group.size()).min(self.frames)
    }

    /// Returns the clip, of which this rank has `decoded`.
    pub(super) fn join(&self, decoded: Option<Frames>) -> Result<Frames, PipelineError> {
        let missing = || PipelineError::Parts("the VAE decoded no clip".into());
        if self.group.size() == 1 {
            return decoded.ok_or_else(missing);
        }
        // Rank 0 has frames of every clip and tells their size to ranks without any.
        let mut size = [0u8; 16];
        if let Some(clip) = &decoded {
            size[..8].copy_from_slice(&(clip.height() as u64).to_le_bytes());
            size[8..].copy_from_slice(&(clip.width() as u64).to_le_bytes());
        }
        self.group.broadcast(0, &mut size);
        let [height, width] = [0, 8].map(|first| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&size[first..][..8]);
            u64::from_le_bytes(bytes) as usize
        });
        let frame = height * width * 3;
        // [T/N, H, W, 3], with zeros for frames after the clip -> [T, H, W, 3]
        let mut own = decoded.map(|clip| clip.data().to_vec()).unwrap_or_default();
        own.resize(self.per_rank * frame, 0);
        let mut all = vec![0; own.len() * self.group.size()];
        self.group.all_gather(&own, &mut all);
        all.truncate(self.frames * frame);
        Ok(Frames::from_rgb(all, [self.frames, height, width])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::{Solo, threads::run_ranks};
    use std::sync::Arc;

    #[test]
    fn one_process_decodes_all_frames_in_batches() {
        let group: Group = Arc::new(Solo);
        let shards = DecodeShards::new(&group, 9, 4);
        assert_eq!(shards.held().collect::<Vec<_>>(), [0..4, 4..8, 8..9]);
        assert_eq!([1, 2, 3].map(|batches| shards.frames_after(batches)), [4, 8, 9]);
    }

    #[test]
    fn every_frame_is_decoded_by_one_rank_and_joined_in_order() {
        for (ranks, frames, most) in [(2, 9, 4), (3, 2, 4), (4, 16, 4), (3, 16, 2), (4, 5, 1)] {
            let pixels = |frame: usize| vec![frame as u8; 2 * 2 * 3];
            let clips = run_ranks(ranks, |group| {
                let shards = DecodeShards::new(&group, frames, most);
                let held: Vec<usize> = shards.held().flatten().collect();
                assert!(shards.held().all(|batch| batch.len() <= most));
                let data: Vec<u8> = held.iter().flat_map(|&frame| pixels(frame)).collect();
                let own = Frames::from_rgb(data, [held.len(), 2, 2]).ok();
                shards.join(own).unwrap()
            });
            let expected: Vec<u8> = (0..frames).flat_map(pixels).collect();
            for clip in clips {
                assert_eq!(clip.data(), expected, "{ranks} ranks, {frames} frames");
            }
        }
    }
}
