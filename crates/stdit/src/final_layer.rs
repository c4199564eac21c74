//! The final layer: tokens to latents.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/layers/blocks.py`, class `T2IFinalLayer`,
//! and `stdit.py`, `STDiT.unpatchify`.

use crate::{DenoiserConfig, block::scale_shift_table, modulation::NORM_EPSILON};
use burn::{
    module::{Initializer, Module, Param},
    nn::Linear,
    tensor::{Device, Tensor},
};
use opensora_nn::{linear::linear, norm::layer_norm};

/// Norm, modulation by the timestep, and one linear layer.
#[derive(Module, Debug)]
pub struct FinalLayer {
    /// `C -> pt * ph * pw * out_channels`.
    pub linear: Linear,
    /// Shift and scale, `[2, C]`, to which the timestep embedding is added.
    pub scale_shift_table: Param<Tensor<2>>,
}

impl FinalLayer {
    pub(crate) fn new(config: &DenoiserConfig, device: &Device) -> Self {
        let patch: usize = config.patch_size.iter().product();
        let hidden = config.hidden_size;
        Self {
            linear: linear(hidden, patch * config.out_channels(), true, Initializer::Zeros, device),
            scale_shift_table: scale_shift_table(2, hidden, device),
        }
    }

    /// Applies the layer to `x` `[B, N, C]` with `t` `[B, C]` (before `t_block`); returns
    /// `[B, N, pt * ph * pw * C_out]`.
    pub fn forward(&self, x: Tensor<3>, t: Tensor<2>) -> Tensor<3> {
        let table = self.scale_shift_table.val().unsqueeze::<3>() + t.unsqueeze_dim::<3>(1); // [B, 2, C]
        let shift = table.clone().narrow(1, 0, 1);
        let scale = table.narrow(1, 1, 1) + 1.0;
        self.linear.forward(layer_norm(x, NORM_EPSILON) * scale + shift)
    }
}

/// Arranges the patches of a grid of (T', H', W') tokens as latents:
/// `[B, (T' H' W'), (pt ph pw C)] -> [B, C, T' pt, H' ph, W' pw]`.
pub(crate) fn unpatchify(
    x: Tensor<3>,
    [grid_t, grid_h, grid_w]: [usize; 3],
    [patch_t, patch_h, patch_w]: [usize; 3],
) -> Tensor<5> {
    let [batch, _, values] = x.dims();
    let channels = values / (patch_t * patch_h * patch_w);
    let (frames, height, width) = (grid_t * patch_t, grid_h * patch_h, grid_w * patch_w);
    // One axis at a time, since not every backend supports tensors with eight axes.
    // columns: [B T' H', W', pt ph, pw, C] -> [B T' H', pt ph, W', pw, C]
    let x = x
        .reshape([batch * grid_t * grid_h, grid_w, patch_t * patch_h, patch_w, channels])
        .swap_dims(1, 2);
    // rows: [B T', H', pt, ph, W C] -> [B T', pt, H', ph, W C]
    let x = x.reshape([batch * grid_t, grid_h, patch_t, patch_h, width * channels]).swap_dims(1, 2);
    // frames are in order already: [B, T, H, W, C] -> [B, C, T, H, W]
    x.reshape([batch, frames, height, width, channels]).permute([0, 4, 1, 2, 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpatchify_places_every_value() {
        let device = Device::flex();
        let (grid, patch, channels) = ([2, 3, 2], [2, 2, 3], 5);
        let tokens: usize = grid.iter().product();
        let values = patch.iter().product::<usize>() * channels;
        let x = Tensor::<1, burn::tensor::Int>::arange(0..(tokens * values) as i64, &device)
            .float()
            .reshape([1, tokens, values]);
        let out = unpatchify(x, grid, patch);
        assert_eq!(out.dims(), [1, channels, 4, 6, 6]);
        let out = out.into_data().try_to_vec::<f32>().unwrap();
        let size = [grid[0] * patch[0], grid[1] * patch[1], grid[2] * patch[2]];
        for c in 0..channels {
            for t in 0..size[0] {
                for h in 0..size[1] {
                    for w in 0..size[2] {
                        let token =
                            ((t / patch[0]) * grid[1] + h / patch[1]) * grid[2] + w / patch[2];
                        let inside =
                            ((t % patch[0]) * patch[1] + h % patch[1]) * patch[2] + w % patch[2];
                        let want = token * values + inside * channels + c;
                        let got = out[((c * size[0] + t) * size[1] + h) * size[2] + w];
                        assert_eq!(got, want as f32);
                    }
                }
            }
        }
    }
}
