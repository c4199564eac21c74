//! Damaged copies of files, the same ones in every run.
//!
//! A reader must return a value or an error of one line for each. This does not replace coverage-guided fuzzing, but
//! runs on every machine in every test run.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Numbers that are extreme as sizes, counts or offsets.
const TELLING: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

/// Text that is special in configurations and indices.
const TELLING_TEXT: [&str; 12] = [
    "-1",
    "1e400",
    "1000000000",
    "18446744073709551616",
    "null",
    "NaN",
    "[[[[",
    "{\"a\":",
    "../",
    "\u{feff}",
    "\\u0000",
    "\"",
];

/// A generator of mutations, determined by its seed.
#[derive(Debug, Clone)]
pub struct Mutator {
    state: u64,
}

impl Mutator {
    /// Returns the generator of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    fn next(&mut self) -> u64 {
        // xorshift64*, Vigna 2016.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Returns `bytes` with one to four changes. Positions near both ends, which have headers and directories, are
    /// preferred.
    pub fn mutate(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            self.change(&mut bytes);
        }
        bytes
    }

    fn place(&mut self, length: usize) -> usize {
        let near = length.min(512);
        match self.below(4) {
            0 => self.below(near),
            1 => length - 1 - self.below(near),
            _ => self.below(length),
        }
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            bytes.push(self.next() as u8);
            return;
        }
        let at = self.place(bytes.len());
        let length = (1 + self.below(16)).min(bytes.len() - at);
        match self.below(10) {
            0 | 1 => bytes[at] ^= 1 << self.below(8),
            2 => bytes[at] = self.next() as u8,
            3 | 4 => {
                let number = TELLING[self.below(TELLING.len())];
                let width = [2, 4, 8][self.below(3)].min(bytes.len() - at);
                let number = if self.below(4) == 0 { number.to_be() } else { number };
                bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
            }
            5 => {
                let text = TELLING_TEXT[self.below(TELLING_TEXT.len())];
                bytes.splice(at..at + length, text.bytes());
            }
            6 => bytes.truncate(at),
            7 => {
                bytes.drain(at..at + length);
            }
            8 => {
                let copy = bytes[at..at + length].to_vec();
                let to = self.place(bytes.len());
                bytes.splice(to..to, copy);
            }
            _ => {
                let to = self.below(bytes.len() - length + 1);
                bytes.copy_within(at..at + length, to);
            }
        }
    }
}

/// Calls `read` with `count` mutations of `seeds` and returns the number of errors, which must be of one line.
///
/// # Panics
/// Panics if `read` panics or returns an error of several lines; the message has the number of the mutation, from
/// which [`mutation`] makes it again.
pub fn check_reader(
    name: &str,
    seeds: &[Vec<u8>],
    count: usize,
    read: impl Fn(&[u8]) -> Result<(), String>,
) -> usize {
    let mut refused = 0;
    for number in 0..count {
        let bytes = mutation(seeds, number);
        match catch_unwind(AssertUnwindSafe(|| read(&bytes))) {
            Ok(Ok(())) => {}
            Ok(Err(message)) => {
                let one_line = !message.is_empty() && !message.contains('\n');
                assert!(one_line, "{name}: mutation {number}: {message:?}");
                refused += 1;
            }
            Err(_) => panic!("{name}: mutation {number} makes the reader panic"),
        }
    }
    refused
}

/// Returns mutation `number` of `seeds`.
pub fn mutation(seeds: &[Vec<u8>], number: usize) -> Vec<u8> {
    Mutator::new(number as u64).mutate(&seeds[number % seeds.len()])
}
