//! Memory that was freed is kept for what comes next.
//!
//! An evaluation allocates and frees hundreds of tensors of up to 100 MB. Those the C library takes
//! from the system one by one and gives back, and the system zeroes every page of each when it is
//! first touched, which takes about a tenth of the time of an evaluation of STDiT-XL/2 on a
//! processor. Kept memory is used again by the next tensor of that size or less.
//!
//! For glibc, and of no effect elsewhere. A program that embeds `opensora` has the same from
//! `GLIBC_TUNABLES=glibc.malloc.mmap_threshold=4294967295:glibc.malloc.trim_threshold=1073741824`.

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kept {
    /// Nothing: a file is passed on in pieces, and the largest of them is to be all of it.
    Nothing,
    /// A gigabyte; the freed weights of a whole model go back to the system.
    Some,
    /// All of it: each step of a training takes what the one before has freed.
    All,
}

/// Asks the allocator to keep what is freed; before other threads begin.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "a call of the C library")]
pub(crate) fn keep_freed_memory(kept: Kept) {
    let kept = match kept {
        Kept::Nothing => return,
        Kept::Some => 1 << 30,
        Kept::All => -1,
    };
    // SAFETY: mallopt sets numbers of the allocator and touches nothing else; no thread runs beside
    // this one yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, kept);
    }
}

/// Other allocators are left as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn keep_freed_memory(_: Kept) {}
