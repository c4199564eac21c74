//! Elementwise updates of several tensors in one pass over memory.
//!
//! An optimizer's update of a parameter is a dozen operations of a backend, each of which is a pass over
//! memory, on flex by one core.

use crate::kernels;
use burn::tensor::Tensor;

/// Updates `tensors` by `f`, which gets the elements at the same positions of each, in chunks of a fixed
/// length. Returns the tensors, and what `f` returned for each chunk, in order.
///
/// Mark closures `#[inline(always)]`, so that they are compiled for the processor's widest vectors.
///
/// # Errors
/// Gives the tensors back if they differ in length, are not f32, or are not in host memory (flex without
/// autodiff). Use burn's operations for these.
#[allow(clippy::result_large_err, reason = "an error gives the tensors back")]
pub fn change<const N: usize, R: Send>(
    tensors: [Tensor<1>; N],
    f: impl Fn([&mut [f32]; N]) -> R + Sync,
) -> Result<([Tensor<1>; N], Vec<R>), [Tensor<1>; N]> {
    kernels::update_in_place(tensors, f)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::kernels::CHUNK;
    use burn::tensor::{Device, FloatDType};

    #[test]
    fn chunks_hold_the_same_positions_of_each_tensor() {
        let count = 2 * CHUNK + 5;
        let values: Vec<f32> = (0..count).map(|i| i as f32).collect();
        let x = Tensor::<1>::from_floats(values.as_slice(), &Device::flex());
        let (changed, found) = change([x.clone(), x.clone() + 1.0], |[a, b]| {
            for (a, b) in a.iter_mut().zip(b.iter()) {
                *a = b - *a;
            }
            (a.len(), b[0])
        })
        .unwrap();
        assert_eq!(
            found,
            [(CHUNK, 1.0), (CHUNK, CHUNK as f32 + 1.0), (5, 2.0 * CHUNK as f32 + 1.0)]
        );
        let [a, b] = changed.map(|x| x.into_data().try_to_vec::<f32>().unwrap());
        assert_eq!(a, vec![1.0; count]);
        assert_eq!(b[7], 8.0);
        assert_eq!(x.into_data().try_to_vec::<f32>().unwrap(), values, "a copy was changed");
    }

    #[test]
    fn unsupported_tensors_are_given_back() {
        let device = Device::flex();
        let [x, longer] = [3, 4].map(|count| Tensor::<1>::zeros([count], &device));
        assert!(change([x.clone(), longer], |_| ()).is_err());
        assert!(change([x.cast(FloatDType::F64)], |_| ()).is_err());
    }
}
