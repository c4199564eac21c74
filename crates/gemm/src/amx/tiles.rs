//! Tiles and their instructions: Intel's Advanced Matrix Extensions (AMX), in inline assembly,
//! since their intrinsics are unstable.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18,
//! "Programming with Intel AMX".

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod linux;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use linux as platform;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod unsupported;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
use unsupported as platform;

pub(super) use platform::{TileRegisters, prefetch, split};

/// Rows of a tile, and 32-bit words of a row.
pub(super) const SIDE: usize = 16;

/// Elements along k of one tile: a word is a pair of bf16.
pub(super) const TILE_K: usize = 2 * SIDE;

/// Rows of a packed panel: two tiles, so that a product of panels has four independent accumulator tiles.
pub(super) const PANEL_ROWS: usize = 2 * SIDE;

/// bf16 terms that an f32 is split into.
pub(super) const TERMS: usize = 3;

/// The words of a tile register, row by row.
pub(super) type Tile = [[u32; SIDE]; SIDE];

/// Elements of an operand for a tile: runs along k, or runs along the rows.
pub(super) enum Elements<'a> {
    Rows([&'a [f32; TILE_K]; SIDE]),
    Columns([&'a [f32; SIDE]; TILE_K]),
}

/// The tiles of a panel over one [`TILE_K`]: `[term][half of the rows]`.
#[repr(C, align(64))]
#[derive(Clone)]
pub(super) struct Block(pub(super) [[Tile; PANEL_ROWS / SIDE]; TERMS]);

impl Block {
    /// Tiles of zeros.
    pub(super) const ZERO: Self = Self([[[[0; SIDE]; SIDE]; PANEL_ROWS / SIDE]; TERMS]);
}

/// Rows of an operand, split and packed.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    /// One block for every [`TILE_K`] elements along k.
    pub(super) blocks: &'a [Block],
    /// Number of rows that belong to the operand; the others are zero.
    pub(super) rows: usize,
}

/// Returns true if the processor has AMX-BF16 and Linux permits this process to use it; false if the
/// environment variable `OPENSORA_NO_AMX` is set.
pub(crate) fn available() -> bool {
    static AVAILABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *AVAILABLE.get_or_init(|| std::env::var_os("OPENSORA_NO_AMX").is_none() && platform::request())
}
