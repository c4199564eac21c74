//! Reads the numbers of a tensor: a strided view of a region of the file.

use super::objects::View;
use crate::file_range::FileRange;
use burn::tensor::DType;
use std::io;

/// A region of a file, such as the numbers of a storage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Region {
    /// Offset of the first byte in the file.
    pub(super) start: u64,
    /// Number of bytes.
    pub(super) len: u64,
    /// Checksum of the region, if the file has one.
    pub(super) crc32: Option<u32>,
}

impl Region {
    /// Reads the whole region and verifies the checksum.
    pub(super) fn read(&self, file: &FileRange) -> io::Result<Vec<u8>> {
        let bytes = file.read(self.start, self.len)?;
        match self.crc32 {
            Some(crc32) if crc32fast::hash(&bytes) != crc32 => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "its checksum is wrong"))
            }
            _ => Ok(bytes),
        }
    }
}

/// Reads the elements of a view in row-major order.
pub(super) struct Reader {
    file: FileRange,
    window: Region,
    shape: Vec<usize>,
    strides: Vec<usize>,
    dtype: DType,
}

impl Reader {
    /// Prepares to read `view` of the storage at `region`.
    ///
    /// # Errors
    /// Returns an error if the region is too short.
    pub(super) fn new(file: FileRange, view: &View, region: Region) -> Result<Self, String> {
        let size = view.dtype.size() as u64;
        let (first, end) = (view.offset as u64 * size, view.end as u64 * size);
        if end > region.len {
            return Err(format!("its storage has {} bytes, {end} expected", region.len));
        }
        let whole = (first, end) == (0, region.len);
        let window = Region {
            start: region.start + first,
            len: end - first,
            crc32: region.crc32.filter(|_| whole),
        };
        // No step is taken along an axis of length one: its stride may be any number, and sums of it could overflow.
        let axes = view.shape.iter().zip(&view.strides);
        let strides = axes.map(|(&size, &stride)| if size <= 1 { 0 } else { stride }).collect();
        let shape = view.shape.clone();
        Ok(Self { file, window, shape, strides, dtype: view.dtype })
    }

    pub(super) fn read(&self) -> io::Result<Vec<u8>> {
        let bytes = self.window.read(&self.file)?;
        let mut bytes = if is_contiguous(&self.shape, &self.strides) {
            bytes
        } else {
            gather(&bytes, &self.shape, &self.strides, self.dtype.size())
        };
        if matches!(self.dtype, DType::Bool(_)) {
            // Rust's `bool` allows the bytes 0 and 1 only.
            bytes.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
        }
        Ok(bytes)
    }
}

/// Returns true if the view is contiguous in row-major order. Strides of axes of length one do not
/// matter.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    shape.iter().zip(strides).rev().all(|(&size, &stride)| {
        let fits = size <= 1 || stride == expected;
        expected = expected.saturating_mul(size);
        fits
    })
}

/// Copies the elements of a view that begins at `bytes` into row-major order; `size` is the size of an
/// element in bytes.
fn gather(bytes: &[u8], shape: &[usize], strides: &[usize], size: usize) -> Vec<u8> {
    let count: usize = shape.iter().product();
    let mut out = Vec::with_capacity(count * size);
    let mut index = vec![0; shape.len()];
    let mut place = 0;
    for _ in 0..count {
        out.extend_from_slice(&bytes[place * size..(place + 1) * size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            place += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            place -= index[axis] * strides[axis];
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_views_are_put_in_order() {
        let bytes: Vec<u8> = (0..24).collect();
        let transposed = gather(&bytes, &[3, 2], &[1, 3], 2);
        assert_eq!(transposed, [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
        assert_eq!(gather(&bytes, &[2, 2, 2], &[12, 0, 4], 1), [0, 4, 0, 4, 12, 16, 12, 16]);
        assert_eq!(gather(&bytes, &[], &[], 4), [0, 1, 2, 3]);
        assert!(gather(&bytes, &[0, 3], &[1, 1], 4).is_empty());
    }

    #[test]
    fn strides_of_axes_of_length_one_are_not_computed_with() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), [0u8, 1, 2, 3]).unwrap();
        let file = FileRange::new(path.reopen().unwrap());
        let region = Region { start: 0, len: 4, crc32: None };
        let (shape, strides) = (vec![2, 1, 2], vec![1, usize::MAX, 2]);
        let view = View { storage: 0, dtype: DType::U8, offset: 0, end: 4, shape, strides };
        let reader = Reader::new(file, &view, region).unwrap();
        assert_eq!(reader.read().unwrap(), [0, 2, 1, 3]);
    }

    #[test]
    fn axes_of_length_one_may_have_any_stride() {
        assert!(is_contiguous(&[2, 1, 3], &[3, 99, 1]));
        assert!(is_contiguous(&[], &[]) && is_contiguous(&[1, 1], &[0, 7]));
        assert!(!is_contiguous(&[2, 3], &[1, 2]) && !is_contiguous(&[2], &[0]));
    }
}
