//! The limit of open files.

/// Raises the limit of open files to the highest that the system allows: a large cache of latents is a file for each
/// gigabyte, all of them open. Changes nothing if that fails.
#[cfg(unix)]
#[allow(unsafe_code, reason = "calls of the C library")]
pub(crate) fn raise_limit() {
    // macOS rejects more than this, also if it reports no limit.
    const MOST: libc::rlim_t = if cfg!(target_os = "macos") { 10_240 } else { 1 << 20 };
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only read or fill in the structure.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            let wanted = limit.rlim_max.min(MOST);
            if wanted > limit.rlim_cur {
                limit.rlim_cur = wanted;
                libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
            }
        }
    }
}

/// Does nothing: other systems have no such limit.
#[cfg(not(unix))]
pub(crate) fn raise_limit() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limits = || {
            let text = std::fs::read_to_string("/proc/self/limits").unwrap();
            let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
            let numbers: Vec<u64> =
                line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            (numbers[0], numbers[1])
        };
        let before = limits();
        super::raise_limit();
        let after = limits();
        assert_eq!(after.0, before.1.min(1 << 20).max(before.0));
        assert_eq!(after.1, before.1);
    }
}
