//! The change of units of a trained VAE's latents.

use crate::{AutoencoderKl, SCALING_FACTOR};
use burn::{
    module::Param,
    tensor::{Tensor, TensorData},
};

impl AutoencoderKl {
    /// Returns the VAE with normalised latents: scaled latents of `mean` and `deviation` in each channel become
    /// latents of mean 0 and standard deviation 1, which noise schedules assume. Decoded clips do not change.
    ///
    /// Latents are the output and the input of 1x1 convolutions, so the change of units is an exact change of
    /// their weights.
    ///
    /// # Panics
    /// Panics if there is not one number for each latent channel or a deviation is not positive.
    pub fn with_unit_latents(mut self, mean: &[f64], deviation: &[f64]) -> Self {
        let channels = self.config().latent_channels;
        assert!(
            mean.len() == channels && deviation.len() == channels,
            "one number for each channel"
        );
        assert!(deviation.iter().all(|d| d.is_finite() && *d > 0.0), "positive deviations");
        let device = self.quant_conv.weight.device();
        let column = |values: Vec<f64>| -> Tensor<1> {
            let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
            let length = values.len();
            Tensor::from_data(TensorData::new(values, [length]), &device)
        };
        // The posterior's mean m has the scaled latents s m: m' = (s m - mean) / deviation / s.
        let gain: Vec<f64> = deviation.iter().map(|d| 1.0 / d).collect();
        let shift: Vec<f64> =
            (0..channels).map(|c| -mean[c] / deviation[c] / SCALING_FACTOR).collect();
        // The log variance changes with the square of the gain.
        let widen = |values: &[f64], rest: f64| {
            values.iter().copied().chain(std::iter::repeat_n(rest, channels)).collect::<Vec<_>>()
        };
        let rows = column(widen(&gain, 1.0));
        let log_gain = gain.iter().map(|g| 2.0 * g.ln());
        let added = column(shift.iter().copied().chain(log_gain).collect());
        let bias = |param: &Option<Param<Tensor<1>>>, length: usize| {
            param.as_ref().map_or_else(|| Tensor::zeros([length], &device), Param::val)
        };
        let quant = &mut self.quant_conv;
        let quant_bias = bias(&quant.bias, 2 * channels) * rows.clone() + added;
        quant.weight =
            replaced(&quant.weight, |weight| weight * rows.reshape([2 * channels, 1, 1, 1]));
        quant.bias = Some(Param::from_tensor(quant_bias));

        // The inverse, before the first layer of the decoder: m = deviation m' + mean / s.
        let back = column(deviation.to_vec()).reshape([1, channels, 1, 1]);
        let offset = column(mean.iter().map(|m| m / SCALING_FACTOR).collect());
        let post = &mut self.post_quant_conv;
        let weight = post.weight.val();
        // [C, C, 1, 1] x [1, C, 1, 1] -> [C]
        let moved = (weight * offset.reshape([1, channels, 1, 1])).sum_dim(1).reshape([channels]);
        let post_bias = bias(&post.bias, channels) + moved;
        post.weight = replaced(&post.weight, |weight| weight * back);
        post.bias = Some(Param::from_tensor(post_bias));
        self
    }
}

fn replaced<const D: usize>(
    param: &Param<Tensor<D>>,
    change: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Param<Tensor<D>> {
    Param::from_tensor(change(param.val()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VaeConfig;
    use burn::tensor::Device;
    use opensora_nn::noise::{Purpose, normal_batch};

    #[test]
    fn latents_change_and_decoded_images_do_not() {
        let device = Device::flex();
        let config = VaeConfig {
            block_out_channels: vec![8, 8],
            layers_per_block: 1,
            norm_num_groups: 4,
            ..VaeConfig::default()
        };
        let vae = config.init(&device).unwrap();
        let clip = normal_batch(1, Purpose::Weights, 0, 0, [2, 3, 1, 8, 8], &device);
        let noise = normal_batch(1, Purpose::Weights, 9, 0, [2, 4, 1, 4, 4], &device);
        let (mean, deviation) = ([0.1, -0.2, 0.0, 0.3], [0.5, 2.0, 1.0, 0.1]);
        let before = vae.encode(clip.clone(), None).latents(noise.clone());
        let images = vae.decode(before.clone(), None);

        let vae = vae.with_unit_latents(&mean, &deviation);
        let after = vae.encode(clip, None).latents(noise);
        let column = |v: [f64; 4]| Tensor::<1>::from_floats(v, &device).reshape([1, 4, 1, 1, 1]);
        let expected = (before - column(mean)) / column(deviation);
        let largest = |x: Tensor<5>| x.abs().max().into_scalar::<f32>();
        assert!(largest(after.clone() - expected) < 1e-4);
        assert!(largest(vae.decode(after, None) - images) < 1e-4);
    }
}
