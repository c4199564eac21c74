//! Peak memory of the process.

/// Returns the peak resident memory of this process in bytes (`VmHWM`), or `None` on systems other than Linux.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    peak_of(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// Parses the line `VmHWM:     1234 kB` of a process's status.
fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_read() {
        let status = "Name:\topensora\nVmPeak:\t  200 kB\nVmHWM:\t   120 kB\nVmRSS:\t 100 kB\n";
        assert_eq!(peak_of(status), Some(120 * 1024));
        assert_eq!(peak_of("VmHWM: many kB\n"), None);
        assert_eq!(peak_of(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_touched_counts() {
        let before = peak_rss_bytes().unwrap();
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(peak_rss_bytes().unwrap() >= before.max(64 << 20), "{}", touched.len());
    }
}
