//! Settings of glibc's allocator: freed memory stays with the process and is reused.
//!
//! A forward pass allocates and frees hundreds of tensors of up to 100 MB. By default glibc maps and unmaps
//! each tensor, and the kernel zeroes every page at its first use. This takes about a tenth of the time of a
//! forward pass of STDiT-XL/2 on a CPU. Memory that stays with the process is reused by the next
//! tensor of that size or less.
//!
//! Other allocators are not changed. A program that embeds `opensora` gets the same effect from
//! `GLIBC_TUNABLES=glibc.malloc.mmap_threshold=4294967295:glibc.malloc.trim_threshold=1073741824`.

/// Amount of freed memory that stays with the process.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kept {
    /// Nothing, for commands that copy files in pieces: memory is that of the largest piece.
    Nothing,
    /// One gigabyte: the freed weights of a whole model return to the system.
    Some,
    /// All: each training step reuses the memory of the step before.
    All,
}

/// Sets the allocator. Call it before other threads start.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "a call of the C library")]
pub(crate) fn keep_freed_memory(kept: Kept) {
    let kept = match kept {
        Kept::Nothing => return,
        Kept::Some => 1 << 30,
        Kept::All => -1,
    };
    // SAFETY: mallopt only sets parameters of the allocator, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, kept);
    }
}

/// Does nothing for other allocators.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn keep_freed_memory(_: Kept) {}
