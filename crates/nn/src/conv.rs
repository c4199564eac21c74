//! Convolution and upsampling of images `[B, C, H, W]`.

use crate::kernels;
use burn::{nn::conv::Conv2d, tensor::Tensor};

/// Returns the output of `conv`, `[B, C_in, H, W] -> [B, C_out, H', W']`.
///
/// On flex, 3x3 convolutions that keep an even height and width are computed with fewer products (Winograd).
pub fn conv2d(conv: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    kernels::conv3x3(conv, x).unwrap_or_else(|x| conv.forward(x))
}

/// Doubles height and width by repeating pixels: `[B, C, H, W] -> [B, C, 2H, 2W]`.
pub fn upsample_nearest(x: Tensor<4>) -> Tensor<4> {
    kernels::upsample_nearest(x).unwrap_or_else(|x| {
        let [batch, channels, height, width] = x.dims();
        // [B, C, H, W] -> [B C, H, 1, W, 1] -> [B C, H, 2, W, 2] -> [B, C, 2H, 2W]
        x.reshape([batch * channels, height, 1, width, 1])
            .expand([batch * channels, height, 2, width, 2])
            .reshape([batch, channels, 2 * height, 2 * width])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_repeated_twice_on_both_sides() {
        for device in [Device::flex(), Device::flex().autodiff()] {
            // Two samples of three channels of 2x1 pixels.
            let values: Vec<f32> = (0..12).map(|value| value as f32).collect();
            let x = Tensor::<1>::from_floats(values.as_slice(), &device).reshape([2, 3, 2, 1]);
            let doubled = upsample_nearest(x);
            assert_eq!(doubled.dims(), [2, 3, 4, 2]);
            let found = doubled.into_data().try_to_vec::<f32>().unwrap();
            assert_eq!(found, values.iter().flat_map(|value| [*value; 4]).collect::<Vec<_>>());
        }
    }

    use crate::noise::{Purpose, normal};
    use burn::{
        module::Param,
        nn::{PaddingConfig2d, conv::Conv2dConfig},
        tensor::Device,
    };

    fn random<const D: usize>(salt: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
        let values = normal(1, Purpose::Weights, salt, 0, shape.iter().product());
        Tensor::<1>::from_floats(values.as_slice(), device).reshape(shape)
    }

    fn largest_difference(a: Tensor<4>, b: Tensor<4>) -> f32 {
        (a - b).abs().max().into_scalar::<f32>()
    }

    #[test]
    fn convolutions_of_every_size_equal_those_of_burn() {
        let device = Device::flex();
        // (C_in, C_out, H, W): one strip, several strips and a shorter last one, tall and flat.
        for [from, to, height, width] in
            [[32, 40, 8, 6], [40, 32, 60, 130], [32, 32, 2, 2], [32, 32, 100, 64]]
        {
            let mut conv = Conv2dConfig::new([from, to], [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(&device);
            conv.weight = Param::from_tensor(random(1, [to, from, 3, 3], &device) * 0.05);
            conv.bias = Some(Param::from_tensor(random(2, [to], &device)));
            let x = random(3, [2, from, height, width], &device);
            let difference = largest_difference(conv2d(&conv, x.clone()), conv.forward(x));
            assert!(difference < 1e-5, "{height}x{width}: {difference}");
        }
    }

    #[test]
    fn other_convolutions_use_burn() {
        let device = Device::flex();
        let odd = Conv2dConfig::new([32, 32], [3, 3])
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
            .init(&device);
        let strided = Conv2dConfig::new([32, 32], [3, 3]).with_stride([2, 2]).init(&device);
        let pointwise = Conv2dConfig::new([32, 32], [1, 1]).init(&device);
        let x = random(3, [1, 32, 7, 9], &device);
        for conv in [odd, strided, pointwise] {
            assert_eq!(largest_difference(conv2d(&conv, x.clone()), conv.forward(x.clone())), 0.0);
        }
    }

    #[test]
    fn pixels_are_repeated() {
        for device in [Device::flex(), Device::flex().autodiff()] {
            let x = Tensor::<4>::from_floats([[[[1.0, 2.0]], [[3.0, 4.0]]]], &device);
            let y = upsample_nearest(x);
            assert_eq!(y.dims(), [1, 2, 2, 4]);
            let y = y.into_data().try_to_vec::<f32>().unwrap();
            assert_eq!(y, [1., 1., 2., 2., 1., 1., 2., 2., 3., 3., 4., 4., 3., 3., 4., 4.]);
        }
    }
}
