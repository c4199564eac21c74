//! Scores of clips by the user's models.

use super::FilterError;
use crate::PrepareError;
use serde_json::Value;
use std::{
    error::Error,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

/// A model that scores clips, for example by aesthetics or by overlaid text.
pub trait Score: Send + Sync {
    /// Returns the column of the scores.
    fn column(&self) -> &str;

    /// Returns everything that the scores depend on besides the clip. Scores of other settings are never
    /// mixed with these.
    fn settings(&self) -> Value;

    /// Returns the height and width of the frames that the model gets: scaled on the shorter side and
    /// centre-cropped.
    fn frame_size(&self) -> [usize; 2];

    /// Returns the score of a clip from evenly spaced frames, at least one, of `[H, W, 3]` bytes each.
    ///
    /// # Errors
    /// Returns an error if the clip has no score. The step lists the clip and continues.
    fn score(&self, frames: &[&[u8]]) -> Result<f64, Box<dyn Error + Send + Sync>>;
}

/// An ONNX model and its preprocessing. The first input is `[1, 3, height, width]`; a clip's score is the
/// mean score of its frames.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxSpec {
    /// The model's file.
    pub path: PathBuf,
    /// Column of the scores.
    pub column: String,
    /// Height and width of the input.
    pub size: [usize; 2],
    /// Mean that is subtracted from red, green and blue in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation by which they are then divided.
    pub std: [f32; 3],
    /// Index of the output with the score.
    pub output: usize,
    /// Index of the score in that output.
    pub element: usize,
}

impl OnnxSpec {
    /// Returns a model with the preprocessing of CLIP, as predictors of aesthetic scores use it:
    /// 224x224, CLIP's mean and standard deviation. The score is the first value of the first output.
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
    /// Returns an error if the preprocessing is invalid, the file is not a usable model, or the feature
    /// `onnx` was not compiled in.
    pub fn load(&self) -> Result<Arc<dyn Score>, PrepareError> {
        let fail = |source: Box<dyn Error + Send + Sync>| {
            PrepareError::from(FilterError::Model { path: self.path.clone(), source })
        };
        if self.size.contains(&0) {
            let [height, width] = self.size;
            return Err(fail(format!("its input cannot be {height}x{width}").into()));
        }
        if !self.std.iter().all(|std| std.is_normal()) || !self.mean.iter().all(|m| m.is_finite()) {
            let (mean, std) = (self.mean, self.std);
            let reason = format!("mean {mean:?} or standard deviation {std:?} is invalid");
            return Err(fail(reason.into()));
        }
        #[cfg(feature = "onnx")]
        return match super::onnx::Onnx::load(self) {
            Ok(model) => Ok(Arc::new(model)),
            Err(error) => Err(fail(error)),
        };
        #[cfg(not(feature = "onnx"))]
        Err(PrepareError::Feature {
            path: self.path.clone(),
            what: "an ONNX model",
            feature: "onnx",
        })
    }
}

impl FromStr for OnnxSpec {
    type Err = PrepareError;

    /// Parses `aesthetic=model.onnx,size=224x224,mean=0.5/0.5/0.5,std=0.5/0.5/0.5,output=0,element=1`: a
    /// column and a file, then differences from [`clip`](Self::clip).
    fn from_str(text: &str) -> Result<Self, PrepareError> {
        parse(text).ok_or_else(|| {
            let expected = "COLUMN=FILE, then any of ,size=HxW ,mean=R/G/B ,std=R/G/B ,output=N \
                            ,element=N";
            PrepareError::Spec { field: "model", found: text.into(), expected }
        })
    }
}

fn parse(text: &str) -> Option<OnnxSpec> {
    let mut parts = text.split(',');
    let (column, path) = parts.next()?.split_once('=')?;
    if column.is_empty() || path.is_empty() {
        return None;
    }
    let mut spec = OnnxSpec::clip(Path::new(path), column);
    for part in parts {
        let (name, value) = part.split_once('=')?;
        match name {
            "size" => spec.size = numbers(value, 'x')?,
            "mean" => spec.mean = numbers(value, '/')?,
            "std" => spec.std = numbers(value, '/')?,
            "output" => spec.output = value.parse().ok()?,
            "element" => spec.element = value.parse().ok()?,
            _ => return None,
        }
    }
    Some(spec)
}

/// Parses N numbers separated by a character.
fn numbers<T: FromStr, const N: usize>(text: &str, between: char) -> Option<[T; N]> {
    let numbers = text.split(between).map(|number| number.parse().ok());
    numbers.collect::<Option<Vec<T>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_files::error_line;

    #[test]
    fn models_are_parsed_with_their_preprocessing() {
        let spec: OnnxSpec = "aesthetic=a/b=c.onnx".parse().unwrap();
        assert_eq!(spec, OnnxSpec::clip(Path::new("a/b=c.onnx"), "aesthetic"));
        let text = "text=t.onnx,size=8x6,mean=0.5/0/1,std=1/2/3,output=1,element=2";
        let spec: OnnxSpec = text.parse().unwrap();
        assert_eq!((spec.size, spec.mean, spec.std), ([8, 6], [0.5, 0.0, 1.0], [1.0, 2.0, 3.0]));
        assert_eq!((spec.output, spec.element), (1, 2));
        for wrong in ["", "a.onnx", "=a.onnx", "a=", "a=b,size=8", "a=b,mean=1/2", "a=b,depth=1"] {
            let refused = wrong.parse::<OnnxSpec>().unwrap_err().to_string();
            assert!(refused.starts_with(&format!("model = {wrong}: expected COLUMN=FILE")));
        }
    }

    #[test]
    fn invalid_models_are_rejected_in_one_line() {
        let spec = OnnxSpec::clip(Path::new("/none/aesthetic.onnx"), "aesthetic");
        for spec in [
            OnnxSpec { size: [0, 224], ..spec.clone() },
            OnnxSpec { std: [1.0, 0.0, 1.0], ..spec.clone() },
            spec,
        ] {
            let refused = error_line(&spec.load().err().unwrap());
            assert!(refused.starts_with("/none/aesthetic.onnx: "), "{refused}");
            assert!(!refused.contains('\n'), "{refused}");
        }
    }
}
