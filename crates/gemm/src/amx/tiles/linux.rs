//! The unit of an x86-64 processor under Linux.

mod split;

use super::{Block, LINES, Numbers, PARTS, Panel, SIDE, Tile};
use std::{
    arch::{
        asm,
        x86_64::{__cpuid_count, _MM_HINT_T0, _mm_prefetch},
    },
    marker::PhantomData,
    mem::MaybeUninit,
};

/// Bytes from a tile's row to the next.
const ROW: usize = 64;

/// Whether there is a unit, and the vectors that prepare its tiles; asks the system for it, which it keeps from programs that do not, as it makes their state
/// eight KB larger; for all threads of this process.
pub(super) fn request() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    // SAFETY: the processors that this is compiled for have the instruction; leaf 7 is there where
    // leaf 0 says so.
    #[allow(unused_unsafe, reason = "unsafe up to some version of the compiler")]
    let features = unsafe { if __cpuid_count(0, 0).eax < 7 { 0 } else { __cpuid_count(7, 0).edx } };
    // SAFETY: this request changes nothing but what the process may use.
    features & AMX_BF16 != 0
        && features & AMX_TILE != 0
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
        && unsafe {
            libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0
        }
}

/// Fetches the numbers at `index` of `values`, if there are any, to the core: for reads that jump, which
/// the processor does not foresee.
#[inline(always)]
pub(in super::super) fn fetch(values: &[f32], index: usize) {
    // SAFETY: has no effect but on the cache, and none at all where there is no memory.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().wrapping_add(index).cast()) };
}

/// Takes `numbers` apart into a tile for each part, whose rows are lines (`[line][pair]`) where
/// `lines_first`, else pairs (`[pair][line]`). There must be a unit.
#[inline(always)]
pub(in super::super) fn take_apart(
    numbers: &Numbers,
    lines_first: bool,
    tiles: [&mut Tile; PARTS],
) {
    assert!(super::available(), "asked before");
    // SAFETY: a processor with a unit that is available has these instructions.
    unsafe { split::take_apart(numbers, lines_first, tiles) }
}

/// The unit with its tiles set up, on the thread that began it and until it is dropped.
pub(in super::super) struct Unit {
    /// Tiles belong to a thread.
    of_thread: PhantomData<*const ()>,
}

impl Unit {
    /// Sets up the tiles of this thread.
    pub(in super::super) fn begin() -> Self {
        assert!(super::available(), "asked before");
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let eight = |of: u8| std::array::from_fn(|tile| if tile < 8 { of } else { 0 });
        let configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: eight(ROW as u8).map(u16::from),
            rows: eight(SIDE as u8),
        };
        // SAFETY: there is a unit, and the 64 bytes are those of a valid configuration.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &configuration, options(nostack, readonly));
        }
        Self { of_thread: PhantomData }
    }

    /// Writes `left right` to `out`, whose rows are `stride` apart; where `add`, adds it to what was
    /// written there before. Fetches `next` to the core meanwhile.
    pub(in super::super) fn multiply(
        &self,
        left: Panel,
        right: Panel,
        out: &mut [MaybeUninit<f32>],
        stride: usize,
        add: bool,
        next: &[Block],
    ) {
        assert!(left.blocks.len() == right.blocks.len(), "panels of one depth");
        let [rows, columns] = [left.lines, right.lines];
        if rows == LINES && columns == LINES {
            assert!(stride >= LINES && out.len() >= (LINES - 1) * stride + LINES);
            // SAFETY: 32 rows of 32 numbers lie within `out`, as just asked.
            unsafe {
                multiply(left.blocks, right.blocks, out.as_mut_ptr().cast(), stride, add, next);
            }
            return;
        }
        // At an edge, by way of a whole block of numbers.
        let mut whole = [MaybeUninit::new(0.0); LINES * LINES];
        if add {
            for (whole, out) in whole.chunks_mut(LINES).zip(out.chunks(stride)).take(rows) {
                whole[..columns].copy_from_slice(&out[..columns]);
            }
        }
        // SAFETY: 32 rows of 32 numbers are what `whole` has.
        unsafe {
            multiply(left.blocks, right.blocks, whole.as_mut_ptr().cast(), LINES, add, next);
        }
        for (whole, out) in whole.chunks(LINES).zip(out.chunks_mut(stride)).take(rows) {
            out[..columns].copy_from_slice(&whole[..columns]);
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // SAFETY: gives up the tiles' contents and nothing else.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Products of four pairs of tiles, each added to its sum; and four lines fetched meanwhile. (All of a
/// step's at once would hold up the tiles' own loads.)
macro_rules! add_products {
    ($line:literal) => {
        concat!(
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
            "prefetcht1 [{ahead} + 64 * ",
            $line,
            "]\n",
            "prefetcht1 [{ahead} + 64 * ",
            $line,
            " + 64]\n",
            "prefetcht1 [{ahead} + 64 * ",
            $line,
            " + 128]\n",
            "prefetcht1 [{ahead} + 64 * ",
            $line,
            " + 192]\n",
        )
    };
}

/// 32 rows of 32 sums at `out`, `stride` apart, over the blocks of both panels.
///
/// # Safety
/// The numbers at `out` are there to be written (and to be read where `add`), the panels are of one depth,
/// and the tiles of this thread are set up.
unsafe fn multiply(
    left: &[Block],
    right: &[Block],
    out: *mut f32,
    stride: usize,
    add: bool,
    next: &[Block],
) {
    // SAFETY: the 16 rows of 64 bytes at both pointers to sums, and as far right of them, are those of
    // `out`; each step reads the six tiles of a kilobyte that a block has, and as many steps are made as
    // there are blocks. Fetching ahead has no effect but on the cache, wherever it points.
    unsafe {
        asm!(
            "test {add}, {add}",
            "jz 2f",
            "tileloadd tmm0, [{upper} + {step}*1]",
            "tileloadd tmm1, [{upper} + {step}*1 + 64]",
            "tileloadd tmm2, [{lower} + {step}*1]",
            "tileloadd tmm3, [{lower} + {step}*1 + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "test {blocks}, {blocks}",
            "jz 5f",
            "4:",
            // Small products first, and an order in which each pair of tiles shares one with the pair before.
            "tileloadd tmm4, [{left} + {row}*1]",
            "tileloadd tmm5, [{left} + {row}*1 + 1024]",
            "tileloadd tmm6, [{right} + {row}*1 + 4096]",
            "tileloadd tmm7, [{right} + {row}*1 + 5120]",
            add_products!(0), // first of the left, third of the right
            "tileloadd tmm6, [{right} + {row}*1 + 2048]",
            "tileloadd tmm7, [{right} + {row}*1 + 3072]",
            add_products!(4), // first, second
            "tileloadd tmm4, [{left} + {row}*1 + 2048]",
            "tileloadd tmm5, [{left} + {row}*1 + 3072]",
            add_products!(8), // second, second
            "tileloadd tmm6, [{right} + {row}*1]",
            "tileloadd tmm7, [{right} + {row}*1 + 1024]",
            add_products!(12), // second, first
            "tileloadd tmm4, [{left} + {row}*1 + 4096]",
            "tileloadd tmm5, [{left} + {row}*1 + 5120]",
            add_products!(16), // third, first
            "tileloadd tmm4, [{left} + {row}*1]",
            "tileloadd tmm5, [{left} + {row}*1 + 1024]",
            add_products!(20), // first, first
            "add {left}, {block}",
            "add {right}, {block}",
            "add {ahead}, {fetched}",
            "dec {blocks}",
            "jnz 4b",
            "5:",
            "tilestored [{upper} + {step}*1], tmm0",
            "tilestored [{upper} + {step}*1 + 64], tmm1",
            "tilestored [{lower} + {step}*1], tmm2",
            "tilestored [{lower} + {step}*1 + 64], tmm3",
            add = in(reg) usize::from(add),
            upper = in(reg) out,
            lower = in(reg) out.add(SIDE * stride),
            step = in(reg) stride * size_of::<f32>(),
            blocks = inout(reg) left.len() => _,
            left = inout(reg) left.as_ptr() => _,
            right = inout(reg) right.as_ptr() => _,
            ahead = inout(reg) next.as_ptr() => _,
            row = in(reg) ROW,
            block = const size_of::<Block>(),
            fetched = const FETCHED,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Bytes fetched ahead at each step.
const FETCHED: usize = 24 * 64;
