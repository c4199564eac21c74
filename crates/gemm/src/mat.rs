//! Factors of a product as lines of numbers, however they lie in memory.

/// Lines of numbers in memory: the rows of a left factor, the columns of a right one.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    /// What holds the lines.
    pub values: &'a [f32],
    /// How many lines.
    pub lines: usize,
    /// Numbers of a line.
    pub depth: usize,
    /// From a line to the next.
    pub line_stride: usize,
    /// From a number of a line to the next.
    pub depth_stride: usize,
}

impl<'a> Factor<'a> {
    /// Rows of `width` in one piece as lines.
    pub fn of_rows(values: &'a [f32], width: usize) -> Self {
        let lines = values.len() / width;
        Self { values, lines, depth: width, line_stride: width, depth_stride: 1 }
    }

    /// Columns of rows of `width` in one piece as lines.
    pub fn of_columns(values: &'a [f32], width: usize) -> Self {
        let depth = values.len() / width;
        Self { values, lines: width, depth, line_stride: 1, depth_stride: width }
    }

    /// `count` lines from `first` on.
    pub(super) fn lines(self, first: usize, count: usize) -> Self {
        let values = self.values.get(first * self.line_stride..).unwrap_or_default();
        Self { values, lines: count, ..self }
    }

    /// `count` numbers of each line from `first` on.
    pub(super) fn part(self, first: usize, count: usize) -> Self {
        let values = self.values.get(first * self.depth_stride..).unwrap_or_default();
        Self { values, depth: count, ..self }
    }

    /// Whether every number lies within the values.
    pub(super) fn is_held(&self) -> bool {
        let last = (self.lines.max(1) - 1)
            .checked_mul(self.line_stride)
            .zip((self.depth.max(1) - 1).checked_mul(self.depth_stride))
            .and_then(|(line, depth)| line.checked_add(depth));
        self.lines == 0 || self.depth == 0 || last.is_some_and(|last| last < self.values.len())
    }
}
