//! Deeper models from trained ones.
//!
//! A block adds nothing to its input while the output projections of its branches are zero. So a trained model can be
//! given more blocks without a change of its output; training continues from there. A new block is a copy of the block
//! before it, whose other layers are a better start than random weights.
//!
//! Source: Wu et al. 2024, "LLaMA Pro: Progressive LLaMA with Block Expansion", arXiv 2401.02415, section 3.2.

use crate::{SizeError, block::StDitBlock, stdit::StDit};
use burn::{
    module::{Module, ModuleMapper, Param, ParamId},
    tensor::Tensor,
};

impl StDit {
    /// Returns a model of `depth` blocks that computes the same as this one. Each block is followed by `depth` divided by
    /// the present depth, minus 1, copies of it whose output projections are zero.
    ///
    /// # Errors
    /// Returns an error if `depth` is 0 or not a multiple of the present depth.
    pub fn deepened(self, depth: usize) -> Result<Self, SizeError> {
        let present = self.blocks.len();
        check_depth(depth, present)?;
        Ok(self.with_blocks(|blocks| {
            let followed = |block: StDitBlock| {
                let copies = (1..depth / present).map(|_| added(&block)).collect::<Vec<_>>();
                std::iter::once(block).chain(copies)
            };
            blocks.into_iter().flat_map(followed).collect()
        }))
    }
}

/// Checks that a model of `present` blocks can be given `depth` blocks by [`StDit::deepened`].
///
/// # Errors
/// Returns an error if `depth` is 0 or not a multiple of `present`.
pub fn check_depth(depth: usize, present: usize) -> Result<(), SizeError> {
    if depth == 0 || present == 0 || !depth.is_multiple_of(present) {
        let reason =
            format!("depth is {depth}, expected a multiple of {present}, the present depth");
        return Err(SizeError::Config(reason));
    }
    Ok(())
}

/// Returns a block that adds nothing, to follow `block`.
fn added(block: &StDitBlock) -> StDitBlock {
    let mut copy = block.clone().map(&mut Copied { zero: false });
    let StDitBlock { base, attn_temp } = &mut copy;
    let branches =
        [&mut base.attn.proj, &mut attn_temp.proj, &mut base.cross_attn.proj, &mut base.mlp.fc2];
    for projection in branches {
        *projection = projection.clone().map(&mut Copied { zero: true });
    }
    copy
}

/// Separates the parameters of a clone from the original, which has the same ids; sets them to zero if `zero`.
struct Copied {
    zero: bool,
}

impl ModuleMapper for Copied {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let zero = self.zero;
        // Cut from the original, whose gradients it would share on a device with autodiff.
        let mut param = param.map(|value| {
            let is_trained = value.is_require_grad();
            let value = if zero { value.zeros_like() } else { value.detach() };
            value.set_require_grad(is_trained)
        });
        param.id = ParamId::new();
        param
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DenoiserConfig;
    use burn::{
        module::ModuleVisitor,
        tensor::{Device, Distribution, Tolerance},
    };
    use std::collections::HashSet;

    /// Sets every parameter, since fresh ones are partly zero.
    struct Random;

    impl ModuleMapper for Random {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let value = param.val().random_like(Distribution::Normal(0.0, 0.3));
            Param::initialized(param.id, value)
        }
    }

    #[derive(Default)]
    struct Ids(Vec<ParamId>);

    impl ModuleVisitor for Ids {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.id);
        }
    }

    fn model(depth: usize) -> StDit {
        let config = DenoiserConfig {
            hidden_size: 24,
            depth,
            num_heads: 2,
            caption_channels: 8,
            model_max_length: 5,
            ..DenoiserConfig::xl_2()
        };
        config.init::<StDit>(&Device::flex()).unwrap().map(&mut Random)
    }

    #[test]
    fn a_deeper_model_computes_the_same() {
        let model = model(2);
        let deeper = model.clone().deepened(6).unwrap();
        assert_eq!((deeper.blocks.len(), deeper.config().depth), (6, 6));
        let device = Device::flex();
        let normal = Distribution::Normal(0.0, 1.0);
        let latents = Tensor::<5>::random([2, 4, 3, 4, 6], normal, &device); // [B, C, T, H, W]
        let prompt = Tensor::<3>::random([2, 5, 8], normal, &device); // [B, L, C]
        let predict = |model: &StDit| {
            model.forward(latents.clone(), &[30.0, 700.0], prompt.clone(), None).into_data()
        };
        let (before, after) = (predict(&model), predict(&deeper));
        assert!(before.iter::<f32>().any(|value| value.abs() > 0.1));
        after.assert_approx_eq::<f32>(&before, Tolerance::absolute(1e-6));
        // Every parameter is trained by itself.
        let mut ids = Ids::default();
        deeper.visit(&mut ids);
        let different: HashSet<ParamId> = ids.0.iter().copied().collect();
        assert_eq!(different.len(), ids.0.len());
    }

    #[test]
    fn the_depth_must_be_a_multiple() {
        for depth in [0, 1, 3] {
            let error = model(2).deepened(depth).unwrap_err().to_string();
            assert!(error.contains(&format!("depth is {depth}")), "{error}");
        }
        assert_eq!(model(2).deepened(2).unwrap().blocks.len(), 2);
    }
}
