//! Cases of kind `vae`.

use super::{Case, Failure, Outputs};
use burn::tensor::{Device, FloatDType};
use opensora::checkpoint::{Checkpoint, PublishedModel};
use opensora::vae::{AutoencoderKl, VaeConfig};

/// Encodes and decodes one frame at a time, which must not change the results.
pub(super) fn run(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    let config: VaeConfig = case.get("/config")?;
    case.begin("loading the VAE");
    let checkpoint = Checkpoint::open(case.path("/weights")?)?;
    let (vae, _) = AutoencoderKl::load(&config, &checkpoint, FloatDType::F32, device)?;

    case.begin("encoding frames");
    let posterior = vae.encode(case.tensor("x", device)?, None);
    let latents = posterior.latents(case.tensor("noise", device)?);
    case.begin("decoding latents");
    let decoded = vae.decode(case.tensor("z", device)?, Some(1));
    [
        ("moments", posterior.moments()),
        ("mean", posterior.mean()),
        ("logvar", posterior.logvar()),
        ("latents", latents),
        ("decoded", decoded),
    ]
    .into_iter()
    .map(|(name, tensor)| case.output(name, tensor))
    .collect()
}
