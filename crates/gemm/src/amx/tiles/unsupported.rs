//! Where no matrix unit is known.

use super::{Block, Numbers, PARTS, Panel, Tile};
use std::mem::MaybeUninit;

/// There is none.
pub(super) fn request() -> bool {
    false
}

/// Nothing is fetched ahead.
pub(in super::super) fn fetch(_: &[f32], _: usize) {}

/// Nobody asks for it.
pub(in super::super) fn take_apart(_: &Numbers, _: bool, _: [&mut Tile; PARTS]) {
    unreachable!("no unit")
}

/// Never begun, as whoever begins it asks before.
pub(in super::super) struct Unit;

impl Unit {
    pub(in super::super) fn begin() -> Self {
        Self
    }

    pub(in super::super) fn multiply(
        &self,
        left: Panel,
        right: Panel,
        _: &mut [MaybeUninit<f32>],
        _: usize,
        _: bool,
        _: &[Block],
    ) {
        unreachable!("no unit for {}x{}", left.lines * left.blocks.len(), right.lines)
    }
}
