//! Runs ONNX models in this process, with tract.

use super::score::{OnnxSpec, Score};
use opensora_files::hex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{error::Error, sync::Arc};
use tract_onnx::prelude::*;

/// A loaded ONNX model that scores clips.
pub(crate) struct Onnx {
    spec: OnnxSpec,
    /// SHA-256 of the file, which identifies the model wherever its file is.
    digest: String,
    plan: Arc<TypedRunnableModel>,
}

impl Onnx {
    pub(crate) fn load(spec: &OnnxSpec) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let bytes = std::fs::read(&spec.path)?;
        let [height, width] = spec.size;
        let plan = tract_onnx::onnx()
            .model_for_read(&mut bytes.as_slice())
            .and_then(|model| model.with_input_fact(0, f32::fact([1, 3, height, width]).into()))
            .and_then(InferenceModelExt::into_optimized)?;
        let outputs = plan.outputs.len();
        if spec.output >= outputs {
            return Err(format!("it has {outputs} outputs, found output {}", spec.output).into());
        }
        let plan = plan.into_runnable()?;
        let digest = hex(&Sha256::digest(&bytes));
        Ok(Self { spec: spec.clone(), digest, plan })
    }

    /// Returns the score of one frame.
    fn frame(&self, rgb: &[u8]) -> TractResult<Option<f64>> {
        let OnnxSpec { size: [height, width], mean, std, output, element, .. } = self.spec;
        let planes = (0..3).flat_map(|channel| {
            let bytes = rgb.iter().skip(channel).step_by(3);
            bytes.map(move |&byte| (f32::from(byte) / 255.0 - mean[channel]) / std[channel])
        });
        let planes: Vec<f32> = planes.collect();
        let input = Tensor::from_shape(&[1, 3, height, width], &planes)?;
        let outputs = self.plan.run(tvec![input.into()])?;
        let values = outputs[output].cast_to::<f32>()?;
        let value = values.to_plain_array_view::<f32>()?.iter().nth(element).copied();
        Ok(value.map(f64::from))
    }
}

impl Score for Onnx {
    fn column(&self) -> &str {
        &self.spec.column
    }

    fn settings(&self) -> Value {
        let OnnxSpec { column, size, mean, std, output, element, .. } = &self.spec;
        json!({
            "column": column, "sha256": self.digest, "size": size, "mean": mean, "std": std,
            "output": output, "element": element,
        })
    }

    fn frame_size(&self) -> [usize; 2] {
        self.spec.size
    }

    fn score(&self, frames: &[&[u8]]) -> Result<f64, Box<dyn Error + Send + Sync>> {
        let mut sum = 0.0;
        for rgb in frames {
            let score = self.frame(rgb)?;
            sum += score.ok_or_else(|| {
                format!("output {} has no value {}", self.spec.output, self.spec.element)
            })?;
        }
        Ok(sum / frames.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_files::error_line;
    use std::path::Path;

    /// Encodes a protobuf field of bytes.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend(bytes);
        out
    }

    /// Encodes a protobuf field of a small number.
    fn small(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    /// An ONNX model of one node: the mean over each channel, `[1, 3, H, W]` to `[1, 3, 1, 1]`.
    fn channel_means([height, width]: [u8; 2]) -> Vec<u8> {
        let node = [field(1, b"x"), field(2, b"y"), field(4, b"GlobalAveragePool")].concat();
        let value = |name: &[u8], shape: [u8; 4]| {
            let dims = shape.map(|side| field(1, &small(1, side))).concat();
            let tensor = [small(1, 1), field(2, &dims)].concat();
            [field(1, name), field(2, &field(1, &tensor))].concat()
        };
        let graph = [
            field(1, &node),
            field(2, b"g"),
            field(11, &value(b"x", [1, 3, height, width])),
            field(12, &value(b"y", [1, 3, 1, 1])),
        ];
        let opset = field(8, &small(2, 13));
        [small(1, 8), field(7, &graph.concat()), opset].concat()
    }

    #[test]
    fn a_model_scores_frames() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("means.onnx");
        std::fs::write(&path, channel_means([2, 4])).unwrap();
        let spec = OnnxSpec {
            size: [2, 4],
            mean: [0.0, 0.5, 0.0],
            std: [1.0, 0.5, 1.0],
            element: 1,
            ..OnnxSpec::clip(&path, "green")
        };
        let model = spec.load().unwrap();
        assert_eq!((model.column(), model.frame_size()), ("green", [2, 4]));
        // Green 255 and 0 are 1 and -1 after mean and standard deviation.
        let (green, black) = ([9, 255, 0].repeat(8), vec![0; 24]);
        assert!((model.score(&[&green]).unwrap() - 1.0).abs() < 1e-6);
        assert!(model.score(&[&green, &black]).unwrap().abs() < 1e-6);
        let red = OnnxSpec { element: 0, ..spec.clone() }.load().unwrap();
        assert!((red.score(&[&green]).unwrap() - 9.0 / 255.0).abs() < 1e-6);
        assert_ne!(red.settings(), model.settings());

        for (wrong, words) in [
            (OnnxSpec { output: 1, ..spec.clone() }, "it has 1 outputs, found output 1"),
            (OnnxSpec { path: Path::new("/none").into(), ..spec.clone() }, "/none: "),
        ] {
            let refused = error_line(&wrong.load().err().unwrap());
            assert!(refused.contains(words), "{refused}");
        }
        let absent = OnnxSpec { element: 3, ..spec }.load().unwrap().score(&[&green]).unwrap_err();
        assert_eq!(absent.to_string(), "output 0 has no value 3");
        std::fs::write(&path, b"no model").unwrap();
        let refused = error_line(&OnnxSpec::clip(&path, "x").load().err().unwrap());
        assert!(refused.contains("means.onnx: ") && !refused.contains('\n'), "{refused}");
    }
}
