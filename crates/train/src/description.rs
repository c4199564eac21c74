//! The `model.json` of a finished run, by which the run's folder is a model to sample from.
//!
//! It is the format that `opensora::ModelFiles` reads. Paths are relative to the run's folder if
//! they lie in it, and absolute otherwise.
//!
//! | field | contents |
//! |---|---|
//! | `name` | name of the run's folder |
//! | `denoiser` | weights of the STDiT: `stdit/ema.safetensors` |
//! | `denoiser_config` | sizes and position scales, as in `stdit/config.json` |
//! | `prediction_type` | prediction target: `epsilon` or `v_prediction` |
//! | `t5`, `vae` | folder of the text encoder; folder or file of the VAE |
//! | `num_frames`, `image_size` | frames, and height and width in pixels, of a clip |
//! | `fps` | frames per second of a clip |

use crate::{error::TrainError, recipe::StDitPart};
use opensora_data::ClipSpec;
use opensora_diffusion::PredictionType;
use opensora_stdit::DenoiserConfig;
use serde::Serialize;
use std::path::{Path, PathBuf, absolute};

/// Its name in a run's folder.
pub const FILE: &str = "model.json";

/// Frames per second of the videos that the published models were trained on, before clips took
/// one of `frame_interval` frames.
const PUBLISHED_FPS: f64 = 24.0;

/// What `model.json` holds.
#[derive(Debug, Serialize)]
pub struct Description<'a> {
    name: String,
    denoiser: PathBuf,
    denoiser_config: &'a DenoiserConfig,
    prediction_type: PredictionType,
    t5: PathBuf,
    vae: PathBuf,
    num_frames: usize,
    /// Height and width.
    image_size: [usize; 2],
    fps: f64,
}

/// Describes the moving average of a run in `folder`. Returns `None` if the run knows no text
/// encoder or no VAE. `fps` are the frames per second of its clips, if they are known.
///
/// # Errors
/// Returns an error if the working directory is needed and unknown.
pub fn describe<'a>(
    folder: &Path,
    part: &'a StDitPart,
    clip: &ClipSpec,
    fps: Option<f64>,
) -> Result<Option<Description<'a>>, TrainError> {
    let (Some(t5), Some(vae)) = (&part.t5, &part.vae) else { return Ok(None) };
    let root = absolute(folder).map_err(TrainError::io(folder))?;
    let named = |path: &Path| -> Result<PathBuf, TrainError> {
        let path = absolute(path).map_err(TrainError::io(path))?;
        Ok(path.strip_prefix(&root).map(Path::to_path_buf).unwrap_or(path))
    };
    let name = root.file_name().unwrap_or(root.as_os_str());
    Ok(Some(Description {
        name: name.to_string_lossy().into_owned(),
        denoiser: "stdit/ema.safetensors".into(),
        denoiser_config: &part.config,
        prediction_type: part.loss.prediction_type,
        t5: named(t5)?,
        vae: named(vae)?,
        num_frames: clip.num_frames,
        image_size: clip.image_size,
        fps: fps.unwrap_or(PUBLISHED_FPS / clip.frame_interval as f64),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_in_the_run_are_relative_and_others_absolute() {
        let root = absolute("some/run").unwrap();
        let part = StDitPart {
            t5: Some("some/run/t5".into()),
            vae: Some("some/vae".into()),
            ..StDitPart::default()
        };
        let clip = ClipSpec::default();
        let found = describe(Path::new("some/run"), &part, &clip, None).unwrap();
        let found = serde_json::to_value(found).unwrap();
        assert_eq!(found["name"], "run");
        assert_eq!(found["t5"], "t5");
        assert_eq!(found["vae"], json!(root.parent().unwrap().join("vae")));
        assert_eq!((&found["fps"], &found["num_frames"]), (&json!(8.0), &json!(16)));
        let measured = describe(&root, &part, &clip, Some(10.0)).unwrap();
        assert_eq!(serde_json::to_value(measured).unwrap()["fps"], 10.0);

        let cached = StDitPart { t5: None, ..part };
        assert!(describe(&root, &cached, &clip, None).unwrap().is_none());
    }
}
