//! The `model.json` of a finished run, which makes the run's folder a model to sample from.
//!
//! `opensora::ModelFiles` reads this format. Its readers accept only paths inside the run's folder,
//! so text encoder and VAE in other folders get a symbolic link in it. If links cannot be created,
//! the path is absolute, and `opensora sample` needs `--allow-outside-paths`.
//!
//! | field | contents |
//! |---|---|
//! | `name` | name of the run's folder |
//! | `denoiser` | weights of the STDiT: `stdit/ema.safetensors` |
//! | `denoiser_config` | sizes and position scales, as in `stdit/config.json` |
//! | `prediction_type` | prediction target: `epsilon` or `v_prediction` |
//! | `t5`, `vae` | folder of the text encoder; folder or file of the VAE; often links |
//! | `num_frames`, `image_size` | frames, and height and width in pixels, of a clip |
//! | `fps` | frames per second of a clip |

use crate::{error::TrainError, recipe::StDitPart};
use opensora_data::ClipSpec;
use opensora_diffusion::PredictionType;
use opensora_stdit::DenoiserConfig;
use serde::Serialize;
use std::{
    fs, io,
    path::{Path, PathBuf, absolute},
};

/// Name of the file in a run's folder.
pub const FILE: &str = "model.json";

/// Frames per second of the videos that the published models were trained on. Clips take every
/// `frame_interval`-th frame.
const PUBLISHED_FPS: f64 = 24.0;

/// Contents of the `model.json` that describes a trained model.
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

/// Describes the moving average of a run in `folder`. Returns `None` if the run has no text encoder
/// or no VAE. `fps` are the frames per second of its clips, if known.
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
    let named = |path: &Path, link: &str| -> Result<PathBuf, TrainError> {
        let path = absolute(path).map_err(TrainError::io(path))?;
        Ok(below(&root, &path, link).unwrap_or(path))
    };
    let name = root.file_name().unwrap_or(root.as_os_str());
    Ok(Some(Description {
        name: name.to_string_lossy().into_owned(),
        denoiser: "stdit/ema.safetensors".into(),
        denoiser_config: &part.config,
        prediction_type: part.loss.prediction_type,
        t5: named(t5, "t5")?,
        vae: named(vae, "vae")?,
        num_frames: clip.num_frames,
        image_size: clip.image_size,
        fps: fps.unwrap_or(PUBLISHED_FPS / clip.frame_interval as f64),
    }))
}

/// Returns the path from `root` to `path`, through a link in `root` if `path` is outside. Returns
/// `None` if the link cannot be created.
fn below(root: &Path, path: &Path, link: &str) -> Option<PathBuf> {
    if let Ok(relative) = path.strip_prefix(root) {
        return Some(relative.into());
    }
    // The link is to the folder, since readers of a file also read files beside it.
    let file = path.file_name().filter(|_| path.is_file());
    let folder = if file.is_some() { path.parent()? } else { path };
    create_link(folder, &root.join(link)).ok()?;
    let mut relative = PathBuf::from(link);
    relative.extend(file);
    Some(relative)
}

/// Creates a symbolic link. Replaces an existing link, but no other file.
fn create_link(target: &Path, link: &Path) -> io::Result<()> {
    if fs::symlink_metadata(link).is_ok_and(|found| found.is_symlink()) {
        fs::remove_file(link)?;
    }
    #[cfg(unix)]
    return std::os::unix::fs::symlink(target, link);
    #[cfg(not(unix))]
    Err(io::Error::new(io::ErrorKind::Unsupported, target.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn without_links_other_paths_are_absolute() {
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

    #[cfg(unix)]
    #[test]
    fn other_paths_are_linked_into_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let (run, vae) = (folder.path().join("run"), folder.path().join("autoencoder"));
        fs::create_dir(&run).unwrap();
        fs::create_dir(&vae).unwrap();
        fs::write(vae.join("weights.pt"), "weights").unwrap();
        let mut part = StDitPart {
            t5: Some(folder.path().join("text")),
            vae: Some(vae.join("weights.pt")),
            ..StDitPart::default()
        };
        let found = |part: &StDitPart| {
            let found = describe(&run, part, &ClipSpec::default(), None).unwrap();
            serde_json::to_value(found).unwrap()
        };
        // Again, as after a resume.
        for _ in 0..2 {
            let found = found(&part);
            assert_eq!((&found["t5"], &found["vae"]), (&json!("t5"), &json!("vae/weights.pt")));
            assert_eq!(fs::read_to_string(run.join("vae/weights.pt")).unwrap(), "weights");
        }
        // A file of that name that is not a link is kept.
        fs::remove_file(run.join("t5")).unwrap();
        fs::write(run.join("t5"), "mine").unwrap();
        part.vae = Some(run.join("vae"));
        let found = found(&part);
        assert_eq!(found["t5"], json!(folder.path().join("text")));
        assert_eq!(found["vae"], "vae");
        assert_eq!(fs::read_to_string(run.join("t5")).unwrap(), "mine");
    }
}
