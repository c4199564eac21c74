//! Floating point operations of the VAE and the text encoder.
//!
//! Matrix products and convolutions are counted, a multiply-add as two operations; norms, activations and
//! sums are not. [`ModelFlops`](opensora::train::metrics::flops::ModelFlops) counts those of the denoiser.

use opensora::{t5::T5Config, vae::VaeConfig};

/// Returns the operations of the text encoder for one prompt of `tokens`.
pub(crate) fn t5(config: &T5Config, tokens: usize) -> f64 {
    let [tokens, width, inner, d_ff] =
        [tokens, config.d_model, config.num_heads * config.d_kv, config.d_ff].map(|n| n as f64);
    // Queries, keys, values and output; the gated feed-forward layer has three matrices.
    let products = 2.0 * tokens * (4.0 * width * inner + 3.0 * width * d_ff);
    let attention = 4.0 * tokens * tokens * inner;
    config.num_layers as f64 * (products + attention)
}

/// Returns the operations of the VAE's decoder for one frame of `image_size` pixels.
pub(crate) fn vae_decode(config: &VaeConfig, image_size: [usize; 2]) -> f64 {
    let mut cost = Cost::new(config, image_size, config.downsample_factor());
    let latent = config.latent_channels;
    let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
    cost.conv(1, latent, latent);
    cost.conv(3, latent, widths[0]);
    cost.middle(widths[0]);
    let mut from = widths[0];
    for (level, &to) in widths.iter().enumerate() {
        for _ in 0..=config.layers_per_block {
            cost.residual(from, to);
            from = to;
        }
        if level + 1 < widths.len() {
            cost.pixels *= 4.0;
            cost.conv(3, to, to);
        }
    }
    cost.conv(3, from, config.out_channels);
    cost.flop
}

/// Returns the operations of the VAE's encoder for one frame of `image_size` pixels.
pub(crate) fn vae_encode(config: &VaeConfig, image_size: [usize; 2]) -> f64 {
    let mut cost = Cost::new(config, image_size, 1);
    let (widths, moments) = (&config.block_out_channels, 2 * config.latent_channels);
    cost.conv(3, config.in_channels, widths[0]);
    let mut from = widths[0];
    for (level, &to) in widths.iter().enumerate() {
        for _ in 0..config.layers_per_block {
            cost.residual(from, to);
            from = to;
        }
        if level + 1 < widths.len() {
            cost.pixels /= 4.0;
            cost.conv(3, to, to);
        }
    }
    cost.middle(from);
    cost.conv(3, from, moments);
    cost.conv(1, moments, moments);
    cost.flop
}

/// Operations so far, and the pixels of the current level.
struct Cost {
    pixels: f64,
    flop: f64,
}

impl Cost {
    fn new(config: &VaeConfig, [height, width]: [usize; 2], factor: usize) -> Self {
        debug_assert!(!config.block_out_channels.is_empty());
        Self { pixels: (height / factor * (width / factor)) as f64, flop: 0.0 }
    }

    /// Adds a convolution with a `side` x `side` kernel at the current resolution.
    fn conv(&mut self, side: usize, from: usize, to: usize) {
        self.flop += 2.0 * (side * side * from * to) as f64 * self.pixels;
    }

    fn residual(&mut self, from: usize, to: usize) {
        self.conv(3, from, to);
        self.conv(3, to, to);
        if from != to {
            self.conv(1, from, to);
        }
    }

    /// Adds two residual blocks and the attention over all pixels between them.
    fn middle(&mut self, width: usize) {
        self.residual(width, width);
        self.residual(width, width);
        for _ in 0..4 {
            self.conv(1, width, width);
        }
        self.flop += 4.0 * self.pixels * self.pixels * width as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_model_by_hand() {
        let config = VaeConfig {
            block_out_channels: vec![2, 4],
            layers_per_block: 1,
            latent_channels: 1,
            norm_num_groups: 1,
            ..VaeConfig::default()
        };
        // 4x4 pixels, 2x2 latents. Down: a 3x3 3 -> 2 and a block 2 -> 2 on 16 pixels, a 3x3 2 -> 2
        // to 4 pixels, a block 2 -> 4 with its shortcut on 4; then the middle and two convolutions.
        let block4 = |from: f64| 2.0 * 4.0 * (9.0 * from * 4.0 + 9.0 * 16.0);
        let middle = 2.0 * block4(4.0) + 4.0 * (2.0 * 4.0 * 16.0) + 4.0 * 16.0 * 4.0;
        let level0 = 2.0 * 16.0 * (9.0 * 6.0 + 2.0 * 9.0 * 4.0) + 2.0 * 4.0 * 9.0 * 4.0;
        let level1 = block4(2.0) + 2.0 * 4.0 * 8.0;
        let last = 2.0 * 4.0 * (9.0 * 8.0 + 4.0);
        assert_eq!(vae_encode(&config, [4, 4]), level0 + level1 + middle + last);

        let first = 2.0 * 4.0 * (1.0 + 9.0 * 4.0);
        let wide = 2.0 * block4(4.0) + 2.0 * 16.0 * 9.0 * 16.0;
        let narrow = 2.0 * 16.0 * (9.0 * 8.0 + 9.0 * 4.0 + 8.0 + 2.0 * 9.0 * 4.0 + 9.0 * 6.0);
        assert_eq!(vae_decode(&config, [4, 4]), first + middle + wide + narrow);

        let t5_config = T5Config {
            d_model: 3,
            num_heads: 2,
            d_kv: 1,
            d_ff: 5,
            num_layers: 2,
            ..T5Config::default()
        };
        let block = 2.0 * 7.0 * (4.0 * 6.0 + 3.0 * 15.0) + 4.0 * 49.0 * 2.0;
        assert_eq!(t5(&t5_config, 7), 2.0 * block);
    }

    /// Operations of the published models, in units of 1e12.
    #[test]
    fn published_sizes() {
        let vae = VaeConfig::default();
        for (found, expected) in [
            (t5(&T5Config::default(), 120), 1.12),
            (vae_decode(&vae, [256, 256]), 0.62),
            (vae_decode(&vae, [512, 512]), 2.5),
            (vae_encode(&vae, [256, 256]), 0.27),
            (vae_encode(&vae, [512, 512]), 1.1),
        ] {
            assert!((found / 1e12 / expected - 1.0).abs() < 0.03, "{found} {expected}");
        }
    }
}
