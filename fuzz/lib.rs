//! The body of all fuzz targets: reads a file with the given bytes and checks that an error has one line.

use opensora_tests::readers::{Reader, Scratch, named};
use std::{cell::OnceCell, thread_local};

#[doc(hidden)]
pub use libfuzzer_sys;

thread_local! {
    static READER: OnceCell<(Reader, Scratch)> = const { OnceCell::new() };
}

/// Reads the bytes with the reader of this name.
///
/// # Panics
/// Panics if the reader does, or if its error has several lines.
pub fn read(name: &str, bytes: &[u8]) {
    READER.with(|reader| {
        let (reader, scratch) = reader.get_or_init(|| (named(name), Scratch::new()));
        if let Err(error) = reader.read(scratch, bytes) {
            assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
        }
    });
}

/// Defines the fuzz target of the reader of this name.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::read($name, bytes));
    };
}
