//! Where no matrix unit is known.

use super::{Block, Panel};
use std::mem::MaybeUninit;

pub(super) fn request() -> bool {
    false
}

pub(in super::super) fn fetch(_: &[f32], _: usize) {}

/// Never begun.
pub(in super::super) enum Unit {}

impl Unit {
    pub(in super::super) fn begin() -> Self {
        unreachable!("asked before")
    }

    pub(in super::super) fn multiply(
        &self,
        _: Panel,
        _: Panel,
        _: &mut [MaybeUninit<f32>],
        _: usize,
        _: bool,
        _: &[Block],
    ) {
        match *self {}
    }

    pub(in super::super) fn multiply_over(&self, _: Panel, _: Panel, _: &mut [f32], _: usize) {
        match *self {}
    }
}
