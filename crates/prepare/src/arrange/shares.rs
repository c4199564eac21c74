//! Named random shares of a table, such as `train=0.9,val=0.1`.

use crate::PrepareError;
use sha2::{Digest, Sha256};
use std::str::FromStr;

/// Names and shares, such as `train=0.9,val=0.1`. The shares add up to 1.
///
/// A hash of a row's name chooses its share: it does not depend on other rows, so a row keeps its share
/// when rows are added. Sizes are therefore approximate. When the shares change, only rows between the
/// old and new limits move.
#[derive(Debug, Clone, PartialEq)]
pub struct Shares(Vec<(String, f64)>);

impl Shares {
    /// Returns the names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Returns the index of the share that a row's name falls into.
    pub(super) fn of(&self, seed: u64, name: &str) -> usize {
        let hash = Sha256::digest(format!("{seed}\n{name}"));
        let number =
            hash.iter().take(8).fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
        // The 53 bits that a float has.
        let point = (number >> 11) as f64 / (1_u64 << 53) as f64;
        let mut limit = 0.0;
        let holds = |(_, share): &(String, f64)| {
            limit += share;
            point < limit
        };
        // Rounding can leave the last limit below 1.
        self.0.iter().position(holds).unwrap_or(self.0.len() - 1)
    }
}

impl FromStr for Shares {
    type Err = PrepareError;

    fn from_str(text: &str) -> Result<Self, PrepareError> {
        let fail = |expected| PrepareError::Spec { field: "shares", found: text.into(), expected };
        let mut shares = Vec::<(String, f64)>::new();
        for part in text.split(',') {
            let (name, share) =
                part.split_once('=').ok_or_else(|| fail("names and shares: train=0.9,val=0.1"))?;
            let name = name.trim();
            let plain = |letter: char| letter.is_alphanumeric() || "-_".contains(letter);
            // Files are named after the parts, and `failed` is the name of lists of failures.
            if name.is_empty() || !name.chars().all(plain) || name == "failed" {
                return Err(fail("names of letters, digits, - and _, and not 'failed'"));
            }
            if shares.iter().any(|(other, _)| other == name) {
                return Err(fail("each name once"));
            }
            let share = share.trim().parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
            shares.push((name.into(), share.ok_or_else(|| fail("shares above 0, at most 1"))?));
        }
        let sum: f64 = shares.iter().map(|(_, share)| share).sum();
        if (sum - 1.0).abs() > 1e-6 {
            return Err(fail("shares that are 1 together"));
        }
        Ok(Self(shares))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_must_sum_to_one() {
        let shares: Shares = "train=0.9, val=0.1".parse().unwrap();
        assert!(shares.names().eq(["train", "val"]));
        for wrong in [
            "",
            "train",
            "train=0.9",
            "a=0.5,a=0.5",
            "a=0.5,b=NaN",
            "a=-1,b=2",
            "../a=1",
            "failed=1",
        ] {
            assert!(wrong.parse::<Shares>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn hashes_are_the_same_on_every_machine() {
        let shares: Shares = "a=0.25,b=0.25,c=0.5".parse().unwrap();
        // From the first 8 bytes of the SHA-256 of "7\n0.mp4" and so on, by another program.
        let parts: Vec<usize> = (0..8).map(|row| shares.of(7, &format!("{row}.mp4"))).collect();
        assert_eq!(parts, [2, 2, 1, 1, 2, 2, 0, 1]);
    }
}
