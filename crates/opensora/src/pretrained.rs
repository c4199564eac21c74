//! Fetches models from the Hugging Face hub by name.

use crate::{
    ClassFiles, ClassToVideo, ModelError, ModelFiles, PipelineError, PipelineOptions, TextToVideo,
    class_files::class_of,
    hub::{Files, Hub, HubError, Lookup, Observer, Repository, Settings, Wanted},
    model_files::{PartPaths, T5_FOLDERS, VAE_FOLDERS, architecture, find_local},
    presets::{self, Origin, PRESETS, Preset},
};
use burn::tensor::Device;
use std::path::{Path, PathBuf};

/// Default branch of repositories.
const MAIN: &str = "main";

/// Where the files of a model come from, and the options of its pipeline.
#[derive(Debug, Clone)]
pub struct Pretrained {
    /// The hub and its cache.
    pub hub: Hub,
    /// Branch, tag or commit of the model's own repository. With any other than `main`, the denoiser of a
    /// preset is not taken from `pretrained_models`, because local files have no revision.
    pub revision: String,
    /// When the hub is queried.
    pub lookup: Lookup,
    /// Local paths of parts. With a `weights_dir`, the files of a preset are only searched there.
    pub parts: PartPaths,
    /// The checkpoint of a repository that has several.
    pub file: Option<String>,
    /// Dtypes and memory of the pipeline.
    pub options: PipelineOptions,
}

/// Error for a model that cannot be found, fetched or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PretrainedError {
    /// The model or one of its files does not exist.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file cannot be fetched.
    #[error("{model}: its files cannot be fetched")]
    Hub {
        /// The model.
        model: String,
        /// The cause.
        source: HubError,
    },
    /// A revision for a preset whose file is not in a repository.
    #[error(
        "{preset}: a revision is for repositories of the hub, the file of this preset is {address}"
    )]
    Revision {
        /// The preset.
        preset: &'static str,
        /// The address of its file.
        address: &'static str,
    },
    /// A repository with several checkpoints.
    #[error("{repository} has several models: name one of {}", names.join(", "))]
    Ambiguous {
        /// The repository.
        repository: String,
        /// The presets of its checkpoints.
        names: Vec<&'static str>,
    },
    /// A repository in another layout.
    #[error(
        "{repository} is not a model in a known layout: expected a model.json in it, or one of the \
         presets; fetch its files with `opensora weights fetch {repository}` and give the paths of the parts"
    )]
    Layout {
        /// The repository.
        repository: String,
    },
    /// The files do not fit each other.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

impl Pretrained {
    /// Uses the hub and the cache of the environment, the branch `main` and default options.
    ///
    /// # Errors
    /// Returns an error if an environment variable has an invalid value.
    pub fn from_env() -> Result<Self, HubError> {
        Ok(Self::new(Hub::from_env()?))
    }

    /// Uses the branch `main` and default options.
    pub fn new(hub: Hub) -> Self {
        Self {
            hub,
            revision: MAIN.into(),
            lookup: Lookup::CacheFirst,
            parts: PartPaths::default(),
            file: None,
            options: PipelineOptions::default(),
        }
    }

    /// Finds a model that follows prompts and fetches its missing files.
    ///
    /// `model` is a preset, a path, or a repository of the hub: the repository of a preset (with
    /// [`file`](Self::file), if it has several checkpoints) or one with a `model.json`.
    ///
    /// # Errors
    /// Returns an error if there is no such model, it follows labels, it has no revisions and one other than
    /// `main` is set, or a file cannot be fetched.
    pub fn text_files(
        &self,
        model: &str,
        observer: &mut dyn Observer,
    ) -> Result<ModelFiles, PretrainedError> {
        match self.find(model, observer)? {
            Found::Preset(preset) => {
                architecture(preset)?;
                let t5 = self.part(&self.parts.t5, &T5_FOLDERS, presets::TEXT_ENCODER, observer);
                let t5 = t5.map_err(failed(model))?;
                let (denoiser, vae) = self.denoiser_and_vae(preset, model, observer)?;
                Ok(ModelFiles::of_preset(preset, denoiser, t5, vae)?)
            }
            Found::Local(model) => Ok(ModelFiles::resolve(model, &self.parts)?),
            Found::Folder(folder) => Ok(ModelFiles::open_with(&folder, &self.parts)?),
        }
    }

    /// Finds a model that follows class labels and fetches its missing files; see
    /// [`text_files`](Self::text_files) for `model`.
    ///
    /// # Errors
    /// Returns an error if there is no such model, it follows prompts, it has no revisions and one other than
    /// `main` is set, or a file cannot be fetched.
    pub fn class_files(
        &self,
        model: &str,
        observer: &mut dyn Observer,
    ) -> Result<ClassFiles, PretrainedError> {
        match self.find(model, observer)? {
            Found::Preset(preset) => {
                class_of(preset)?;
                let (denoiser, vae) = self.denoiser_and_vae(preset, model, observer)?;
                Ok(ClassFiles::of_preset(preset, denoiser, vae)?)
            }
            Found::Local(model) => Ok(ClassFiles::resolve(model, &self.parts)?),
            Found::Folder(folder) => Ok(ClassFiles::open_with(&folder, &self.parts)?),
        }
    }

    /// Returns the denoiser of a preset as [`text_files`](Self::text_files) and
    /// [`class_files`](Self::class_files) find it, without fetching it: in the folder of weights, else in the
    /// cache. Returns `None` if it is in neither.
    ///
    /// # Errors
    /// Returns an error if the preset has no revisions and one other than `main` is set, or if the cache cannot
    /// be read.
    pub fn find_denoiser(&self, preset: &Preset) -> Result<Option<PathBuf>, PretrainedError> {
        self.check_revision(preset)?;
        if self.parts.weights_dir.is_some() {
            return Ok(find_local(&self.parts, preset.files));
        }
        let settings = Settings { offline: true, ..self.hub.settings().clone() };
        let offline = Self { hub: Hub::new(settings), ..self.clone() };
        match offline.denoiser(preset, &mut ()) {
            Ok(path) => Ok(Some(path)),
            Err(HubError::Offline { .. }) => Ok(None),
            Err(source) => Err(failed(preset.name)(source)),
        }
    }

    /// Checks that the preset has the revision, if it is not the default one.
    fn check_revision(&self, preset: &Preset) -> Result<(), PretrainedError> {
        match preset.origin {
            Origin::Url(address) if self.revision != MAIN => {
                Err(PretrainedError::Revision { preset: preset.name, address })
            }
            _ => Ok(()),
        }
    }

    fn find<'a>(
        &self,
        model: &'a str,
        observer: &mut dyn Observer,
    ) -> Result<Found<'a>, PretrainedError> {
        // With a folder of weights, nothing is fetched.
        let is_offline = self.parts.weights_dir.is_some();
        let of_preset = |preset: &'static Preset| match is_offline {
            true => Found::Local(preset.name),
            false => Found::Preset(preset),
        };
        if let Some(preset) = Preset::find(model) {
            self.check_revision(preset)?;
            return Ok(of_preset(preset));
        }
        if Path::new(model).exists() || !model.contains('/') || has_file_ending(model) {
            return Ok(Found::Local(model));
        }
        // Neither a path nor a repository: reported as an unknown model.
        let Ok(repository) = model.parse::<Repository>() else { return Ok(Found::Local(model)) };
        let published = in_repository(model, self.file.as_deref());
        match published[..] {
            [preset] => return Ok(of_preset(preset)),
            [] if is_offline => return Ok(Found::Local(model)),
            [] => {}
            _ => {
                let names = published.iter().map(|preset| preset.name).collect();
                return Err(PretrainedError::Ambiguous { repository: model.into(), names });
            }
        }
        let fetch = |files: &Files, observer: &mut dyn Observer| {
            let wanted = Wanted { repository: &repository, revision: &self.revision, files };
            self.hub.fetch(&wanted, self.lookup, observer)
        };
        match fetch(&Files::Named(vec!["model.json".into()]), observer) {
            Ok(_) => {}
            Err(HubError::FileNotFound { .. }) => {
                return Err(PretrainedError::Layout { repository: model.into() });
            }
            Err(source) => return Err(failed(model)(source)),
        }
        let snapshot = fetch(&Files::All, observer).map_err(failed(model))?;
        Ok(Found::Folder(snapshot.folder))
    }

    fn denoiser_and_vae(
        &self,
        preset: &Preset,
        model: &str,
        observer: &mut dyn Observer,
    ) -> Result<(PathBuf, PathBuf), PretrainedError> {
        let vae = self.part(&self.parts.vae, &VAE_FOLDERS, presets::VAE, observer);
        let vae = vae.map_err(failed(model))?;
        let denoiser = self.denoiser(preset, observer).map_err(failed(model))?;
        Ok((denoiser, vae))
    }

    /// Returns the denoiser of a preset: from the folder of weights, else from the cache.
    fn denoiser(&self, preset: &Preset, observer: &mut dyn Observer) -> Result<PathBuf, HubError> {
        // A local file may be of any revision.
        if self.revision == MAIN
            && let Some(path) = find_local(&self.parts, preset.files)
        {
            return Ok(path);
        }
        match preset.origin {
            Origin::Url(url) => self.hub.fetch_address(url, observer),
            Origin::Hub { repository, file } => {
                let files = Files::Named(vec![file.into()]);
                let (repository, revision) = (&repository.parse()?, self.revision.as_str());
                let wanted = Wanted { repository, revision, files: &files };
                Ok(self.hub.fetch(&wanted, self.lookup, observer)?.folder.join(file))
            }
        }
    }

    /// Returns the folder of a part: the given one, one in the folder of weights, or one of the cache.
    fn part(
        &self,
        given: &Option<PathBuf>,
        names: &[&str],
        repository: &str,
        observer: &mut dyn Observer,
    ) -> Result<PathBuf, HubError> {
        if let Some(path) = given.clone().or_else(|| find_local(&self.parts, names)) {
            return Ok(path);
        }
        let has_tokenizer = repository == presets::TEXT_ENCODER;
        let repository = &repository.parse()?;
        let wanted = Wanted { repository, revision: MAIN, files: &Files::Model };
        let folder = self.hub.fetch(&wanted, self.lookup, observer)?.folder;
        // Other programs may have cached the weights only.
        let has = |name: &str| folder.join(name).is_file();
        let tokenizer = !has_tokenizer || has("spiece.model") || has("tokenizer.json");
        if has("config.json") && tokenizer || self.hub.settings().offline {
            return Ok(folder);
        }
        Ok(self.hub.fetch(&wanted, Lookup::Ask, observer)?.folder)
    }
}

/// Returns true for names with the extension of a file of weights, such as `folder/x.pth`, which are never
/// taken as repositories.
pub fn has_file_ending(name: &str) -> bool {
    const ENDINGS: [&str; 6] = ["pth", "pt", "bin", "ckpt", "safetensors", "json"];
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| ENDINGS.contains(&ending))
}

/// Kind of a model that was found.
enum Found<'a> {
    /// A published checkpoint.
    Preset(&'static Preset),
    /// A path, the name of a preset in a folder of weights, or an unknown name.
    Local(&'a str),
    /// A folder of the cache with a `model.json`.
    Folder(PathBuf),
}

/// Returns the presets whose checkpoints are in a repository, or the one of a file.
fn in_repository(name: &str, wanted: Option<&str>) -> Vec<&'static Preset> {
    let fits = |preset: &&Preset| match preset.origin {
        Origin::Hub { repository, file } => {
            repository == name && wanted.is_none_or(|wanted| wanted == file)
        }
        Origin::Url(_) => false,
    };
    PRESETS.iter().filter(fits).collect()
}

fn failed(model: &str) -> impl Fn(HubError) -> PretrainedError {
    let model = model.to_string();
    move |source| PretrainedError::Hub { model: model.clone(), source }
}

impl TextToVideo {
    /// Opens a model by name and fetches its missing files, reporting to `observer`.
    ///
    /// ```no_run
    /// # use opensora::{TextToVideo, nn::device, pretrained::Pretrained};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let source = Pretrained {
    ///     file: Some("OpenSora-v1-HQ-16x256x256.pth".into()),
    ///     ..Pretrained::from_env()?
    /// };
    /// let device = device::parse("flex")?;
    /// let pipeline =
    ///     TextToVideo::from_pretrained("hpcai-tech/Open-Sora", &source, device, &mut ())?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Returns an error if there is no such model, a file cannot be fetched, or the files do not fit each
    /// other.
    pub fn from_pretrained(
        model: &str,
        source: &Pretrained,
        device: Device,
        observer: &mut dyn Observer,
    ) -> Result<Self, PretrainedError> {
        let files = source.text_files(model, observer)?;
        Ok(Self::new(files, source.options, device)?)
    }
}

impl ClassToVideo {
    /// Opens a model by name and fetches its missing files, reporting to `observer`.
    ///
    /// # Errors
    /// Returns an error if there is no such model, a file cannot be fetched, or the files do not fit each
    /// other.
    pub fn from_pretrained(
        model: &str,
        source: &Pretrained,
        device: Device,
        observer: &mut dyn Observer,
    ) -> Result<Self, PretrainedError> {
        let files = source.class_files(model, observer)?;
        Ok(Self::new(files, source.options, device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::error_line;

    fn offline(home: &Path) -> Pretrained {
        Pretrained::new(Hub::new(Settings {
            home: home.into(),
            cache: home.join("hub"),
            endpoint: "http://127.0.0.1:9".into(),
            token: None,
            offline: true,
        }))
    }

    /// Writes a file into the cache as Python's `huggingface_hub` does.
    fn cached(home: &Path, repository: &str, file: &str, text: &str) {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let folder = home.join(format!("hub/models--{}", repository.replace('/', "--")));
        for (path, text) in
            [(format!("refs/{}", "main"), commit), (format!("snapshots/{commit}/{file}"), text)]
        {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn presets_are_found_in_the_cache() {
        let home = tempfile::tempdir().unwrap();
        let options = offline(home.path());
        let name = "opensora-v1-hq-16x512x512";
        let error = error_line(&options.text_files(name, &mut ()).unwrap_err());
        assert!(error.starts_with(name) && error.contains("DeepFloyd/t5-v1_1-xxl"), "{error}");

        for (repository, file) in [
            (presets::TEXT_ENCODER, "pytorch_model.bin"),
            (presets::VAE, "diffusion_pytorch_model.bin"),
            ("hpcai-tech/Open-Sora", "OpenSora-v1-HQ-16x512x512.pth"),
        ] {
            cached(home.path(), repository, file, "");
        }
        let files = options.text_files(name, &mut ()).unwrap();
        assert!(files.denoiser.ends_with("OpenSora-v1-HQ-16x512x512.pth"));
        assert!(files.t5.is_dir() && files.vae.is_dir());
        assert_eq!(files.defaults.image_size, [512, 512]);

        // The repository has several checkpoints: the file selects one.
        let error = options.text_files("hpcai-tech/Open-Sora", &mut ()).unwrap_err();
        assert!(matches!(&error, PretrainedError::Ambiguous { names, .. } if names.len() == 3));
        let file = Some("OpenSora-v1-HQ-16x512x512.pth".into());
        let named = Pretrained { file, ..options.clone() };
        let again = named.text_files("hpcai-tech/Open-Sora", &mut ()).unwrap();
        assert_eq!((again.name.as_str(), &again.denoiser), (name, &files.denoiser));
    }

    #[test]
    fn nothing_is_fetched_with_a_folder_of_weights() {
        let home = tempfile::tempdir().unwrap();
        let mut options = offline(home.path());
        options.parts.weights_dir = Some(home.path().into());
        let error = options.text_files("pixart-xl-2-256x256", &mut ()).unwrap_err();
        assert!(matches!(error, PretrainedError::Model(ModelError::MissingFile { .. })));
        // Nor by the name of a repository.
        options.file = Some("OpenSora-v1-HQ-16x512x512.pth".into());
        let error = options.text_files("hpcai-tech/Open-Sora", &mut ()).unwrap_err();
        assert!(matches!(error, PretrainedError::Model(ModelError::MissingFile { .. })), "{error}");
        options.file = None;
        let error = options.text_files("owner/name", &mut ()).unwrap_err();
        assert!(matches!(error, PretrainedError::Model(ModelError::Unknown { .. })), "{error}");
    }

    #[test]
    fn unknown_names_and_models_of_the_other_kind_are_rejected_before_a_query() {
        let home = tempfile::tempdir().unwrap();
        let options = offline(home.path());
        let error = options.text_files("dit-xl-2-256x256", &mut ()).unwrap_err();
        assert!(matches!(error, PretrainedError::Model(ModelError::Condition { .. })), "{error}");
        let error = options.class_files("pixart-xl-2-256x256", &mut ()).unwrap_err();
        assert!(matches!(error, PretrainedError::Model(ModelError::Condition { .. })), "{error}");
        for name in ["no-such-model", "/no/such/folder", "a/b/c", "folder/x.pth"] {
            let error = options.text_files(name, &mut ()).unwrap_err();
            assert!(matches!(error, PretrainedError::Model(ModelError::Unknown { .. })), "{error}");
        }
        let error = error_line(&options.text_files("owner/name", &mut ()).unwrap_err());
        assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    }

    #[test]
    fn a_preset_from_outside_the_hub_has_no_revisions() {
        let home = tempfile::tempdir().unwrap();
        let tagged = Pretrained { revision: "v1.0".into(), ..offline(home.path()) };
        let preset = Preset::find("dit-xl-2-256x256").unwrap();
        for error in [
            tagged.class_files(preset.name, &mut ()).unwrap_err(),
            tagged.find_denoiser(preset).unwrap_err(),
        ] {
            assert!(matches!(error, PretrainedError::Revision { .. }), "{error}");
        }
        let preset = Preset::find("opensora-v1-16x256x256").unwrap();
        assert_eq!(tagged.find_denoiser(preset).unwrap(), None);
    }

    #[test]
    fn a_repository_with_a_description_is_a_model() {
        let home = tempfile::tempdir().unwrap();
        let text = serde_json::json!({
            "name": "small", "denoiser": "stdit.safetensors", "denoiser_config": {"depth": 2},
            "t5": "t5", "vae": "vae", "num_frames": 8, "image_size": [48, 48], "fps": 8.0,
        });
        cached(home.path(), "owner/name", "model.json", &text.to_string());
        let files = offline(home.path()).text_files("owner/name", &mut ()).unwrap();
        assert_eq!((files.name.as_str(), files.defaults.num_frames), ("small", 8));
        assert!(files.t5.ends_with("t5"));
    }
}
