//! Denoisers of prompts: which weights are loaded, and how a request uses them.

use super::{
    LoadedDenoiser, Observer, Part, PipelineError, TextToVideo,
    observer::Loaded,
    options::Residency,
    shared::{recorded_target, wrong_target},
};
use crate::{
    checkpoint::{Checkpoint, PublishedModel},
    diffusion::PredictionType,
    model_files::ModelFiles,
    presets::Architecture,
    request::SampleRequest,
    stdit::{
        DenoiserConfig, ImageSize, PixArt, PixArtMs, PromptModel, SizedPixArt, StDit, StreamedStDit,
    },
};
use std::sync::Arc;

/// The weights of a denoiser in memory. Requests of all sizes share them: position scales and sizes change
/// tables that every forward pass computes. Clones share their tensors.
#[derive(Debug, Clone)]
pub(super) struct Weights {
    model: Model,
    prediction_type: PredictionType,
}

#[derive(Debug, Clone)]
enum Model {
    StDit(Box<StDit>),
    PixArt(Box<PixArt>),
    PixArtMs(Box<PixArtMs>),
}

impl Model {
    /// Returns the model with the position tables and conditions of a request.
    fn for_request(self, config: &DenoiserConfig, request: &SampleRequest) -> Arc<dyn PromptModel> {
        let scales = config.scales;
        // The published image models have no temporal positions; clips need them.
        let temporal = request.num_frames > 1;
        match self {
            Self::StDit(model) => Arc::new(model.with_scales(scales)),
            Self::PixArt(model) => {
                Arc::new(model.with_scales(scales).with_temporal_positions(temporal))
            }
            Self::PixArtMs(model) => {
                let model = model.with_scales(scales).with_temporal_positions(temporal);
                let size = ImageSize::of_pixels(request.image_size);
                Arc::new(SizedPixArt { model, size })
            }
        }
    }
}

impl TextToVideo {
    /// Loads the denoiser for a request, or takes the one that [stays](super::Residency) in memory.
    ///
    /// # Errors
    /// Returns an error if the request does not fit the model or the denoiser cannot be loaded.
    pub fn load_denoiser(
        &self,
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<LoadedDenoiser<'_>, PipelineError> {
        let size = self.check(request)?;
        let config = self.denoiser_config(request);
        let residency = self.core.options.residency;
        let is_streamed =
            residency == Residency::Streamed && self.files.architecture == Architecture::StDit;
        let (model, prediction_type) = if is_streamed {
            self.open_streamed(&config, observer)?
        } else {
            let load = || self.load_weights(observer);
            let weights = self.resident_denoiser.get(residency.keeps_denoiser(), load)?;
            (weights.model.for_request(&config, request), weights.prediction_type)
        };
        let model = match self.core.ranks.frames() {
            Some(group) => model.sharded(group).ok_or_else(|| self.undivided())?,
            None => model,
        };
        LoadedDenoiser::new(&self.core, model, prediction_type, request, size)
    }

    /// The error of a model whose tokens cannot be divided among ranks.
    pub(super) fn undivided(&self) -> PipelineError {
        PipelineError::Parts(format!(
            "{}: the frames of {} cannot be divided among ranks: use one rank, or two for guidance",
            self.files.name,
            self.files.architecture.name()
        ))
    }

    fn load_weights(&self, observer: &mut dyn Observer) -> Result<Weights, PipelineError> {
        observer.loading(Part::Denoiser);
        let checkpoint = Checkpoint::open(&self.core.denoiser)?;
        let prediction_type = prediction_type(&self.files, &checkpoint)?;
        let (config, dtype) = (&self.files.denoiser_config, self.core.options.dtype);
        let device = &self.core.device;
        let (model, report) = match self.files.architecture {
            Architecture::StDit => {
                let (model, report) = StDit::load(config, &checkpoint, dtype, device)?;
                (Model::StDit(Box::new(model)), report)
            }
            Architecture::PixArt => {
                let (model, report) = PixArt::load(config, &checkpoint, dtype, device)?;
                (Model::PixArt(Box::new(model)), report)
            }
            Architecture::PixArtMs { base_size } => {
                let (model, report) = PixArtMs::load(config, &checkpoint, dtype, device)?;
                (Model::PixArtMs(Box::new(model.with_base_size(base_size))), report)
            }
        };
        observer.loaded(&Loaded { part: Part::Denoiser, report: &report });
        Ok(Weights { model, prediction_type })
    }

    fn open_streamed(
        &self,
        config: &DenoiserConfig,
        observer: &mut dyn Observer,
    ) -> Result<(Arc<dyn PromptModel>, PredictionType), PipelineError> {
        observer.loading(Part::Denoiser);
        let checkpoint = Checkpoint::open(&self.core.denoiser)?;
        let prediction_type = prediction_type(&self.files, &checkpoint)?;
        let dtype = self.core.options.dtype;
        let (model, report) = StreamedStDit::open(config, checkpoint, dtype, &self.core.device)?;
        observer.loaded(&Loaded { part: Part::Denoiser, report: &report });
        Ok((Arc::new(model), prediction_type))
    }
}

/// Returns the denoiser's prediction target, from the model's description and the weights' metadata.
///
/// # Errors
/// Returns an error if the two contradict each other, or the metadata has an unknown target.
pub(super) fn prediction_type(
    files: &ModelFiles,
    checkpoint: &Checkpoint,
) -> Result<PredictionType, PipelineError> {
    match (files.prediction_type, recorded_target(checkpoint)?) {
        (Some(described), Some(recorded)) if described != recorded => Err(wrong_target(
            checkpoint,
            format_args!(
                "the weights predict {}, the model's description says {}",
                recorded.name(),
                described.name()
            ),
        )),
        (described, recorded) => Ok(described.or(recorded).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ClassFiles, ClassToVideo, PipelineOptions,
        checkpoint::{ExportOptions, KeyMap, export},
        model_files::ScaleRule,
        presets::ClassKind,
        stdit::{ClassConfig, Dit, keys},
        t5::{self, T5Config},
        vae::{self, VaeConfig},
    };
    use burn::{module::Module, tensor::Device};
    use std::path::{Path, PathBuf};

    /// Writes the fresh text encoder, VAE, STDiT and DiT of tiny models. The metadata of both denoisers is `target`.
    struct Folder {
        folder: tempfile::TempDir,
        denoiser_config: DenoiserConfig,
        class_config: ClassConfig,
    }

    impl Folder {
        fn new(target: &str) -> Self {
            let (hidden_size, depth, num_heads) = (24, 1, 2);
            let (caption_channels, model_max_length) = (8, 5);
            let denoiser_config = DenoiserConfig {
                hidden_size,
                depth,
                num_heads,
                caption_channels,
                model_max_length,
                ..DenoiserConfig::xl_2()
            };
            let class_config =
                ClassConfig { hidden_size, depth, num_heads, ..ClassConfig::dit_xl_2() };
            let folder = tempfile::tempdir().unwrap();
            let written = Self { folder, denoiser_config, class_config };
            let device = Device::flex();

            let (t5_folder, vae_folder) = (written.path("t5"), written.path("vae"));
            let t5_config = T5Config {
                vocab_size: 16,
                d_model: caption_channels,
                d_kv: 4,
                d_ff: 8,
                num_layers: 1,
                num_heads,
                ..T5Config::default()
            };
            let vae_config = VaeConfig {
                block_out_channels: vec![4, 4],
                layers_per_block: 1,
                norm_num_groups: 2,
                ..VaeConfig::default()
            };
            std::fs::create_dir(&t5_folder).unwrap();
            std::fs::create_dir(&vae_folder).unwrap();
            t5_config.write(&t5_folder.join("config.json")).unwrap();
            vae_config.write(&vae_folder.join("config.json")).unwrap();
            let map = t5::keys::Layout::PUBLISHED.key_map();
            let plain = ExportOptions::default();
            write(&t5_config.init(&device).unwrap(), &map, plain.clone(), &t5_folder);
            let map = vae::keys::Naming::Diffusers.key_map(&vae_config);
            write(&vae_config.init(&device).unwrap(), &map, plain.clone(), &vae_folder);

            let with_target = plain.with_metadata(PredictionType::NOTE, target);
            let stdit: StDit = written.denoiser_config.init(&device).unwrap();
            export(&stdit, &keys::stdit(), with_target.clone(), &written.path("stdit")).unwrap();
            let dit: Dit = written.class_config.init(&device).unwrap();
            export(&dit, &keys::dit(), with_target, &written.path("dit")).unwrap();
            written
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// Opens the STDiT with a description that says `described`.
        fn open(&self, described: Option<PredictionType>) -> Result<TextToVideo, PipelineError> {
            let files = ModelFiles {
                name: "tiny".into(),
                architecture: Architecture::StDit,
                denoiser: self.path("stdit"),
                denoiser_config: self.denoiser_config.clone(),
                scales: ScaleRule::Fixed,
                prediction_type: described,
                t5: self.path("t5"),
                vae: self.path("vae"),
                defaults: SampleRequest::default(),
                buckets: &[],
            };
            TextToVideo::new(files, PipelineOptions::default(), Device::flex())
        }

        fn open_class(&self) -> Result<ClassToVideo, PipelineError> {
            let files = ClassFiles {
                name: "tiny".into(),
                kind: ClassKind::Dit,
                denoiser: self.path("dit"),
                config: self.class_config.clone(),
                labels: None,
                vae: self.path("vae"),
                defaults: SampleRequest::default(),
            };
            ClassToVideo::new(files, PipelineOptions::default(), Device::flex())
        }
    }

    fn write<M: Module>(model: &M, map: &KeyMap, options: ExportOptions, folder: &Path) {
        export(model, map, options, &folder.join("model.safetensors")).unwrap();
    }

    /// Returns the message of parts that do not fit.
    fn unfit<T>(opened: Result<T, PipelineError>) -> String {
        match opened {
            Err(PipelineError::Parts(text)) => text,
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("the parts fit"),
        }
    }

    #[test]
    fn weights_of_another_prediction_target_are_rejected_before_any_work() {
        let (noise, velocity) = (PredictionType::Epsilon, PredictionType::VPrediction);
        let folder = Folder::new(velocity.name());
        for described in [None, Some(velocity)] {
            let pipeline = folder.open(described).unwrap();
            let checkpoint = Checkpoint::open(&pipeline.files.denoiser).unwrap();
            assert_eq!(prediction_type(&pipeline.files, &checkpoint).unwrap(), velocity);
        }
        let text = unfit(folder.open(Some(noise)));
        assert!(text.contains("the weights predict v_prediction"), "{text}");
        assert!(text.contains("description says epsilon"), "{text}");
        let text = unfit(folder.open_class());
        assert!(text.contains("the weights predict v_prediction, expected epsilon"), "{text}");

        let folder = Folder::new(noise.name());
        assert!(folder.open(None).is_ok() && folder.open_class().is_ok());
        assert!(folder.open(Some(velocity)).is_err());

        let folder = Folder::new("x\ny");
        for text in [unfit(folder.open(None)), unfit(folder.open_class())] {
            assert!(text.contains("is not known") && !text.contains('\n'), "{text}");
        }
    }
}
