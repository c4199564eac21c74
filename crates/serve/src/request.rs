//! Parameters of a client's request ([`VideoRequest`]), and of a job ([`JobRequest`]).

use crate::{
    engine::ModelInfo,
    limits::{Limits, MAX_PROMPT_CHARS, MAX_SEED},
};
use opensora_files::one_line;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Parameters of `POST /v1/videos`. All but the prompt may be left out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct VideoRequest {
    /// What the video shows.
    pub prompt: String,
    /// What the video should not show. Empty text is the same as none.
    pub negative_prompt: Option<String>,
    /// Name of the model.
    pub model: Option<String>,
    /// Width and height in pixels.
    pub size: Option<[usize; 2]>,
    /// Length of the video in seconds; ignored if `num_frames` is given.
    pub seconds: Option<f64>,
    /// Number of frames.
    pub num_frames: Option<usize>,
    /// Frames per second.
    pub fps: Option<f64>,
    /// Name of the sampler.
    pub sampler: Option<String>,
    /// Steps of the sampler.
    pub steps: Option<usize>,
    /// Strength of guidance.
    pub guidance_scale: Option<f64>,
    /// Seed of the noise; a random one if left out.
    pub seed: Option<u64>,
}

/// All parameters of a job, with the model's defaults for missing parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRequest {
    /// What the video shows.
    pub prompt: String,
    /// What the video should not show; `None` for the model's null prompt.
    pub negative_prompt: Option<String>,
    /// Name of the model.
    pub model: String,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Number of frames; one makes an image.
    pub num_frames: usize,
    /// Frames per second.
    pub fps: f64,
    /// Name of the sampler.
    pub sampler: String,
    /// Steps of the sampler.
    pub steps: usize,
    /// Strength of guidance.
    pub guidance_scale: f64,
    /// Seed of the noise.
    pub seed: u64,
}

/// Why a request was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// The parameter, if it is one.
    pub param: Option<String>,
    /// Kind of the error, for programs.
    pub code: &'static str,
    /// What was found and what was expected.
    pub message: String,
}

impl RequestError {
    fn invalid(param: &str, found: &Value, expected: &str) -> Self {
        Self {
            param: Some(param.into()),
            code: "invalid_value",
            message: format!("{param}: found {}, expected {expected}", one_line(found)),
        }
    }

    fn limit(param: &str, found: impl std::fmt::Display, expected: impl std::fmt::Display) -> Self {
        Self {
            param: Some(param.into()),
            code: "limit_exceeded",
            message: format!("{param}: found {found}, expected {expected}"),
        }
    }
}

impl VideoRequest {
    /// Reads parameters by name. Numbers may be strings, as in forms; `null` is the same as a missing parameter.
    ///
    /// # Errors
    /// Returns an error if a parameter is unknown, missing or of another type.
    pub fn from_fields(fields: Map<String, Value>) -> Result<Self, RequestError> {
        let mut request = Self::default();
        let mut prompt = None;
        for (name, value) in fields {
            if value.is_null() {
                continue;
            }
            match name.as_str() {
                "prompt" => prompt = Some(text(&name, value)?),
                "negative_prompt" => request.negative_prompt = Some(text(&name, value)?),
                "model" => request.model = Some(text(&name, value)?),
                "size" => request.size = Some(size(&name, &value)?),
                "seconds" => request.seconds = Some(number(&name, &value)?),
                "num_frames" => request.num_frames = Some(count(&name, &value)?),
                "fps" => request.fps = Some(number(&name, &value)?),
                "sampler" => request.sampler = Some(text(&name, value)?),
                "steps" | "num_inference_steps" => request.steps = Some(count(&name, &value)?),
                "guidance_scale" => request.guidance_scale = Some(number(&name, &value)?),
                "seed" => request.seed = Some(integer(&name, &value, MAX_SEED)?),
                _ => {
                    return Err(RequestError {
                        code: "unknown_parameter",
                        message: format!("unknown parameter '{}'", one_line(&name)),
                        param: Some(one_line(&name)),
                    });
                }
            }
        }
        request.prompt = prompt.ok_or_else(|| RequestError {
            param: Some("prompt".into()),
            code: "missing_required_parameter",
            message: "prompt: missing".into(),
        })?;
        Ok(request)
    }

    /// Fills in the model's defaults and checks the limits. The seed is `random` if there is none.
    ///
    /// # Errors
    /// Returns an error if the model has another name or a parameter is out of range.
    pub fn resolve(
        self,
        model: &ModelInfo,
        limits: &Limits,
        random: u64,
    ) -> Result<JobRequest, RequestError> {
        if let Some(name) = self.model.filter(|name| *name != model.id) {
            return Err(RequestError {
                param: Some("model".into()),
                code: "model_not_found",
                message: format!("model: found '{}', expected '{}'", one_line(name), model.id),
            });
        }
        let prompt = prompt("prompt", &self.prompt)?;
        if prompt.is_empty() {
            return Err(RequestError::limit("prompt", "no text", "what the video shows"));
        }
        let negative = self.negative_prompt.as_deref().unwrap_or_default();
        let negative = Some(self::prompt("negative_prompt", negative)?);
        let [width, height] = self.size.unwrap_or([model.width, model.height]);
        for side in [width, height] {
            let fits =
                (1..=limits.max_side).contains(&side) && side.is_multiple_of(model.multiple_of);
            if !fits {
                let expected = format!(
                    "sides of up to {} pixels that are multiples of {}",
                    limits.max_side, model.multiple_of
                );
                return Err(RequestError::limit("size", format!("{width}x{height}"), expected));
            }
        }
        let fps = ranged("fps", self.fps.unwrap_or(model.fps), 0.1..=120.0)?;
        let num_frames = match (self.num_frames, self.seconds) {
            (Some(frames), _) => ranged("num_frames", frames, 1..=limits.max_frames)?,
            (None, Some(seconds)) => {
                let longest = limits.max_frames as f64 / fps;
                if seconds == 0.0 {
                    let expected = format!("more than 0, up to {longest}");
                    return Err(RequestError::limit("seconds", seconds, expected));
                }
                // NaN is in no range.
                (ranged("seconds", seconds, 0.0..=longest)? * fps).round().max(1.0) as usize
            }
            // A default is no larger than what may be asked for.
            (None, None) => model.num_frames.min(limits.max_frames),
        };
        let pixels = num_frames.saturating_mul(width).saturating_mul(height);
        if pixels > limits.max_pixels {
            let found = format!("{num_frames} frames of {width}x{height}");
            let expected = format!("at most {} pixels in all frames", limits.max_pixels);
            return Err(RequestError::limit("size", found, expected));
        }
        let sampler = self.sampler.unwrap_or_else(|| model.sampler.clone());
        let Some((_, own_steps)) = model.samplers.iter().find(|(name, _)| *name == sampler) else {
            let names: Vec<&str> = model.samplers.iter().map(|(name, _)| name.as_str()).collect();
            return Err(RequestError::limit("sampler", one_line(sampler), names.join(" or ")));
        };
        let default = if sampler == model.sampler { model.steps } else { *own_steps };
        let default = default.min(limits.max_steps);
        let guidance_scale = self.guidance_scale.unwrap_or(model.guidance_scale);
        Ok(JobRequest {
            prompt,
            negative_prompt: negative.filter(|text| !text.is_empty()),
            model: model.id.clone(),
            width,
            height,
            num_frames,
            fps,
            sampler,
            steps: ranged("steps", self.steps.unwrap_or(default), 1..=limits.max_steps)?,
            guidance_scale: ranged("guidance_scale", guidance_scale, 0.0..=100.0)?,
            seed: self.seed.unwrap_or(random),
        })
    }
}

impl JobRequest {
    /// Returns the length in seconds.
    pub fn seconds(&self) -> f64 {
        self.num_frames as f64 / self.fps
    }

    /// Returns an upper bound of the job's bytes on disk, which is reserved until the job is finished.
    pub fn max_bytes(&self) -> u64 {
        // Without headers, H.264 takes at most 1.5 bytes per pixel (uncompressed blocks) and PNG at most 3.
        let frame = (self.width as u64).saturating_mul(self.height as u64);
        let frames = (self.num_frames as u64).saturating_mul(2).saturating_add(4);
        frame.saturating_mul(frames).saturating_add(64 << 10)
    }
}

fn prompt(param: &str, text: &str) -> Result<String, RequestError> {
    let text = text.trim();
    let chars = text.chars().count();
    if chars > MAX_PROMPT_CHARS {
        let expected = format!("at most {MAX_PROMPT_CHARS}");
        return Err(RequestError::limit(param, format!("{chars} characters"), expected));
    }
    Ok(text.into())
}

fn ranged<T: PartialOrd + std::fmt::Display + Copy>(
    param: &str,
    found: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<T, RequestError> {
    match range.contains(&found) {
        true => Ok(found),
        false => {
            let expected = format!("{} to {}", range.start(), range.end());
            Err(RequestError::limit(param, found, expected))
        }
    }
}

fn text(param: &str, value: Value) -> Result<String, RequestError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(RequestError::invalid(param, &other, "text")),
    }
}

/// Parses a number, or text that is one.
fn number(param: &str, value: &Value) -> Result<f64, RequestError> {
    let parsed = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    parsed
        .filter(|number: &f64| number.is_finite())
        .ok_or_else(|| RequestError::invalid(param, value, "a number"))
}

fn integer(param: &str, value: &Value, largest: u64) -> Result<u64, RequestError> {
    let parsed = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    parsed.filter(|&number| number <= largest).ok_or_else(|| {
        RequestError::invalid(param, value, &format!("an integer from 0 to {largest}"))
    })
}

fn count(param: &str, value: &Value) -> Result<usize, RequestError> {
    // A value beyond every limit that fits all integer types.
    integer(param, value, 1 << 31).map(|count| count as usize)
}

/// Parses width and height of `WIDTHxHEIGHT`.
fn size(param: &str, value: &Value) -> Result<[usize; 2], RequestError> {
    let side = |text: &str| -> Option<usize> {
        let digits =
            !text.is_empty() && text.len() <= 6 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|_| digits)
    };
    let parsed = value
        .as_str()
        .and_then(|text| text.split_once('x'))
        .and_then(|(width, height)| Some([side(width)?, side(height)?]));
    parsed.ok_or_else(|| RequestError::invalid(param, value, "WIDTHxHEIGHT, such as 256x256"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::model;
    use serde_json::json;

    fn resolve(body: Value) -> Result<JobRequest, RequestError> {
        let Value::Object(fields) = body else { panic!("{body}") };
        VideoRequest::from_fields(fields)?.resolve(&model(), &Limits::default(), 7)
    }

    fn rejected(body: Value) -> (Option<String>, &'static str) {
        let error = resolve(body).unwrap_err();
        assert!(!error.message.contains('\n') && error.message.len() < 600, "{error}");
        (error.param, error.code)
    }

    #[test]
    fn defaults_are_the_models() {
        let request =
            resolve(json!({"prompt": "  fog ", "negative_prompt": "", "seed": null})).unwrap();
        let model = model();
        assert_eq!((request.prompt.as_str(), request.negative_prompt.as_deref()), ("fog", None));
        assert_eq!((request.width, request.height), (model.width, model.height));
        assert_eq!((request.num_frames, request.steps), (model.num_frames, model.steps));
        assert_eq!((request.seed, request.model), (7, model.id));
    }

    #[test]
    fn defaults_are_within_the_limits() {
        let limits = Limits { max_frames: 5, max_steps: 3, ..Limits::default() };
        let request = VideoRequest { prompt: "fog".into(), ..VideoRequest::default() };
        let request = request.resolve(&model(), &limits, 7).unwrap();
        assert_eq!((request.num_frames, request.steps), (5, 3));
    }

    #[test]
    fn width_comes_before_height() {
        let request = resolve(json!({"prompt": "fog", "size": "64x48"})).unwrap();
        assert_eq!((request.width, request.height), (64, 48));
    }

    #[test]
    fn seconds_are_frames_at_the_rate() {
        let frames = |body| resolve(body).unwrap().num_frames;
        assert_eq!(frames(json!({"prompt": "fog", "seconds": "4"})), 16);
        assert_eq!(frames(json!({"prompt": "fog", "seconds": 2, "fps": 8})), 16);
        assert_eq!(frames(json!({"prompt": "fog", "seconds": 0.01})), 1);
        assert_eq!(frames(json!({"prompt": "fog", "seconds": 4, "num_frames": 3})), 3);
        assert_eq!(resolve(json!({"prompt": "fog", "num_frames": 6})).unwrap().seconds(), 1.5);
    }

    #[test]
    fn steps_of_the_model_are_those_of_its_sampler() {
        let steps = |body| resolve(body).unwrap().steps;
        assert_eq!(steps(json!({"prompt": "fog", "sampler": "iddpm"})), 100);
        assert_eq!(steps(json!({"prompt": "fog", "num_inference_steps": 9})), 9);
    }

    #[test]
    fn rejected_parameters_are_named() {
        let long = "x".repeat(MAX_PROMPT_CHARS + 1);
        for (param, code, body) in [
            ("prompt", "missing_required_parameter", json!({})),
            ("prompt", "missing_required_parameter", json!({"prompt": null})),
            ("prompt", "invalid_value", json!({"prompt": 3})),
            ("prompt", "limit_exceeded", json!({"prompt": " "})),
            ("prompt", "limit_exceeded", json!({"prompt": long})),
            ("negative_prompt", "limit_exceeded", json!({"prompt": "a", "negative_prompt": long})),
            ("model", "model_not_found", json!({"prompt": "a", "model": "sora-2\n"})),
            ("size", "invalid_value", json!({"prompt": "a", "size": "256"})),
            ("size", "invalid_value", json!({"prompt": "a", "size": "-8x8"})),
            ("size", "invalid_value", json!({"prompt": "a", "size": "+8x8"})),
            ("size", "invalid_value", json!({"prompt": "a", "size": [8, 8]})),
            ("size", "limit_exceeded", json!({"prompt": "a", "size": "0x8"})),
            ("size", "limit_exceeded", json!({"prompt": "a", "size": "50x48"})),
            ("size", "limit_exceeded", json!({"prompt": "a", "size": "999999x8"})),
            (
                "size",
                "limit_exceeded",
                json!({"prompt": "a", "size": "1024x1024", "num_frames": 17}),
            ),
            ("num_frames", "limit_exceeded", json!({"prompt": "a", "num_frames": 0})),
            ("num_frames", "limit_exceeded", json!({"prompt": "a", "num_frames": 65})),
            ("num_frames", "invalid_value", json!({"prompt": "a", "num_frames": 1e30})),
            ("num_frames", "invalid_value", json!({"prompt": "a", "num_frames": 2.5})),
            ("num_frames", "invalid_value", json!({"prompt": "a", "num_frames": -1})),
            ("seconds", "limit_exceeded", json!({"prompt": "a", "seconds": 1e300})),
            ("seconds", "invalid_value", json!({"prompt": "a", "seconds": "NaN"})),
            ("seconds", "limit_exceeded", json!({"prompt": "a", "seconds": -1})),
            ("seconds", "limit_exceeded", json!({"prompt": "a", "seconds": 0})),
            ("fps", "limit_exceeded", json!({"prompt": "a", "fps": 0})),
            ("steps", "limit_exceeded", json!({"prompt": "a", "steps": 251})),
            ("sampler", "limit_exceeded", json!({"prompt": "a", "sampler": "euler"})),
            ("guidance_scale", "invalid_value", json!({"prompt": "a", "guidance_scale": "inf"})),
            ("seed", "invalid_value", json!({"prompt": "a", "seed": -1})),
            ("seed", "invalid_value", json!({"prompt": "a", "seed": 1u64 << 53})),
            (
                "input_reference",
                "unknown_parameter",
                json!({"prompt": "a", "input_reference": "x"}),
            ),
        ] {
            assert_eq!(rejected(body.clone()), (Some(param.into()), code), "{body}");
        }
    }
}
