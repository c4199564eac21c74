//! The group of one process.

use crate::{Communicator, Group, Reduction};
use std::sync::Arc;

/// The group of one process: every collective is a copy or does nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Solo;

impl Communicator for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn barrier(&self) {}

    fn broadcast(&self, _root: usize, _buffer: &mut [u8]) {}

    fn all_reduce(&self, _reduction: Reduction, _buffer: &mut [f32]) {}

    fn all_reduce_f64(&self, _reduction: Reduction, _buffer: &mut [f64]) {}

    fn reduce_scatter(&self, input: &[f32], output: &mut [f32]) {
        output.copy_from_slice(input);
    }

    fn all_gather(&self, input: &[u8], output: &mut [u8]) {
        output.copy_from_slice(input);
    }

    fn all_to_all(&self, input: &[u8], output: &mut [u8]) {
        output.copy_from_slice(input);
    }

    fn split(&self, _color: usize, _key: usize) -> Group {
        Arc::new(Self)
    }

    fn abort(&self, message: &str) -> ! {
        panic!("{message}");
    }
}
