//! Attention in chunks of samples and queries, with a bounded number of scores at a time.
//!
//! A query's softmax is over all its keys, so chunks of samples and of queries do not change the result;
//! keys are not split. With a fixed bound, memory is linear in the number of tokens.

use super::Heads;
use burn::tensor::{Tensor, module::attention as fused_attention, ops::AttentionModuleOptions};

/// Maximum number of scores in memory at a time, over all heads: 64 MiB in f32, enough to occupy any
/// device.
pub(super) const SCORE_BUDGET: usize = 1 << 24;

/// Chunks of queries are a multiple of this if the budget allows, as CubeCL's accelerated kernels require
/// of a sequence (8 planes of 16 queries).
const QUERY_MULTIPLE: usize = 128;

/// Size of an attention chunk: samples, and queries of each sample.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chunks {
    /// Samples; 1 if not all queries of a sample fit.
    pub(crate) samples: usize,
    /// Queries of each sample.
    pub(crate) queries: usize,
}

impl Chunks {
    /// Returns the chunk size for scores `[samples, heads, queries, keys]`: at most `budget` scores, but at
    /// least those of one query.
    pub(crate) fn new([samples, heads, queries, keys]: [usize; 4], budget: usize) -> Self {
        let scores_of_query = heads.saturating_mul(keys).max(1);
        let fitting = (budget / scores_of_query).clamp(1, queries.max(1));
        if fitting < queries {
            let multiple = fitting - fitting % QUERY_MULTIPLE;
            return Self { samples: 1, queries: if multiple == 0 { fitting } else { multiple } };
        }
        let scores_of_sample = scores_of_query.saturating_mul(queries).max(1);
        Self { samples: (budget / scores_of_sample).clamp(1, samples.max(1)), queries: fitting }
    }
}

/// Returns attention by burn with at most `budget` scores at a time, but at least those of one query.
pub(super) fn attention(heads: Heads, budget: usize) -> Tensor<4> {
    let [samples, count, queries, _] = heads.query.dims();
    let keys = heads.key.dims()[2];
    let chunks = Chunks::new([samples, count, queries, keys], budget);
    if chunks.samples >= samples && chunks.queries >= queries {
        return unchunked(heads);
    }
    let mut done = Vec::with_capacity(samples.div_ceil(chunks.samples));
    for first in (0..samples).step_by(chunks.samples) {
        let part = samples_of(&heads, first, chunks.samples.min(samples - first));
        let rows: Vec<_> = (0..queries)
            .step_by(chunks.queries)
            .map(|row| unchunked(queries_of(&part, row, chunks.queries.min(queries - row))))
            .collect();
        done.push(Tensor::cat(rows, 2));
    }
    Tensor::cat(done, 0)
}

/// Returns attention by burn in one call, without a limit of scores.
fn unchunked(heads: Heads) -> Tensor<4> {
    let Heads { query, key, value, bias, scale } = heads;
    // Backends that tile over queries require a bias row for each query. An expanded view keeps them from
    // materialising it for each head.
    let bias = bias.map(|bias| {
        let [batch, heads, _, keys] = bias.dims();
        bias.expand([batch, heads, query.dims()[2], keys])
    });
    let options = AttentionModuleOptions { scale, ..Default::default() };
    fused_attention(query, key, value, None, bias, options)
}

/// Returns `count` samples from `first` on.
fn samples_of(heads: &Heads, first: usize, count: usize) -> Heads {
    let part = |x: &Tensor<4>| x.clone().narrow(0, first, count);
    Heads {
        query: part(&heads.query),
        key: part(&heads.key),
        value: part(&heads.value),
        bias: heads.bias.as_ref().map(|b| if b.dims()[0] == 1 { b.clone() } else { part(b) }),
        scale: heads.scale,
    }
}

/// Returns `count` queries from `first` on, with all keys.
fn queries_of(heads: &Heads, first: usize, count: usize) -> Heads {
    let part = |x: &Tensor<4>| x.clone().narrow(2, first, count);
    Heads {
        query: part(&heads.query),
        bias: heads.bias.as_ref().map(|b| if b.dims()[2] == 1 { b.clone() } else { part(b) }),
        ..heads.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_within_the_budget_are_one_chunk() {
        assert_eq!(Chunks::new([2, 3, 5, 7], 210), Chunks { samples: 2, queries: 5 });
        assert_eq!(Chunks::new([2, 3, 5, 7], usize::MAX), Chunks { samples: 2, queries: 5 });
    }

    #[test]
    fn samples_are_split_before_queries() {
        assert_eq!(Chunks::new([9, 1, 10, 10], 450), Chunks { samples: 4, queries: 10 });
        assert_eq!(Chunks::new([9, 1, 10, 10], 99), Chunks { samples: 1, queries: 9 });
        // A budget below one query's scores.
        assert_eq!(Chunks::new([9, 4, 10, 10], 1), Chunks { samples: 1, queries: 1 });
        assert_eq!(Chunks::new([9, 4, 1000, 10], 300 * 40), Chunks { samples: 1, queries: 256 });
    }

    #[test]
    fn a_million_tokens_stay_within_the_budget() {
        let million = 1_000_000;
        let Chunks { samples, queries } = Chunks::new([1, 16, million, million], SCORE_BUDGET);
        assert_eq!(samples * queries, 1); // 16 million scores.
        let chunks = Chunks::new([1, 1, million, million], SCORE_BUDGET);
        assert!(chunks.queries * million <= SCORE_BUDGET, "{chunks:?}");
    }
}
