//! The result of an evaluation, as a table and as JSON.

use super::{
    prompts::PromptSet,
    scores::{Attribute, Mean, Scores, Tallies, Tally},
};
use opensora::{SampleRequest, stdit::DenoiserWork};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt};

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The model's name.
    pub model_name: String,
    /// The set of prompts.
    pub set: PromptSet,
    /// Settings of the sampled clips.
    pub request: SampleRequest,
    /// Scores of real clips of the same prompts.
    pub judge: Scores,
    /// Scores of these real clips after encoding and decoding by the VAE, if measured.
    pub vae: Option<Scores>,
    /// Scores of the model's clips.
    pub model: Scores,
    /// Work of the denoiser for all clips.
    pub work: DenoiserWork,
    /// Seconds per clip, from prompts to judged pixels, loading included.
    pub seconds_per_clip: f64,
}

/// An attribute whose accuracy is too low.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shortfall {
    /// The attribute.
    pub attribute: Attribute,
    /// The accuracy.
    pub found: f64,
    /// The required accuracy.
    pub required: f64,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {:.3}, required {:.3}", self.attribute, self.found, self.required)
    }
}

impl Report {
    /// Returns the attributes whose accuracy is below `required`.
    pub fn shortfalls(&self, required: &[(Attribute, f64)]) -> Vec<Shortfall> {
        let short = |&(attribute, required): &(Attribute, f64)| {
            let found = self.model.of(attribute).accuracy();
            (found < required).then_some(Shortfall { attribute, found, required })
        };
        required.iter().filter_map(short).collect()
    }

    /// Returns the report as a JSON object.
    pub fn to_json(&self) -> Value {
        let request = &self.request;
        json!({
            "model": self.model_name,
            "prompts": self.model.of(Attribute::All).total,
            "set": self.set,
            "num_frames": request.num_frames,
            "image_size": request.image_size,
            "sampler": request.sampler.name(),
            "steps": request.steps.unwrap_or(request.sampler.default_steps()),
            "guidance_scale": request.guidance_scale,
            "attention_reuse": request.attention_reuse.to_string(),
            "seed": request.seed,
            "seconds_per_clip": self.seconds_per_clip,
            "denoiser_work": self.work,
            "judge": self.judge,
            "vae": self.vae,
            "scores": self.model,
        })
    }
}

impl fmt::Display for Report {
    /// Writes a table: the ceilings, the model, then the model by shape, colour, motion and phrasing; then the
    /// stability.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<20}", "")?;
        Attribute::EACH.iter().try_for_each(|attribute| write!(f, " {attribute:>10}"))?;
        writeln!(f, " {:>6}", "clips")?;
        row(f, "judge on real clips", &self.judge.overall)?;
        if let Some(vae) = &self.vae {
            row(f, "VAE round trips", &vae.overall)?;
        }
        row(f, "model", &self.model.overall)?;
        self.intervals(f)?;
        let model = &self.model;
        groups(f, &model.by_shape)?;
        groups(f, &model.by_colour)?;
        groups(f, &model.by_motion)?;
        for (phrasing, tallies) in &model.by_phrasing {
            row(f, &format!("  {phrasing} phrasing"), tallies)?;
        }
        writeln!(f, "frames: share of all frames; majority: more than half of a clip's frames;")?;
        writeln!(f, "shape, colour, background, all: every frame of a clip")?;
        self.steadiness(f)?;
        let clips = model.of(Attribute::All).total.max(1) as f64;
        let attentions = self.work.attentions_computed + self.work.attentions_reused;
        writeln!(
            f,
            "denoiser: {:.1} forward passes and {:.2} GFLOP per clip, {:.0} % of attentions reused",
            self.work.forward_samples as f64 / clips,
            self.work.flops / clips / 1e9,
            100.0 * self.work.attentions_reused as f64 / attentions.max(1) as f64,
        )?;
        write!(
            f,
            "{} prompts, {:.2} s per clip with loading",
            self.set.name(),
            self.seconds_per_clip
        )
    }
}

/// Writes the accuracies of one group of clips.
fn row(f: &mut fmt::Formatter<'_>, name: &str, tallies: &Tallies) -> fmt::Result {
    write!(f, "{name:<20}")?;
    for attribute in Attribute::EACH {
        let tally = tallies.get(&attribute).copied().unwrap_or_default();
        write!(f, " {:>8.1} %", 100.0 * tally.accuracy())?;
    }
    let clips = tallies.get(&Attribute::All).map_or(0, |tally| tally.clips);
    writeln!(f, " {clips:>6}")
}

/// Writes one row per group.
fn groups<K: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    groups: &BTreeMap<K, Tallies>,
) -> fmt::Result {
    groups.iter().try_for_each(|(name, tallies)| row(f, &format!("  {name}"), tallies))
}

impl Report {
    /// Writes the intervals and the counts of the model's accuracies.
    fn intervals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<20}", "  95 % interval")?;
        for attribute in Attribute::EACH {
            let [low, high] = self.model.of(attribute).wilson();
            write!(f, " {:>10}", format!("{:.1}-{:.1}", 100.0 * low, 100.0 * high))?;
        }
        writeln!(f)?;
        write!(f, "{:<20}", "  right")?;
        for attribute in Attribute::EACH {
            let Tally { right, total, .. } = self.model.of(attribute);
            write!(f, " {:>10}", format!("{right}/{total}"))?;
        }
        writeln!(f)
    }

    /// Writes the table of the stability: means with half the widths of their 95 % intervals.
    fn steadiness(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<20}", "stability")?;
        for name in ["area variation", "overlap", "colour flicker", "background flicker"] {
            write!(f, " {name:>18}")?;
        }
        writeln!(f)?;
        let all = [("real clips", Some(&self.judge)), ("VAE round trips", self.vae.as_ref())];
        for (name, scores) in all.into_iter().chain([("model", Some(&self.model))]) {
            let Some(Scores { steadiness, .. }) = scores else { continue };
            write!(f, "  {name:<18}")?;
            let cell = |mean: Mean, scale: f64, digits: usize, unit: &str| match mean.mean() {
                None => "-".into(),
                Some(value) => {
                    let reach = mean.reach().map(|reach| format!(" ± {:.digits$}", scale * reach));
                    format!("{:.digits$}{}{unit}", scale * value, reach.unwrap_or_default())
                }
            };
            write!(f, " {:>18}", cell(steadiness.area_variation, 100.0, 1, " %"))?;
            write!(f, " {:>18}", cell(steadiness.overlap, 1.0, 3, ""))?;
            write!(f, " {:>18}", cell(steadiness.colour_flicker, 1.0, 2, ""))?;
            writeln!(f, " {:>18}", cell(steadiness.background_flicker, 1.0, 2, ""))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Background, Colour, FrameVerdict, Judgement, Labels, Motion, Shape, Verdict};

    fn report() -> Report {
        let labels = Labels {
            shape: Shape::Circle,
            colour: Colour::Red,
            background: Background::Black,
            motion: Some(Motion::Growing),
        };
        let (shape, colour, background) =
            (Some(labels.shape), Some(labels.colour), Some(labels.background));
        let verdict = Verdict { shape, colour, background, motion: labels.motion };
        let frames = vec![FrameVerdict { shape, colour, background }; 2];
        let right = Judgement { verdict, frames, stability: None };
        let mut wrong = right.clone();
        wrong.frames[0].shape = None;
        let (mut judge, mut model) = (Scores::default(), Scores::default());
        judge.add(&labels, false, &right);
        model.add(&labels, false, &right);
        model.add(&labels, true, &wrong);
        let request = SampleRequest::default();
        let (model_name, set) = ("m".into(), PromptSet::HeldOut);
        let work = DenoiserWork {
            forward_samples: 80,
            attentions_computed: 75,
            attentions_reused: 25,
            flops: 4e9,
        };
        Report { model_name, set, request, judge, vae: None, model, work, seconds_per_clip: 1.5 }
    }

    #[test]
    fn the_table_begins_with_the_ceiling() {
        let table = report().to_string();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[1].starts_with("judge on real clips") && lines[1].contains("100.0 %"));
        let model: Vec<&str> = lines[2].split_whitespace().collect();
        assert_eq!(model[..5], ["model", "75.0", "%", "50.0", "%"]);
        assert!(lines[4].starts_with("  right                     3/4        1/2"), "{table}");
        assert!(table.contains("  growing") && table.contains("  circle"), "{table}");
        let work =
            "denoiser: 40.0 forward passes and 2.00 GFLOP per clip, 25 % of attentions reused";
        assert!(lines.contains(&work), "{table}");
        assert!(table.ends_with("held-out prompts, 1.50 s per clip with loading"), "{table}");
    }

    #[test]
    fn what_falls_short_is_named() {
        let required = [(Attribute::Shape, 0.9), (Attribute::Colour, 1.0)];
        let short = report().shortfalls(&required);
        let words: Vec<String> = short.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["shape is 0.500, required 0.900"]);
        let json = report().to_json();
        assert_eq!((&json["prompts"], &json["set"]), (&json!(2), &json!("held-out")));
        assert_eq!(json["scores"]["overall"]["shape"]["right"], 1);
        assert_eq!(json["scores"]["overall"]["frames"]["total"], 4);
        assert_eq!(json["attention_reuse"], "off");
        assert_eq!(json["denoiser_work"]["forward_samples"], 80);
    }
}
