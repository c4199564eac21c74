//! Loops for the vectors that the processor has.

/// Runs `f`, compiled for several widths of vectors of which the processor's own is taken. (The
/// program as a whole is compiled for the oldest processors.) Functions that `f` calls are compiled
/// so where they are inlined.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
