//! The number of frames that the VAE decodes at once, and whether in tiles, by the memory of the device.

use crate::{
    nn::device::{self, DeviceKind},
    vae::VaeConfig,
};
use burn::tensor::{DType, Device, FloatDType};

/// Maximum number of frames that are decoded at once: enough to keep a device busy.
const MOST_FRAMES: usize = 4;

/// Rows of a tile.
const TILE_ROWS: usize = 64;

/// Number of activations of the largest level that decoding a whole frame holds in memory at once. Measured: 3.4
/// on flex at 512x512 (docs/performance.md).
const ACTIVATIONS: u64 = 4;

/// Frames at once and tile rows with which the VAE decodes a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DecodePlan {
    /// Frames that are decoded at once.
    pub(super) frames: usize,
    /// Rows of the tiles that each frame is decoded in; `None` for whole frames.
    pub(super) tile_rows: Option<usize>,
}

impl DecodePlan {
    /// The plan with the least memory: one frame at a time, in tiles.
    pub(super) const SMALLEST: Self = Self { frames: 1, tile_rows: Some(TILE_ROWS) };

    /// Returns the plan for frames of `[height, width]` pixels on a device with `memory` bytes (`None`:
    /// unknown). Half of the memory is reserved for weights, caches of allocators and other programs.
    pub(super) fn new(
        config: &VaeConfig,
        [height, width]: [usize; 2],
        dtype: FloatDType,
        memory: Option<u64>,
    ) -> Self {
        let Some(memory) = memory else {
            return Self { frames: MOST_FRAMES, tile_rows: None };
        };
        // The second-to-last level is upsampled to full size before its channels are reduced.
        let channels = config.block_out_channels.iter().take(2).max().copied().unwrap_or(1);
        let values = (channels * height * width) as u64;
        let frame = ACTIVATIONS * values * DType::from(dtype).size() as u64;
        match (memory / 2) / frame.max(1) {
            0 => Self::SMALLEST,
            fit => Self { frames: MOST_FRAMES.min(fit as usize), tile_rows: None },
        }
    }
}

/// Returns the memory of a discrete GPU in bytes; `None` for other devices, or if no driver reports it.
/// (Integrated GPUs report a small part of the memory that they share with the processor.)
pub(super) fn own_memory(device: &Device) -> Option<u64> {
    if !matches!(device::kind(device), DeviceKind::Discrete | DeviceKind::Gpu) {
        return None;
    }
    device::describe(&device::name(device)?).ok()?.memory_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_devices_decode_fewer_frames_and_then_tiles() {
        let config = VaeConfig::default();
        let plan = |memory| DecodePlan::new(&config, [512, 512], FloatDType::F32, memory);
        // A frame of 512x512 takes 4 x 256 x 512 x 512 x 4 bytes: one GiB.
        let whole = |frames| DecodePlan { frames, tile_rows: None };
        assert_eq!(plan(None), whole(4));
        assert_eq!(plan(Some(24 << 30)), whole(4));
        assert_eq!(plan(Some(6 << 30)), whole(3));
        assert_eq!(plan(Some(2 << 30)), whole(1));
        assert_eq!(plan(Some((2 << 30) - 1)), DecodePlan::SMALLEST);
        let half = DecodePlan::new(&config, [512, 512], FloatDType::BF16, Some(6 << 30));
        assert_eq!(half, whole(4));
        assert_eq!(own_memory(&Device::flex()), None);
    }
}
