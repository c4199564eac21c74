//! One pass over a tensor's values where they lie in this process's memory.
//!
//! burn's flex backend runs one elementwise operation at a time, each on one core and with a call
//! into the mathematical library for every exponential, so that an activation costs as much as the
//! matrix product before it. The layers that showed in profiles take the values out ([`Values`]),
//! change them in one pass on all cores and put them back; neither way copies them. Their loops are
//! compiled for several widths of vectors, of which the processor's own is taken at run time.
//!
//! Without the feature `flex`, [`Values::take`] never succeeds and the layers run on burn's operations.

use burn::tensor::Tensor;

/// The f32 values of a contiguous tensor, taken out of it.
pub(crate) struct Values<const D: usize> {
    #[cfg(feature = "flex")]
    data: burn::tensor::TensorData,
    #[cfg(feature = "flex")]
    device: burn::tensor::Device,
    #[cfg(not(feature = "flex"))]
    never: std::convert::Infallible,
}

#[cfg(feature = "flex")]
mod kernels {
    use super::*;
    use burn::tensor::{DType, Device, TensorData};
    use rayon::prelude::*;

    /// Values that one task works on: few enough for a core's cache, many enough to be worth a task.
    pub(crate) const TASK: usize = 1 << 14;

    impl<const D: usize> Values<D> {
        /// Whether the values are f32 in this process's memory and no gradient can be asked for.
        pub(crate) fn can_take(x: &Tensor<D>) -> bool {
            x.dtype() == DType::F32 && crate::device::is_host(&x.device())
        }

        /// Takes the values out, or gives the tensor back where that [cannot be](Self::can_take).
        ///
        /// A tensor that something else still holds is copied.
        #[allow(clippy::result_large_err, reason = "the tensor goes on either way")]
        pub(crate) fn take(x: Tensor<D>) -> Result<Self, Tensor<D>> {
            if !Self::can_take(&x) {
                return Err(x);
            }
            let device = x.device();
            let data = crate::read::read(x).expect("values of flex lie in this process's memory");
            Ok(Self { data, device })
        }

        /// A tensor's worth of zeros.
        pub(crate) fn zeros(shape: [usize; D], device: &Device) -> Self {
            let values = vec![0.0f32; shape.iter().product()];
            Self { data: TensorData::new(values, shape), device: device.clone() }
        }

        /// Where the tensor was.
        pub(crate) fn device(&self) -> &Device {
            &self.device
        }

        /// The tensor's shape.
        pub(crate) fn dims(&self) -> [usize; D] {
            self.data.shape().dims()
        }

        /// The values, the last axis fastest.
        pub(crate) fn get(&self) -> &[f32] {
            self.data.as_slice().expect("f32, as taken")
        }

        /// The values, to be changed.
        pub(crate) fn get_mut(&mut self) -> &mut [f32] {
            self.data.as_mut_slice().expect("f32, as taken")
        }

        /// Puts the values back.
        pub(crate) fn put(self) -> Tensor<D> {
            Tensor::from_data(self.data, (&self.device, DType::F32))
        }

        /// Replaces every value by `f` of it.
        pub(crate) fn map(mut self, f: impl Fn(f32) -> f32 + Sync) -> Tensor<D> {
            map_on_all(self.get_mut(), f);
            self.put()
        }
    }

    /// Replaces every value by `f` of it, on all cores.
    pub(crate) fn map_on_all(values: &mut [f32], f: impl Fn(f32) -> f32 + Sync) {
        values.par_chunks_mut(TASK).for_each(|values| map(values, &f));
    }

    /// Replaces every value by `f` of it.
    pub(crate) fn map(values: &mut [f32], f: impl Fn(f32) -> f32) {
        vectorized(
            #[inline(always)]
            || {
                for x in values {
                    *x = f(*x);
                }
            },
        );
    }

    /// `f` over the `map` of all values, in an order that takes sixteen of them side by side.
    #[inline(always)]
    pub(crate) fn fold(
        values: &[f32],
        start: f32,
        map: impl Fn(f32) -> f32,
        f: impl Fn(f32, f32) -> f32,
    ) -> f32 {
        let (rows, rest) = values.as_chunks::<16>();
        let mut lanes = [start; 16];
        for row in rows {
            for (lane, &x) in lanes.iter_mut().zip(row) {
                *lane = f(*lane, map(x));
            }
        }
        rest.iter().fold(lanes.into_iter().fold(start, &f), |a, &x| f(a, map(x)))
    }

    /// Runs `f`, compiled for the widest vectors that this processor has. (The program as a whole is
    /// compiled for the oldest processors, with vectors of four.)
    #[inline(always)]
    pub(crate) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
        pulp::Arch::new().dispatch(f)
    }
}

#[cfg(all(feature = "flex", feature = "autodiff"))]
pub(crate) use kernels::map_on_all;
#[cfg(feature = "flex")]
pub(crate) use kernels::{TASK, fold, map, vectorized};

#[cfg(not(feature = "flex"))]
impl<const D: usize> Values<D> {
    #[allow(clippy::result_large_err, reason = "the tensor goes on either way")]
    pub(crate) fn take(x: Tensor<D>) -> Result<Self, Tensor<D>> {
        Err(x)
    }

    pub(crate) fn map(self, _: impl Fn(f32) -> f32 + Sync) -> Tensor<D> {
        match self.never {}
    }
}

/// `1 / (1 + exp(-x))` with a relative error below 3e-7; where it is smaller than f32's normal numbers
/// (below -88), 6e-39.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `exp(x)` with a relative error below 3e-7, in arithmetic that compilers vectorise; `x` is held to
/// -87..88, beyond which exp leaves the range of f32.
///
/// `exp(x) = 2^n exp(r)` with a whole `n` and `|r| <= ln(2) / 2`; six terms of the series are exact
/// to f32 there.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest whole number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with so few bits that its products are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let series = 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * r + 1.0;
    let series = series * r + 1.0;
    // 2^n by its exponent's bits; what ROUND put above them is shifted out.
    series * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigmoid_is_the_logistic_function() {
        for i in -120_000..=120_000 {
            let x = i as f32 * 1e-3;
            let want = 1.0 / (1.0 + (-x as f64).exp());
            let got = sigmoid(x) as f64;
            let floor = f64::from(f32::MIN_POSITIVE);
            assert!((got - want).abs() <= 3e-7 * want + floor, "{x}: {got} != {want}");
        }
        assert!(sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn exp_is_the_exponential() {
        for i in -86_990..=87_990 {
            let x = i as f32 * 1e-3;
            let want = (x as f64).exp();
            assert!((exp(x) as f64 - want).abs() <= 3e-7 * want, "{x}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(f32::NAN).is_nan());
    }
}
