//! The numbers of a micro-batch from the parts of all ranks.

use crate::{error::TrainError, ranks::Ranks, task::Cost};
use opensora_files::error_line;
use opensora_parallel::gather_bytes;
use serde::{Deserialize, Serialize};

/// Losses, terms and cost of a micro-batch, or of one rank's part of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Numbers {
    /// The loss of each sample.
    pub(crate) losses: Vec<f64>,
    /// Terms of the loss and other numbers by name, each with the number of values and their sum.
    pub(crate) parts: Vec<(&'static str, f64, f64)>,
    pub(crate) cost: Cost,
}

/// The message of a rank. Floats are sent as bits, since JSON has no NaN.
#[derive(Serialize, Deserialize, Default)]
struct Message {
    error: Option<String>,
    losses: Vec<u64>,
    parts: Vec<(String, u64, u64)>,
    tokens: u64,
    flops: u64,
}

/// Returns the numbers of the whole micro-batch from those of every rank's part. A collective.
///
/// # Errors
/// Returns an error on every rank if one of them failed: its own, or the first one of another.
pub(crate) fn share(
    ranks: &Ranks,
    own: Result<Numbers, TrainError>,
) -> Result<Numbers, TrainError> {
    let message = match &own {
        Ok(numbers) => Message {
            error: None,
            losses: numbers.losses.iter().map(|loss| loss.to_bits()).collect(),
            parts: numbers
                .parts
                .iter()
                .map(|(name, count, sum)| (name.to_string(), count.to_bits(), sum.to_bits()))
                .collect(),
            tokens: numbers.cost.tokens.to_bits(),
            flops: numbers.cost.flops.to_bits(),
        },
        Err(error) => Message { error: Some(error_line(error)), ..Message::default() },
    };
    let bytes = serde_json::to_vec(&message).map_err(TrainError::other)?;
    let messages = gather_bytes(&**ranks.world(), &bytes);
    let own = own?;
    // Rank 0 has samples of every micro-batch, so it has all names.
    let names = own.parts.iter().map(|(name, ..)| (*name, 0.0, 0.0)).collect();
    let mut whole = Numbers { losses: Vec::new(), parts: names, cost: Cost::default() };
    for (rank, bytes) in messages.iter().enumerate() {
        let message: Message = serde_json::from_slice(bytes).map_err(TrainError::other)?;
        if let Some(message) = message.error {
            return Err(TrainError::OtherRank { rank, message });
        }
        if !ranks.is_first_of_row(rank) {
            continue;
        }
        whole.losses.extend(message.losses.into_iter().map(f64::from_bits));
        for (name, count, sum) in message.parts {
            if let Some(part) = whole.parts.iter_mut().find(|(part, ..)| *part == name) {
                part.1 += f64::from_bits(count);
                part.2 += f64::from_bits(sum);
            }
        }
        whole.cost.tokens += f64::from_bits(message.tokens);
        whole.cost.flops += f64::from_bits(message.flops);
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_parallel::threads::run_ranks;

    #[test]
    fn the_numbers_of_all_parts_are_those_of_the_batch() {
        let found = run_ranks(3, |group| {
            let rank = group.rank() as f64;
            let numbers = Numbers {
                losses: if rank == 2.0 { vec![] } else { vec![rank, f64::NAN] },
                parts: if rank == 2.0 { vec![] } else { vec![("mse", 2.0, rank)] },
                cost: Cost { tokens: 10.0, flops: rank },
            };
            share(&Ranks::new(group), Ok(numbers)).unwrap()
        });
        let Numbers { losses, parts, cost } = &found[0];
        assert_eq!((losses.len(), losses[0], losses[2]), (4, 0.0, 1.0));
        assert!(losses[1].is_nan() && losses[3].is_nan());
        assert_eq!(parts, &[("mse", 4.0, 1.0)]);
        assert_eq!(cost, &Cost { tokens: 30.0, flops: 3.0 });
        assert!(found.iter().all(|numbers| numbers.losses.len() == 4));
    }

    #[test]
    fn an_error_of_one_rank_is_an_error_of_all() {
        let lines = run_ranks(2, |group| {
            let own = match group.rank() {
                1 => Err(TrainError::Batch("too wide".into())),
                _ => Ok(Numbers::default()),
            };
            share(&Ranks::new(group), own).unwrap_err().to_string()
        });
        assert_eq!(lines, ["rank 1: too wide", "too wide"]);
    }
}
