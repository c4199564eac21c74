//! Sums and maxima of the ranks' contributions, in the order of ranks.

use crate::Reduction;

/// A number that can be reduced.
pub(crate) trait Number: Copy + PartialOrd + std::ops::AddAssign {
    /// Returns true if the number is not a number.
    fn is_nan(self) -> bool;
}

impl Number for f32 {
    fn is_nan(self) -> bool {
        self.is_nan()
    }
}

impl Number for f64 {
    fn is_nan(self) -> bool {
        self.is_nan()
    }
}

/// Adds the contribution `part` of the next rank to `total`. A maximum is NaN if a contribution is.
pub(crate) fn accumulate<N: Number>(reduction: Reduction, total: &mut [N], part: &[N]) {
    let pairs = total.iter_mut().zip(part);
    match reduction {
        Reduction::Sum => pairs.for_each(|(total, &part)| *total += part),
        Reduction::Max => pairs.for_each(|(total, &part)| {
            if part > *total || part.is_nan() {
                *total = part;
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maximum_keeps_nan() {
        let mut total = [1.0f32, f32::NAN, 3.0];
        accumulate(Reduction::Max, &mut total, &[f32::NAN, 5.0, 4.0]);
        assert!(total[0].is_nan() && total[1].is_nan());
        assert_eq!(total[2], 4.0);
    }
}
