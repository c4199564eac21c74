//! Changes to the values of several tensors at the same places, in one pass over all of them.
//!
//! What an optimizer does to a parameter is a dozen operations of a backend, each of which goes over
//! memory by itself; on flex, on one core.

#[cfg(feature = "flex")]
use crate::host::{TASK, Values, vectorized};
use burn::tensor::Tensor;
#[cfg(feature = "flex")]
use rayon::prelude::*;

/// Changes `tensors` by `f`, which is given runs of their values at the same places, and returns them with
/// what it found in each run, in order; the lengths of runs do not depend on the number of threads.
///
/// Mark closures `#[inline(always)]`, so that they are compiled for the processor's vectors.
///
/// # Errors
/// Gives the tensors back where they are not f32 of one length in this process's memory: there it takes
/// operations of burn.
#[allow(clippy::result_large_err, reason = "the tensors go on either way")]
pub fn change<const N: usize, R: Send>(
    tensors: [Tensor<1>; N],
    f: impl Fn([&mut [f32]; N]) -> R + Sync,
) -> Result<([Tensor<1>; N], Vec<R>), [Tensor<1>; N]> {
    #[cfg(feature = "flex")]
    {
        let one_length = tensors.iter().all(|x| x.dims() == tensors[0].dims());
        if !one_length || !tensors.iter().all(Values::can_take) {
            return Err(tensors);
        }
        let mut values = tensors.map(|x| match Values::take(x) {
            Ok(values) => values,
            Err(_) => unreachable!("asked before"),
        });
        let mut runs = values.each_mut().map(|values| values.get_mut().chunks_mut(TASK));
        let runs = std::iter::from_fn(|| {
            let runs = runs.each_mut().map(Iterator::next);
            runs.iter().all(Option::is_some).then(|| runs.map(Option::unwrap_or_default))
        });
        let runs: Vec<_> = runs.collect();
        let found = runs.into_par_iter().map(|run| {
            vectorized(
                #[inline(always)]
                || f(run),
            )
        });
        let found = found.collect();
        Ok((values.map(Values::put), found))
    }
    #[cfg(not(feature = "flex"))]
    {
        let _ = f;
        Err(tensors)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::{Device, FloatDType};

    #[test]
    fn runs_are_of_the_same_places() {
        let count = 2 * TASK + 5;
        let values: Vec<f32> = (0..count).map(|i| i as f32).collect();
        let x = Tensor::<1>::from_floats(values.as_slice(), &Device::flex());
        let (changed, found) = change([x.clone(), x.clone() + 1.0], |[a, b]| {
            for (a, b) in a.iter_mut().zip(b.iter()) {
                *a = b - *a;
            }
            (a.len(), b[0])
        })
        .unwrap();
        assert_eq!(found, [(TASK, 1.0), (TASK, TASK as f32 + 1.0), (5, 2.0 * TASK as f32 + 1.0)]);
        let [a, b] = changed.map(|x| x.into_data().try_to_vec::<f32>().unwrap());
        assert_eq!(a, vec![1.0; count]);
        assert_eq!(b[7], 8.0);
        assert_eq!(x.into_data().try_to_vec::<f32>().unwrap(), values, "a copy was changed");
    }

    #[test]
    fn others_come_back() {
        let device = Device::flex();
        let [x, longer] = [3, 4].map(|count| Tensor::<1>::zeros([count], &device));
        assert!(change([x.clone(), longer], |_| ()).is_err());
        assert!(change([x.cast(FloatDType::F64)], |_| ()).is_err());
    }
}
