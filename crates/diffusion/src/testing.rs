//! Golden cases of the reference and small models for the tests of this crate.

use std::{fs, path::PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

use crate::{
    denoiser::{Condition, DenoiseError, Denoiser},
    respace::Respacing,
    tables::DiffusionTables,
};

/// A reference case; the format is described in `tests/fixtures/goldens/README.md`.
pub(crate) struct Golden {
    /// `case.json`.
    pub(crate) case: Value,
    inputs: Vec<u8>,
    expected: Vec<u8>,
}

impl Golden {
    pub(crate) fn open(name: &str) -> Self {
        let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/fixtures", name].iter().collect();
        let read = |file: &str| {
            fs::read(folder.join(file)).unwrap_or_else(|error| panic!("{name}/{file}: {error}"))
        };
        let case: Value = serde_json::from_slice(&read("case.json")).unwrap();
        let inputs = case["inputs_file"].as_str().map(read).unwrap_or_default();
        Self { inputs, expected: read(case["expected_file"].as_str().unwrap()), case }
    }

    pub(crate) fn input(&self, name: &str) -> Tensor<5> {
        let file = SafeTensors::deserialize(&self.inputs).unwrap();
        let view = file.tensor(name).unwrap();
        let shape: [usize; 5] = view.shape().try_into().unwrap();
        Tensor::from_data(TensorData::new(f32_of(&view), shape), &Device::default())
    }

    pub(crate) fn input_indices(&self, name: &str) -> Vec<usize> {
        let file = SafeTensors::deserialize(&self.inputs).unwrap();
        indices(&file.tensor(name).unwrap())
    }

    pub(crate) fn expected_indices(&self, name: &str) -> Vec<usize> {
        indices(&self.expected().tensor(name).unwrap())
    }

    pub(crate) fn expected_f64(&self, name: &str) -> Vec<f64> {
        let file = self.expected();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::F64);
        eights(&view).map(f64::from_le_bytes).collect()
    }

    pub(crate) fn expected_names(&self) -> impl Iterator<Item = &str> {
        self.case["outputs"].as_object().unwrap().keys().map(String::as_str)
    }

    /// Asserts that `found` is the expected tensor, within the tolerance of the case.
    pub(crate) fn assert_close<const D: usize>(&self, name: &str, found: Tensor<D>) {
        let shape = found.dims();
        assert_eq!(shape.as_slice(), self.expected().tensor(name).unwrap().shape(), "{name}");
        self.assert_values(name, &values(found));
    }

    /// Asserts that `found` are the expected numbers, within the tolerance of the case.
    pub(crate) fn assert_values(&self, name: &str, found: &[f32]) {
        let file = self.expected();
        let expected = f32_of(&file.tensor(name).unwrap());
        assert_eq!(found.len(), expected.len(), "{name}");
        let tolerance = |key: &str| self.case["tolerances"][name][key].as_f64().unwrap();
        let (atol, rtol) = (tolerance("atol"), tolerance("rtol"));
        for (i, (&got, &want)) in found.iter().zip(&expected).enumerate() {
            let (got, want) = (f64::from(got), f64::from(want));
            let close = (got - want).abs() <= atol + rtol * want.abs();
            assert!(close, "{name}[{i}]: {got} instead of {want}");
        }
    }

    fn expected(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.expected).unwrap()
    }
}

fn f32_of(view: &TensorView<'_>) -> Vec<f32> {
    assert_eq!(view.dtype(), Dtype::F32);
    let chunks = view.data().as_chunks::<4>().0;
    chunks.iter().copied().map(f32::from_le_bytes).collect()
}

fn indices(view: &TensorView<'_>) -> Vec<usize> {
    assert_eq!(view.dtype(), Dtype::I64);
    eights(view).map(|bytes| usize::try_from(i64::from_le_bytes(bytes)).unwrap()).collect()
}

fn eights<'a>(view: &TensorView<'a>) -> impl Iterator<Item = [u8; 8]> + use<'a> {
    view.data().as_chunks::<8>().0.iter().copied()
}

/// Returns all values of a tensor.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// Returns a tensor filled with one value.
pub(crate) fn constant(shape: [usize; 5], value: f32) -> Tensor<5> {
    Tensor::full(shape, value, &Device::default())
}

/// Returns values between -1 and 1 without a pattern that could hide a swapped axis.
pub(crate) fn ramp(shape: [usize; 5], phase: f64) -> Tensor<5> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> =
        (0..count).map(|i| (i as f64 * 0.7 + phase * 10.0).sin() as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::default())
}

/// A model that is affine in the latents and the timestep, so that tests can compute its output.
pub(crate) struct Affine {
    pub(crate) slope: f64,
    pub(crate) time: f64,
    /// Added to the noise if there is a prompt.
    pub(crate) prompt: f64,
    pub(crate) offset: f64,
    /// The variance interpolation.
    pub(crate) range: f64,
    pub(crate) with_variance: bool,
}

impl Affine {
    pub(crate) fn new() -> Self {
        let (slope, time, prompt, offset, range) = (0.9, 2e-4, 0.03, -0.1, 0.3);
        Self { slope, time, prompt, offset, range, with_variance: true }
    }

    pub(crate) fn eps(&self, x: f64, timestep: f64, prompt: bool) -> f64 {
        let prompt = if prompt { self.prompt } else { 0.0 };
        self.slope * x + self.time * timestep + self.offset + prompt
    }

    pub(crate) fn guided(&self, x: f64, timestep: f64, scale: f64) -> f64 {
        let null = self.eps(x, timestep, false);
        null + scale * (self.eps(x, timestep, true) - null)
    }
}

impl Denoiser for Affine {
    fn denoise(
        &self,
        latents: Tensor<5>,
        timestep: f32,
        condition: Condition,
    ) -> Result<Tensor<5>, DenoiseError> {
        let constant = self.eps(0.0, f64::from(timestep), condition == Condition::Prompt);
        let range = latents.full_like(self.range);
        let eps = latents * self.slope + constant;
        Ok(if self.with_variance { Tensor::cat(vec![eps, range], 1) } else { eps })
    }
}

/// The optimal model of normal data with this standard deviation.
pub(crate) struct GaussianData {
    pub(crate) deviation: f64,
}

impl GaussianData {
    pub(crate) fn alphas_cumprod(timestep: f64) -> f64 {
        let tables = DiffusionTables::published(&Respacing::All).unwrap();
        // ln(alphas_cumprod) is linear between steps.
        let left = (timestep as usize).min(998);
        let ln = |i: usize| tables.alphas_cumprod[i].ln();
        (ln(left) + (timestep - left as f64) * (ln(left + 1) - ln(left))).exp()
    }

    /// Returns the standard deviation of noisy latents.
    pub(crate) fn spread(&self, timestep: f64) -> f64 {
        let a = Self::alphas_cumprod(timestep);
        (a * self.deviation * self.deviation + 1.0 - a).sqrt()
    }
}

impl Denoiser for GaussianData {
    fn denoise(
        &self,
        latents: Tensor<5>,
        timestep: f32,
        _: Condition,
    ) -> Result<Tensor<5>, DenoiseError> {
        let timestep = f64::from(timestep);
        let sigma = (1.0 - Self::alphas_cumprod(timestep)).sqrt();
        let eps = latents.clone() * (sigma / self.spread(timestep).powi(2));
        Ok(Tensor::cat(vec![eps, latents.zeros_like()], 1))
    }
}
