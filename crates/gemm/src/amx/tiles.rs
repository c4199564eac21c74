//! A processor's matrix unit: Intel's Advanced Matrix Extensions, by instructions of the assembler,
//! as the compiler's own names for them are not stable yet.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18,
//! "Programming with Intel AMX".

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[allow(unsafe_code, reason = "instructions that the compiler has no safe names for")]
mod linux;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use linux as unit;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod unsupported;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
use unsupported as unit;

pub(super) use unit::{Unit, fetch, take_apart};

/// Rows of a tile, and words of a row.
pub(super) const SIDE: usize = 16;

/// Numbers along the depth that one tile holds: a word is a pair of bf16.
pub(super) const DEPTH: usize = 2 * SIDE;

/// Lines of a panel: two tiles, so that four sums of tiles are under way at once.
pub(super) const LINES: usize = 2 * SIDE;

/// Parts that a number is taken into.
pub(super) const PARTS: usize = 3;

/// Rows of words.
pub(super) type Tile = [[u32; SIDE]; SIDE];

/// Numbers of a tile's size where they lie: all those of a line, or all those of a depth, side by side.
pub(super) enum Numbers<'a> {
    Lines([&'a [f32; DEPTH]; SIDE]),
    Depths([&'a [f32; SIDE]; DEPTH]),
}

/// The tiles of a panel's lines over one [`DEPTH`]: `[part][half of the lines]`.
#[repr(C, align(64))]
#[derive(Clone)]
pub(super) struct Block(pub(super) [[Tile; LINES / SIDE]; PARTS]);

impl Block {
    /// Tiles of zeros.
    pub(super) const ZERO: Self = Self([[[[0; SIDE]; SIDE]; LINES / SIDE]; PARTS]);
}

/// Lines taken apart, over some depth.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    /// Along the depth.
    pub(super) blocks: &'a [Block],
    /// How many of its lines there are; the others are zero.
    pub(super) lines: usize,
}

/// Whether there is a matrix unit and the system lets this process use it; not where the environment
/// has an `OPENSORA_NO_AMX`, for comparisons.
pub(crate) fn available() -> bool {
    static AVAILABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *AVAILABLE.get_or_init(|| std::env::var_os("OPENSORA_NO_AMX").is_none() && unit::request())
}
