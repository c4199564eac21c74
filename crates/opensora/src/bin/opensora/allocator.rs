//! Memory that was freed is kept for what comes next.
//!
//! An evaluation allocates and frees hundreds of tensors of up to 100 MB. Those the C library takes
//! from the system one by one and gives back, and the system zeroes every page of each when it is
//! first touched, which takes about a tenth of the time of an evaluation of STDiT-XL/2 on a
//! processor. Kept memory is used again by the next tensor of that size or less.
//!
//! For glibc, and of no effect elsewhere. A program that embeds `opensora` has the same from
//! `GLIBC_TUNABLES=glibc.malloc.mmap_threshold=4294967295:glibc.malloc.trim_threshold=1073741824`.

/// Asks the allocator to keep what is freed; before other threads begin.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "a call of the C library")]
pub(crate) fn keep_freed_memory() {
    /// At the end of the heap; freed weights of a whole model go back to the system.
    const KEPT_BYTES: i32 = 1 << 30;
    // SAFETY: mallopt sets numbers of the allocator and touches nothing else; no thread runs beside
    // this one yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

/// Other allocators are left as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn keep_freed_memory() {}
