//! The `model.json` of a finished run, by which the run's folder is a model to sample from.
//!
//! It is the format that `opensora::ModelFiles` reads. Its paths stay in the run's folder, as readers
//! of such files ask: text encoder and VAE that lie elsewhere get a symbolic link in it. Where links
//! cannot be created, the path is absolute, and `opensora sample` asks for `--allow-outside-paths`.
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

/// Returns the path from `root` to `path`, through a link of that name in `root` if `path` lies
/// elsewhere; `None` if there can be no such link.
fn below(root: &Path, path: &Path, link: &str) -> Option<PathBuf> {
    if let Ok(relative) = path.strip_prefix(root) {
        return Some(relative.into());
    }
    // A file is looked for together with what is beside it.
    let file = path.file_name().filter(|_| path.is_file());
    let folder = if file.is_some() { path.parent()? } else { path };
    create_link(folder, &root.join(link)).ok()?;
    let mut relative = PathBuf::from(link);
    relative.extend(file);
    Some(relative)
}

/// Creates a symbolic link, or replaces one; nothing else is replaced.
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
        // Something of that name that is no link stays.
        fs::remove_file(run.join("t5")).unwrap();
        fs::write(run.join("t5"), "mine").unwrap();
        part.vae = Some(run.join("vae"));
        let found = found(&part);
        assert_eq!(found["t5"], json!(folder.path().join("text")));
        assert_eq!(found["vae"], "vae");
        assert_eq!(fs::read_to_string(run.join("t5")).unwrap(), "mine");
    }
}
