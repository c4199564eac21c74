//! AMX on x86-64 under Linux.

mod split;

use super::{Block, Elements, PANEL_ROWS, Panel, SIDE, TERMS, Tile};
use std::{
    arch::{
        asm,
        x86_64::{__cpuid_count, _MM_HINT_T0, _mm_prefetch},
    },
    cell::Cell,
    marker::PhantomData,
    mem::MaybeUninit,
};

/// Bytes of a tile's row.
const ROW_BYTES: usize = 64;

/// Returns true if the processor has AMX-BF16 and the AVX-512 instructions that pack its tiles, and Linux
/// grants tile permission to this process (off by default: tile state adds 8 KB per thread).
pub(super) fn request() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    // SAFETY: the processors that this is compiled for have the instruction; leaf 7
    // exists if leaf 0 reports it.
    #[allow(unused_unsafe, reason = "unsafe up to some version of the compiler")]
    let features = unsafe { if __cpuid_count(0, 0).eax < 7 { 0 } else { __cpuid_count(7, 0).edx } };
    features & AMX_BF16 != 0
        && features & AMX_TILE != 0
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
        // SAFETY: the request changes nothing but what the process may use.
        && unsafe {
            libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0
        }
}

/// Prefetches the element at `index` of `values`; `index` may be out of bounds. For strided reads, which the
/// processor's own prefetchers do not predict.
#[inline(always)]
pub(in super::super) fn prefetch(values: &[f32], index: usize) {
    // SAFETY: has no effect but on the cache, and none at all where there is no memory.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().wrapping_add(index).cast()) };
}

/// Splits `elements` into a tile for each term, `[row][pair along k]` if `rows_first`, else
/// `[pair along k][row]`.
///
/// # Panics
/// Panics if AMX is not available.
#[inline(always)]
pub(in super::super) fn split(elements: &Elements, rows_first: bool, tiles: [&mut Tile; TERMS]) {
    assert!(super::available(), "AMX is not available");
    // SAFETY: `request` has detected these instructions.
    unsafe { split::split(elements, rows_first, tiles) }
}

thread_local! {
    /// Number of [`TileRegisters`] of this thread: a product's epilogue may compute another product.
    static USERS: Cell<usize> = const { Cell::new(0) };
}

/// The tile registers of this thread, configured until the last one of the thread is dropped.
pub(in super::super) struct TileRegisters {
    /// Not `Send`: registers belong to a thread.
    of_thread: PhantomData<*const ()>,
}

impl TileRegisters {
    /// Configures eight tiles of 16 rows of 64 bytes.
    ///
    /// # Panics
    /// Panics if AMX is not available.
    pub(in super::super) fn configure() -> Self {
        assert!(super::available(), "AMX is not available");
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
            row_bytes: eight(ROW_BYTES as u8).map(u16::from),
            rows: eight(SIDE as u8),
        };
        // SAFETY: AMX is available, and the 64 bytes are a valid configuration.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &configuration, options(nostack, readonly));
        }
        USERS.set(USERS.get() + 1);
        Self { of_thread: PhantomData }
    }

    /// Writes the product of two panels to `c`, whose rows are `stride` apart, or adds it to `c` if `add`;
    /// all of `c` within the product must then be initialised. Prefetches `next` meanwhile.
    ///
    /// # Panics
    /// Panics if the panels differ along k or `c` is too small.
    pub(in super::super) fn multiply(
        &self,
        a: Panel,
        b: Panel,
        c: &mut [MaybeUninit<f32>],
        stride: usize,
        add: bool,
        next: &[Block],
    ) {
        assert!(a.blocks.len() == b.blocks.len(), "panels of the same k");
        let [rows, columns] = [a.rows, b.rows];
        if rows == PANEL_ROWS && columns == PANEL_ROWS {
            assert!(stride >= PANEL_ROWS && c.len() >= (PANEL_ROWS - 1) * stride + PANEL_ROWS);
            // SAFETY: 32 rows of 32 elements lie within `c`, as just checked.
            unsafe {
                multiply(a.blocks, b.blocks, c.as_mut_ptr().cast(), stride, add, next);
            }
            return;
        }
        // At an edge: computes a whole block, and copies the part within `c`.
        let mut whole = [MaybeUninit::new(0.0); PANEL_ROWS * PANEL_ROWS];
        if add {
            for (whole, c) in whole.chunks_mut(PANEL_ROWS).zip(c.chunks(stride)).take(rows) {
                whole[..columns].copy_from_slice(&c[..columns]);
            }
        }
        // SAFETY: `whole` has 32 rows of 32 elements.
        unsafe {
            multiply(a.blocks, b.blocks, whole.as_mut_ptr().cast(), PANEL_ROWS, add, next);
        }
        for (whole, c) in whole.chunks(PANEL_ROWS).zip(c.chunks_mut(stride)).take(rows) {
            c[..columns].copy_from_slice(&whole[..columns]);
        }
    }
}

impl Drop for TileRegisters {
    fn drop(&mut self) {
        USERS.set(USERS.get() - 1);
        if USERS.get() > 0 {
            return;
        }
        // SAFETY: discards the contents of the tile registers and nothing else.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Adds the products of four pairs of tiles to their sums, and prefetches four cache lines meanwhile.
/// (All prefetches of a step at a time would delay the loads of its tiles.)
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

/// Writes 32 rows of 32 sums to `c`, `stride` apart, over the blocks of both panels.
///
/// # Safety
/// The elements at `c` are valid for writes (and initialised if `add`), the panels have the same number
/// of blocks, and the tile registers of this thread are configured.
unsafe fn multiply(
    a: &[Block],
    b: &[Block],
    c: *mut f32,
    stride: usize,
    add: bool,
    next: &[Block],
) {
    // SAFETY: `upper` and `lower` point to 16 rows of 128 bytes of `c` each; each step reads the six tiles
    // of 1 KB of a block, and there are as many steps as blocks. Prefetching affects only the caches,
    // wherever it points.
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
            // Small products first, in an order in which each pair of terms shares one with the pair before.
            "tileloadd tmm4, [{a} + {row}*1]",
            "tileloadd tmm5, [{a} + {row}*1 + 1024]",
            "tileloadd tmm6, [{b} + {row}*1 + 4096]",
            "tileloadd tmm7, [{b} + {row}*1 + 5120]",
            add_products!(0), // term 1 of A, term 3 of B
            "tileloadd tmm6, [{b} + {row}*1 + 2048]",
            "tileloadd tmm7, [{b} + {row}*1 + 3072]",
            add_products!(4), // 1, 2
            "tileloadd tmm4, [{a} + {row}*1 + 2048]",
            "tileloadd tmm5, [{a} + {row}*1 + 3072]",
            add_products!(8), // 2, 2
            "tileloadd tmm6, [{b} + {row}*1]",
            "tileloadd tmm7, [{b} + {row}*1 + 1024]",
            add_products!(12), // 2, 1
            "tileloadd tmm4, [{a} + {row}*1 + 4096]",
            "tileloadd tmm5, [{a} + {row}*1 + 5120]",
            add_products!(16), // 3, 1
            "tileloadd tmm4, [{a} + {row}*1]",
            "tileloadd tmm5, [{a} + {row}*1 + 1024]",
            add_products!(20), // 1, 1
            "add {a}, {block}",
            "add {b}, {block}",
            "add {ahead}, {prefetched}",
            "dec {blocks}",
            "jnz 4b",
            "5:",
            "tilestored [{upper} + {step}*1], tmm0",
            "tilestored [{upper} + {step}*1 + 64], tmm1",
            "tilestored [{lower} + {step}*1], tmm2",
            "tilestored [{lower} + {step}*1 + 64], tmm3",
            add = in(reg) usize::from(add),
            upper = in(reg) c,
            lower = in(reg) c.add(SIDE * stride),
            step = in(reg) stride * size_of::<f32>(),
            blocks = inout(reg) a.len() => _,
            a = inout(reg) a.as_ptr() => _,
            b = inout(reg) b.as_ptr() => _,
            ahead = inout(reg) next.as_ptr() => _,
            row = in(reg) ROW_BYTES,
            block = const size_of::<Block>(),
            prefetched = const PREFETCHED,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Bytes that are prefetched at each step.
const PREFETCHED: usize = 24 * 64;
