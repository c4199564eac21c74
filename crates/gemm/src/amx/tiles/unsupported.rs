//! Stand-ins for systems on which AMX is not supported; never called, since it is not available.

use super::{Block, Elements, Panel, TERMS, Tile};
use std::mem::MaybeUninit;

pub(super) fn request() -> bool {
    false
}

pub(in super::super) fn prefetch(_: &[f32], _: usize) {}

pub(in super::super) fn split(_: &Elements, _: bool, _: [&mut Tile; TERMS]) {
    unreachable!("AMX is not available")
}

pub(in super::super) struct TileRegisters;

impl TileRegisters {
    pub(in super::super) fn configure() -> Self {
        Self
    }

    pub(in super::super) fn multiply(
        &self,
        a: Panel,
        b: Panel,
        _: &mut [MaybeUninit<f32>],
        _: usize,
        _: bool,
        _: &[Block],
    ) {
        unreachable!("no AMX for {}x{}", a.rows * a.blocks.len(), b.rows)
    }
}
