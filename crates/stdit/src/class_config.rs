//! The configuration of the models with a class label: DiT and Latte.

use crate::config::{self, SizeError};
use burn::tensor::Device;
use opensora_checkpoint::PublishedModel;
use serde::{Deserialize, Serialize};

/// Configuration of a DiT or a Latte, under the reference's argument names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassConfig {
    /// Channels of the latents.
    pub in_channels: usize,
    /// Patch size `(t, h, w)`; each patch is one token.
    pub patch_size: [usize; 3],
    /// Width of the blocks.
    pub hidden_size: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_heads: usize,
    /// Width of a block's MLP as a multiple of `hidden_size`.
    pub mlp_ratio: f64,
    /// Probability of label dropout in training; if above zero, the model has a null class for guidance.
    pub class_dropout_prob: f64,
    /// True if the model predicts the variance as well, i.e. the output has `2 * in_channels` channels.
    pub learn_sigma: bool,
    /// The classes, written `label_N`.
    pub condition: LabelCondition,
    /// True if DiT adds no temporal position table, as its image models do not. Latte adds its table
    /// in any case.
    pub no_temporal_pos_emb: bool,
}

impl Default for ClassConfig {
    /// The sizes of DiT-XL/2, with the reference's default of temporal positions.
    fn default() -> Self {
        Self { no_temporal_pos_emb: false, ..Self::dit_xl_2() }
    }
}

impl ClassConfig {
    /// DiT-XL/2 on ImageNet: 28 blocks of width 1152 with 16 heads, 1000 classes.
    ///
    /// Source: hpcaitech/Open-Sora v1.0.0, `configs/dit/inference/1x256x256-class.py`.
    pub fn dit_xl_2() -> Self {
        Self {
            in_channels: 4,
            patch_size: [1, 2, 2],
            hidden_size: 1152,
            depth: 28,
            num_heads: 16,
            mlp_ratio: 4.0,
            class_dropout_prob: 0.1,
            learn_sigma: true,
            condition: LabelCondition { num_classes: 1000 },
            no_temporal_pos_emb: true,
        }
    }

    /// Latte-XL/2 on UCF101: the blocks of DiT-XL/2, 101 classes.
    ///
    /// Source: hpcaitech/Open-Sora v1.0.0, `configs/latte/inference/16x256x256-class.py`.
    pub fn latte_xl_2() -> Self {
        Self {
            condition: LabelCondition { num_classes: 101 },
            no_temporal_pos_emb: false,
            ..Self::dit_xl_2()
        }
    }

    /// Returns the number of classes, the null class not counted.
    pub fn num_classes(&self) -> usize {
        self.condition.num_classes
    }

    /// Returns the label of the null class, if the model has one.
    pub fn null_class(&self) -> Option<usize> {
        (self.class_dropout_prob > 0.0).then_some(self.num_classes())
    }

    /// Returns the rows of the label table: the classes, and the null class if there is one.
    pub fn label_rows(&self) -> usize {
        self.num_classes() + usize::from(self.null_class().is_some())
    }

    /// Checks that every label is a class of the model.
    ///
    /// # Errors
    /// Returns an error if a label is not a class of the model.
    pub fn check_labels(&self, labels: &[usize]) -> Result<(), SizeError> {
        let num_classes = self.num_classes();
        match labels.iter().find(|&&label| label >= num_classes) {
            Some(&label) => Err(SizeError::Label { label, num_classes }),
            None => Ok(()),
        }
    }

    /// Returns the channels of the output: `eps`, and the variance interpolation if it is predicted.
    pub fn out_channels(&self) -> usize {
        if self.learn_sigma { 2 * self.in_channels } else { self.in_channels }
    }

    /// Returns the width of a block's MLP.
    pub fn mlp_size(&self) -> usize {
        (self.hidden_size as f64 * self.mlp_ratio) as usize
    }

    /// Returns the tokens of a clip along (t, h, w) for latents of `size` (frames, height, width).
    ///
    /// # Errors
    /// Returns an error if the patch does not divide the size, or a frame has unequal numbers of tokens
    /// along its axes: the reference builds the position table from the height alone.
    pub fn grid(&self, size: [usize; 3]) -> Result<[usize; 3], SizeError> {
        let patch_size = self.patch_size;
        let grid @ [_, rows, columns] = config::grid(size, patch_size)?;
        if rows != columns {
            return Err(SizeError::Square { size, patch_size });
        }
        Ok(grid)
    }

    /// Returns a model with fresh weights. The type of the model is chosen by the caller:
    /// [`Dit`](crate::Dit) or [`Latte`](crate::Latte).
    /// Weights are allocated when they are first used or loaded.
    ///
    /// # Errors
    /// Returns an error if a value of the configuration is out of range.
    pub fn init<M>(&self, device: &Device) -> Result<M, SizeError>
    where
        M: PublishedModel<Config = Self, ConfigError = SizeError>,
    {
        M::from_config(self, device)
    }

    /// Checks that a model of this configuration can be built without a panic.
    ///
    /// # Errors
    /// Returns an error if a value is out of range.
    pub fn validate(&self) -> Result<(), SizeError> {
        config::check_sizes(
            self.patch_size,
            [self.in_channels, self.hidden_size, self.depth, self.num_heads],
            self.mlp_ratio,
            &[("number of classes", self.num_classes())],
        )?;
        let probability = self.class_dropout_prob;
        if !(0.0..=1.0).contains(&probability) {
            let text = format!("class_dropout_prob is {probability}, expected 0 to 1");
            return Err(SizeError::Config(text));
        }
        Ok(())
    }
}

/// The condition of a model with `N` class labels, written `label_N` in configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelCondition {
    /// Number of classes, the null class not counted.
    pub num_classes: usize,
}

impl TryFrom<String> for LabelCondition {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = text.strip_prefix("label_").and_then(|number| number.parse().ok());
        let num_classes = number.ok_or_else(|| {
            format!("condition is {text:?}, expected label_N with the number of classes")
        })?;
        Ok(Self { num_classes })
    }
}

impl From<LabelCondition> for String {
    fn from(condition: LabelCondition) -> Self {
        format!("label_{}", condition.num_classes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_read_from_the_condition() {
        let read = |condition: &str| {
            serde_json::from_value::<ClassConfig>(serde_json::json!({"condition": condition}))
        };
        let config = read("label_101").unwrap();
        assert_eq!((config.num_classes(), config.null_class()), (101, Some(101)));
        assert_eq!(config.label_rows(), 102);
        let bare = ClassConfig { class_dropout_prob: 0.0, ..config };
        assert_eq!((bare.null_class(), bare.label_rows()), (None, 101));
        for condition in ["text", "label_", "label_x", "label_-1", "101"] {
            let error = read(condition).unwrap_err().to_string();
            assert!(error.contains("expected label_N"), "{error}");
        }
        let written = serde_json::to_value(ClassConfig::dit_xl_2()).unwrap();
        assert_eq!(written["condition"], "label_1000");
    }

    #[test]
    fn labels_and_sizes_that_do_not_fit_are_rejected() {
        let config = ClassConfig::latte_xl_2();
        assert_eq!(config.check_labels(&[0, 100]), Ok(()));
        let label = SizeError::Label { label: 101, num_classes: 101 };
        assert_eq!(config.check_labels(&[3, 101]), Err(label));
        assert_eq!(config.grid([16, 32, 32]), Ok([16, 16, 16]));
        assert!(matches!(config.grid([16, 32, 30]), Err(SizeError::Square { .. })));
        assert!(matches!(config.grid([16, 32, 31]), Err(SizeError::Patches { .. })));
        // A patch that is not square makes a square grid of another frame.
        let oblong = ClassConfig { patch_size: [1, 2, 4], ..config };
        assert_eq!(oblong.grid([2, 8, 16]), Ok([2, 4, 4]));
    }

    #[test]
    fn invalid_configs_are_rejected() {
        let ok = ClassConfig::dit_xl_2();
        assert_eq!(ok.validate(), Ok(()));
        let classes = |num_classes| LabelCondition { num_classes };
        for bad in [
            ClassConfig { condition: classes(0), ..ok.clone() },
            ClassConfig { condition: classes(usize::MAX), ..ok.clone() },
            ClassConfig { class_dropout_prob: f64::NAN, ..ok.clone() },
            ClassConfig { class_dropout_prob: 1.5, ..ok.clone() },
            ClassConfig { hidden_size: 1150, ..ok.clone() },
            ClassConfig { patch_size: [1 << 20; 3], ..ok.clone() },
            ClassConfig { mlp_ratio: 1e-9, ..ok.clone() },
        ] {
            assert!(matches!(bad.validate(), Err(SizeError::Config(_))), "{bad:?}");
        }
    }
}
