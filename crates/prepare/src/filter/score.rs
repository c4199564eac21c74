//! Scores of clips by models that the user supplies.

use super::FilterError;
use crate::PrepareError;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

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
        return match super::onnx::Onnx::load(self) {
            Ok(model) => Ok(Box::new(model)),
            Err(reason) => Err(fail(reason)),
        };
        #[cfg(not(feature = "onnx"))]
        Err(PrepareError::Feature {
            path: self.path.clone(),
            what: "an ONNX model",
            feature: "onnx",
        }
        .into())
    }
}

impl FromStr for OnnxSpec {
    type Err = FilterError;

    /// `aesthetic=model.onnx,size=224x224,mean=0.5/0.5/0.5,std=0.5/0.5/0.5,output=0,element=1`: a
    /// column and a file, then whatever differs from [`clip`](Self::clip).
    fn from_str(text: &str) -> Result<Self, FilterError> {
        parse(text).ok_or_else(|| {
            let expected = "COLUMN=FILE, then any of ,size=HxW ,mean=R/G/B ,std=R/G/B ,output=N \
                            ,element=N";
            PrepareError::Spec { field: "model", found: text.into(), expected }.into()
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

/// So many numbers with a sign between them.
fn numbers<T: FromStr, const N: usize>(text: &str, between: char) -> Option<[T; N]> {
    let numbers = text.split(between).map(|number| number.parse().ok());
    numbers.collect::<Option<Vec<T>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_in_one_word() {
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
