//! Scores of clips by models that the user supplies.

use super::FilterError;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What gives a clip a score: how pleasing it is, how much text lies over it.
pub trait Score: Sync {
    /// The column that the scores are written to.
    fn column(&self) -> &str;

    /// All that the scores depend on besides the clip; measures of other settings are never mixed
    /// with these.
    fn settings(&self) -> Value;

    /// Height and width that frames are brought to: their shorter sides scaled, their middles cut
    /// out.
    fn frame_size(&self) -> [usize; 2];

    /// The score of a clip from some of its frames, evenly spread, `[H, W, 3]` bytes each; at least
    /// one.
    ///
    /// # Errors
    /// One line, where it has none.
    fn score(&self, frames: &[&[u8]]) -> Result<f64, String>;
}

/// An ONNX model and how it is used. Its first input takes `[1, 3, height, width]`; a clip's score
/// is the mean of its frames'.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxSpec {
    /// The file.
    pub path: PathBuf,
    /// The column of its scores.
    pub column: String,
    /// Height and width of its input.
    pub size: [usize; 2],
    /// What is subtracted from red, green and blue in [0, 1].
    pub mean: [f32; 3],
    /// What they are divided by then.
    pub std: [f32; 3],
    /// Which of the model's outputs holds the score.
    pub output: usize,
    /// Which of that output's values it is.
    pub element: usize,
}

impl OnnxSpec {
    /// A model with the inputs of CLIP, as predictors of aesthetic scores take them: 224x224, its
    /// mean and standard deviation; the score is the first value of the first output.
    ///
    /// Source: openai/CLIP, `clip/clip.py`, `_transform`.
    pub fn clip(path: &Path, column: &str) -> Self {
        Self {
            path: path.into(),
            column: column.into(),
            size: [224, 224],
            mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
            output: 0,
            element: 0,
        }
    }

    /// Loads the model.
    ///
    /// # Errors
    /// Where it cannot be used, or the program was built without the feature `onnx`.
    pub fn load(&self) -> Result<Box<dyn Score>, FilterError> {
        let fail = |reason: String| FilterError::Model { path: self.path.clone(), reason };
        if self.size.contains(&0) {
            let [height, width] = self.size;
            return Err(fail(format!("its input cannot be {height}x{width}")));
        }
        if !self.std.iter().all(|std| std.is_normal()) || !self.mean.iter().all(|m| m.is_finite()) {
            let (mean, std) = (self.mean, self.std);
            return Err(fail(format!("its mean {mean:?} or standard deviation {std:?} is none")));
        }
        #[cfg(feature = "onnx")]
        let score = super::onnx::Onnx::load(self).map(|model| Box::new(model) as Box<dyn Score>);
        #[cfg(not(feature = "onnx"))]
        let score = Err("models need a program that was built with the feature `onnx`".to_string());
        score.map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_that_cannot_be_are_refused_in_one_line() {
        let spec = OnnxSpec::clip(Path::new("/none/aesthetic.onnx"), "aesthetic");
        for spec in [
            OnnxSpec { size: [0, 224], ..spec.clone() },
            OnnxSpec { std: [1.0, 0.0, 1.0], ..spec.clone() },
            spec,
        ] {
            let refused = spec.load().err().unwrap().to_string();
            assert!(refused.starts_with("/none/aesthetic.onnx: "), "{refused}");
            assert!(!refused.contains('\n'), "{refused}");
        }
    }
}
