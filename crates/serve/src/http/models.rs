//! `/v1/models`: the model with its defaults and the limits of requests.

use super::{App, Json, error::ApiError, path_value::PathValue};
use crate::limits::{MAX_PROMPT_CHARS, MAX_SEED};
use axum::{extract::State, http::StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;

fn model(app: &App) -> Value {
    let (model, limits) = (app.queue.engine().model(), app.queue.limits());
    // As in requests without these parameters.
    let frames = model.num_frames.min(limits.max_frames);
    let steps = |steps: usize| steps.min(limits.max_steps);
    json!({
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": "opensora",
        "defaults": {
            "num_frames": frames,
            "seconds": frames as f64 / model.fps,
            "size": format!("{}x{}", model.width, model.height),
            "fps": model.fps,
            "sampler": model.sampler,
            "steps": steps(model.steps),
            "guidance_scale": model.guidance_scale,
        },
        "samplers": model.samplers.iter()
            .map(|(name, own)| json!({"name": name, "steps": steps(*own)}))
            .collect::<Vec<_>>(),
        "limits": {
            "size_multiple_of": model.multiple_of,
            "max_side": limits.max_side,
            "max_frames": limits.max_frames,
            "max_pixels": limits.max_pixels,
            "max_steps": limits.max_steps,
            "max_prompt_characters": MAX_PROMPT_CHARS,
            "max_seed": MAX_SEED,
            "max_queued": limits.max_queued,
        },
    })
}

pub(super) async fn list(State(app): State<Arc<App>>) -> Json {
    Json(json!({"object": "list", "data": [model(&app)]}))
}

pub(super) async fn get(
    State(app): State<Arc<App>>,
    PathValue(name): PathValue,
) -> Result<Json, ApiError> {
    if name == app.queue.engine().model().id {
        return Ok(Json(model(&app)));
    }
    Err(ApiError::new(StatusCode::NOT_FOUND, "model_not_found", "there is no such model"))
}
