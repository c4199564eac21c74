//! Table values for each sample of a batch, and checks of shapes and timesteps.

use burn::tensor::{Tensor, TensorData};

use crate::process::ProcessError;

/// Table values that broadcast over `[B, C, T, H, W]`. If all samples share a timestep, as in sampling, this is
/// a number, and nothing is copied to the device.
pub(crate) enum Gathered {
    Shared(f32),
    // Boxed because a tensor handle has about 300 bytes.
    PerSample(Box<Tensor<5>>),
}

impl Gathered {
    /// Returns `table[t]`, rounded to f32, on the device and in the dtype of `like`. The caller has checked
    /// `t` with [`check_timesteps`].
    pub(crate) fn new(table: &[f64], t: &[usize], like: &Tensor<5>) -> Self {
        let values: Vec<f32> = t.iter().map(|&t| table[t] as f32).collect();
        match values.split_first() {
            Some((&first, rest)) if rest.iter().all(|&value| value == first) => Self::Shared(first),
            _ => {
                let data = TensorData::new(values, [t.len(), 1, 1, 1, 1]);
                Self::PerSample(Box::new(Tensor::from_data(data, (&like.device(), like.dtype()))))
            }
        }
    }

    pub(crate) fn times(&self, x: Tensor<5>) -> Tensor<5> {
        match self {
            Self::Shared(value) => x.mul_scalar(*value),
            Self::PerSample(values) => x.mul(*values.clone()),
        }
    }

    /// Returns `x / self`.
    pub(crate) fn divides(&self, x: Tensor<5>) -> Tensor<5> {
        match self {
            Self::Shared(value) => x.div_scalar(*value),
            Self::PerSample(values) => x.div(*values.clone()),
        }
    }

    /// Returns `x - self`.
    pub(crate) fn subtracted_from(&self, x: Tensor<5>) -> Tensor<5> {
        match self {
            Self::Shared(value) => x.sub_scalar(*value),
            Self::PerSample(values) => x.sub(*values.clone()),
        }
    }
}

/// Checks that there is one timestep for each sample and that each is a step of the process.
pub(crate) fn check_timesteps(
    t: &[usize],
    batch: usize,
    num_timesteps: usize,
) -> Result<(), ProcessError> {
    if t.len() != batch {
        return Err(ProcessError::BatchSize { found: t.len(), expected: batch });
    }
    match t.iter().position(|&t| t >= num_timesteps) {
        Some(sample) => Err(ProcessError::Timestep { sample, found: t[sample], num_timesteps }),
        None => Ok(()),
    }
}

/// Checks the shape of a tensor.
pub(crate) fn check_shape(
    what: &'static str,
    tensor: &Tensor<5>,
    expected: [usize; 5],
) -> Result<(), ProcessError> {
    let found = tensor.dims();
    if found == expected { Ok(()) } else { Err(ProcessError::Shape { what, found, expected }) }
}

/// Returns the two halves of a model output for latents of shape `like`: noise `[B, C, ...]` and variance
/// interpolation `[B, C, ...]`, in the dtype of `like`.
pub(crate) fn split_output(
    output: Tensor<5>,
    like: &Tensor<5>,
) -> Result<(Tensor<5>, Tensor<5>), ProcessError> {
    let [batch, channels, frames, height, width] = like.dims();
    check_shape("model output", &output, [batch, 2 * channels, frames, height, width])?;
    let output = output.cast(like.dtype());
    let eps = output.clone().narrow(1, 0, channels);
    Ok((eps, output.narrow(1, channels, channels)))
}
