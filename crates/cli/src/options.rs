//! Options that several subcommands share.

use crate::{model, ranks, trial};
use anyhow::Context;
use burn::tensor::Device;
use opensora::{
    SampleRequest,
    diffusion::{SamplerKind, sampler::SamplerError},
    model_files::PartPaths,
    nn::device,
    stdit::AttentionReuse,
};
use std::path::PathBuf;

/// Options of reporting.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Report {
    /// Print the result as JSON: one object (sample: one for each clip; devices: an array)
    #[arg(long)]
    pub(crate) json: bool,
    /// Show no progress and no warnings
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// The device to compute on.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DeviceName {
    /// Device, such as flex, cuda:0 or vulkan [default: the first one that is not a software driver]
    ///
    /// `opensora devices` lists them. `cuda:local` is the device with the number of the process on its node, for
    /// programs that mpirun or srun started.
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,
}

/// The end of a device's name that stands for the number of the process on its node.
const LOCAL: &str = ":local";

impl DeviceName {
    /// Opens the device, or the default one if none was named, and checks that it computes. Prints a note if it is a
    /// software driver, unless `quiet`.
    pub(crate) fn open(&self, quiet: bool) -> anyhow::Result<Device> {
        let local = ranks::launch().and_then(|launch| launch.local_rank).unwrap_or(0);
        self.open_on(local, quiet)
    }

    /// Opens the device as [`open`](Self::open) does, in the process with the number `local` on its node.
    pub(crate) fn open_on(&self, local: usize, quiet: bool) -> anyhow::Result<Device> {
        let name = self.device.as_ref().map(|name| match name.strip_suffix(LOCAL) {
            Some(backend) => format!("{backend}:{local}"),
            None => name.clone(),
        });
        let device = match &name {
            Some(name) => device::parse(name),
            None => device::default_device(),
        }
        .context("--device")?;
        trial::check(&device, quiet).context("--device")?;
        Ok(device)
    }
}

/// Parts of a model that are given one by one, and where its files may be.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ModelParts {
    /// Folder of the T5 v1.1 encoder (config.json, spiece.model, weights) [default: the model's]
    #[arg(long)]
    pub(crate) t5: Option<PathBuf>,
    /// Folder or file of the Stable Diffusion VAE [default: the model's]
    #[arg(long)]
    pub(crate) vae: Option<PathBuf>,
    /// Folder with the files of a preset; disables fetching [default: pretrained_models, else the cache of
    /// the Hugging Face hub]
    #[arg(long)]
    pub(crate) weights_dir: Option<PathBuf>,
    /// Allow paths in a model.json outside its folder and the working directory
    #[arg(long)]
    pub(crate) allow_outside_paths: bool,
}

impl ModelParts {
    /// Returns the paths of these options.
    pub(crate) fn paths(&self) -> anyhow::Result<PartPaths> {
        Ok(PartPaths {
            t5: self.t5.clone(),
            vae: self.vae.clone(),
            weights_dir: self.weights_dir.clone(),
            policy: model::policy(self.allow_outside_paths)?,
        })
    }
}

/// Options of sampling. Omitted ones take the model's defaults.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Sampling {
    /// Frames of a clip; 1 samples an image [default: the model's]
    #[arg(long)]
    pub(crate) num_frames: Option<usize>,
    /// Height and width in pixels, such as 256x256 [default: the model's]
    #[arg(long, value_parser = parse_size, value_name = "HxW")]
    pub(crate) image_size: Option<[usize; 2]>,
    /// Sampler [default: the model's; of published ones iddpm for Open-Sora, else dpm-solver]
    #[arg(long, value_parser = parse_sampler, value_name = "iddpm|ddim|dpm-solver")]
    pub(crate) sampler: Option<SamplerKind>,
    /// Sampler steps [default: the model's; else 100, for dpm-solver 20]
    ///
    /// --sampler dpm-solver --steps 20 takes a fifth of the time of 100 steps of iddpm.
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Reuse attention outputs in later steps (pyramid attention broadcast); faster
    ///
    /// Without a value, attention is computed every 2nd (spatial), 4th (temporal) and 6th (cross) step at
    /// timesteps from 450 to 930, as published. Other values look like
    /// --pab=spatial=2,cross=6,above=100,below=850. The videos differ slightly, with 20 or fewer steps more.
    /// Takes memory for up to three tensors of all tokens per block.
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "published",
        value_name = "RANGES"
    )]
    pub(crate) pab: Option<AttentionReuse>,
    /// Scale of classifier-free guidance; 1: no guidance [default: the model's; else 7]
    #[arg(long, visible_alias = "cfg-scale")]
    pub(crate) guidance_scale: Option<f64>,
    /// Seed of all noise [default: the model's; 42 for published ones]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}

impl Sampling {
    /// Returns a request with these options, and the model's defaults for the rest.
    pub(crate) fn request(&self, defaults: &SampleRequest) -> SampleRequest {
        let sampler = self.sampler.unwrap_or(defaults.sampler);
        // The default number of steps belongs to the default sampler.
        let own_steps = defaults.steps.filter(|_| sampler == defaults.sampler);
        SampleRequest {
            num_frames: self.num_frames.unwrap_or(defaults.num_frames),
            image_size: self.image_size.unwrap_or(defaults.image_size),
            sampler,
            steps: self.steps.or(own_steps),
            guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            attention_reuse: self.pab.unwrap_or(defaults.attention_reuse),
            seed: self.seed.unwrap_or(defaults.seed),
            ..defaults.clone()
        }
    }
}

/// Parses a height and width in pixels.
pub(crate) fn parse_size(text: &str) -> Result<[usize; 2], String> {
    let parsed = text.split_once('x').and_then(|(h, w)| Some([h.parse().ok()?, w.parse().ok()?]));
    parsed.ok_or_else(|| "expected height x width in pixels, such as 256x256".into())
}

/// Parses a size such as 500MB, 2GB, 1GiB or 1000000; MB are millions as in transformers.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let upper = text.trim().to_ascii_uppercase();
    let units: [(&str, u64); 10] = [
        ("KIB", 1 << 10),
        ("MIB", 1 << 20),
        ("GIB", 1 << 30),
        ("TIB", 1 << 40),
        ("KB", 1000),
        ("MB", 1000_u64.pow(2)),
        ("GB", 1000_u64.pow(3)),
        ("TB", 1000_u64.pow(4)),
        ("B", 1),
        ("", 1),
    ];
    let parsed = units.into_iter().find_map(|(unit, factor)| {
        let number = upper.strip_suffix(unit)?.trim().parse::<u64>().ok()?;
        number.checked_mul(factor).filter(|bytes| *bytes > 0)
    });
    parsed.ok_or_else(|| "expected a size such as 500MB, 2GB or 1GiB".into())
}

/// Parses the name of a sampler.
pub(crate) fn parse_sampler(text: &str) -> Result<SamplerKind, SamplerError> {
    text.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_a_model_are_those_of_its_own_sampler() {
        let defaults = SampleRequest {
            sampler: SamplerKind::DpmSolver,
            steps: Some(14),
            guidance_scale: 6.0,
            ..SampleRequest::default()
        };
        let mut sampling = Sampling {
            num_frames: None,
            image_size: None,
            sampler: None,
            steps: None,
            pab: None,
            guidance_scale: None,
            seed: None,
        };
        assert_eq!(sampling.request(&defaults), defaults);
        sampling.sampler = Some(SamplerKind::Iddpm);
        assert_eq!(sampling.request(&defaults).steps, None);
        (sampling.steps, sampling.num_frames) = (Some(5), Some(1));
        let request = sampling.request(&defaults);
        assert_eq!((request.steps, request.num_frames, request.guidance_scale), (Some(5), 1, 6.0));
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("500MB", 500_000_000),
            ("2 gb", 2_000_000_000),
            ("1GiB", 1 << 30),
            ("64KiB", 65536),
            ("3TB", 3_000_000_000_000),
            ("1000", 1000),
            ("7B", 7),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "-1GB", "1.5GB", "GB", "5 XB", "1e9", "99999999999TB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
