//! Views of matrices in memory.

/// A matrix of f32 in a slice, at any strides: a whole array, a part of an array, or a transpose.
///
/// Element `(row, column)` is `values[row * row_stride + column * column_stride]`. Strides count
/// elements. Every element is known to lie within the slice.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl<'a> MatRef<'a> {
    /// Returns a matrix of `columns` columns whose rows are adjacent and fill `values`.
    ///
    /// # Panics
    /// Panics if `columns` is zero or `values` is not a whole number of rows.
    pub fn row_major(values: &'a [f32], columns: usize) -> Self {
        assert!(columns > 0, "a row-major matrix needs at least one column");
        assert!(
            values.len().is_multiple_of(columns),
            "{} values are not a whole number of rows of {columns}",
            values.len()
        );
        let rows = values.len() / columns;
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Returns a matrix of `[rows, columns]` whose first element is the first of `values`, at strides
    /// `[row_stride, column_stride]`.
    ///
    /// # Panics
    /// Panics if an element lies outside `values`.
    pub fn with_strides(
        values: &'a [f32],
        [rows, columns]: [usize; 2],
        [row_stride, column_stride]: [usize; 2],
    ) -> Self {
        let matrix = Self { values, rows, columns, row_stride, column_stride };
        assert!(
            matrix.fits(),
            "a {rows}x{columns} matrix at strides {row_stride} and {column_stride} does not fit {} values",
            values.len()
        );
        matrix
    }

    /// Returns the transpose, without a copy.
    pub fn transposed(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns `count` rows from row `first` on.
    pub(crate) fn row_range(self, first: usize, count: usize) -> Self {
        let values = self.values.get(first.saturating_mul(self.row_stride)..).unwrap_or_default();
        Self { values, rows: count, ..self }
    }

    /// Returns `count` columns from column `first` on.
    pub(crate) fn column_range(self, first: usize, count: usize) -> Self {
        let values =
            self.values.get(first.saturating_mul(self.column_stride)..).unwrap_or_default();
        Self { values, columns: count, ..self }
    }

    /// Returns true if every element lies within the slice.
    fn fits(&self) -> bool {
        if self.rows == 0 || self.columns == 0 {
            return true;
        }
        let last = (self.rows - 1)
            .checked_mul(self.row_stride)
            .zip((self.columns - 1).checked_mul(self.column_stride))
            .and_then(|(row, column)| row.checked_add(column));
        last.is_some_and(|last| last < self.values.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(x: MatRef) -> Vec<Vec<f32>> {
        let at = |row, column| x.values[row * x.row_stride + column * x.column_stride];
        (0..x.rows).map(|row| (0..x.columns).map(|column| at(row, column)).collect()).collect()
    }

    #[test]
    fn views_show_the_elements_at_their_strides() {
        let values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        let x = MatRef::row_major(&values, 3);
        assert_eq!((x.rows(), x.columns()), (2, 3));
        assert_eq!(elements(x), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
        assert_eq!(elements(x.transposed()), [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]);
        assert_eq!(elements(x.row_range(1, 1)), [[3.0, 4.0, 5.0]]);
        assert_eq!(elements(x.column_range(1, 2)), [[1.0, 2.0], [4.0, 5.0]]);
        let every_other = MatRef::with_strides(&values, [2, 2], [3, 2]);
        assert_eq!(elements(every_other), [[0.0, 2.0], [3.0, 5.0]]);
        let repeated = MatRef::with_strides(&values, [2, 3], [0, 1]);
        assert_eq!(elements(repeated), [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]);
    }

    #[test]
    fn empty_matrices_fit_anything() {
        let x = MatRef::with_strides(&[], [0, usize::MAX], [usize::MAX, 1]);
        assert_eq!((x.rows(), x.columns()), (0, usize::MAX));
        let x = MatRef::with_strides(&[], [3, 0], [1, 1]);
        assert_eq!((x.rows(), x.columns()), (3, 0));
        assert_eq!(MatRef::row_major(&[], 4).rows(), 0);
    }

    #[test]
    #[should_panic(expected = "a 2x3 matrix at strides 3 and 1 does not fit 5 values")]
    fn an_element_beyond_the_slice_panics() {
        MatRef::with_strides(&[0.0; 5], [2, 3], [3, 1]);
    }

    #[test]
    #[should_panic(expected = "does not fit 5 values")]
    fn strides_beyond_usize_panic() {
        MatRef::with_strides(&[0.0; 5], [3, 1], [usize::MAX, 1]);
    }

    #[test]
    #[should_panic(expected = "does not fit 5 values")]
    fn a_last_element_beyond_usize_panics() {
        MatRef::with_strides(&[0.0; 5], [2, 2], [usize::MAX, 1]);
    }

    #[test]
    #[should_panic(expected = "5 values are not a whole number of rows of 3")]
    fn a_broken_row_panics() {
        MatRef::row_major(&[0.0; 5], 3);
    }

    #[test]
    #[should_panic(expected = "at least one column")]
    fn rows_without_columns_panic() {
        MatRef::row_major(&[], 0);
    }
}
