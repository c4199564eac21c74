//! Loops compiled for several vector instruction sets, selected at run time.

/// Runs `f`, compiled for several vector instruction sets, with the best one of the processor. (The rest of the
/// program is compiled for the baseline processor.) Functions that `f` calls benefit if they are inlined.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
