//! Engines for tests: without a model, with a configurable time per step.

#![allow(unreachable_pub, reason = "several tests share this module, each uses some items")]

use opensora_serve::{
    engine::{Engine, EngineError, Generated, ModelInfo, Observer, Preview, Sampled, Stage},
    request::JobRequest,
};
use opensora_video::Frames;
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

/// A model of 8 frames of 48x48.
pub fn model() -> ModelInfo {
    ModelInfo {
        id: "demo".into(),
        num_frames: 8,
        width: 48,
        height: 48,
        multiple_of: 8,
        fps: 4.0,
        sampler: "dpm-solver".into(),
        steps: 14,
        samplers: vec![("iddpm".into(), 100), ("dpm-solver".into(), 20)],
        guidance_scale: 6.0,
    }
}

/// Makes black videos; a step takes `step`. The prompts `fail`, `overflow` and `panic` make it fail, return an
/// output that is not finite, and panic.
pub struct FakeEngine {
    pub model: ModelInfo,
    pub step: Duration,
    /// Number of videos that were started.
    pub begun: AtomicUsize,
}

impl FakeEngine {
    pub fn new(step: Duration) -> Self {
        Self { model: model(), step, begun: AtomicUsize::new(0) }
    }
}

impl Engine for FakeEngine {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn check(&self, request: &JobRequest) -> Result<(), EngineError> {
        match request.prompt.as_str() {
            "impossible" => Err(EngineError::Request("no such thing".into())),
            _ => Ok(()),
        }
    }

    fn generate(
        &self,
        request: &JobRequest,
        observer: &mut dyn Observer,
    ) -> Result<Generated, EngineError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let mut flow = observer.stage(Stage::Sampling);
        for step in 0..request.steps {
            if flow.is_break() {
                return Err(EngineError::Stopped);
            }
            std::thread::sleep(self.step);
            flow = observer.sampled(&Sampled::new(step + 1, request.steps));
            if observer.wants_preview() {
                let png = vec![0; 16];
                observer.previewed(Preview::new(step + 1, [1, 1, 1], png));
            }
            match request.prompt.as_str() {
                "fail" => return Err(EngineError::Failed("out of\nmemory".into())),
                "overflow" => {
                    return Err(EngineError::NotFinite(
                        "all weights are finite: likely a guidance scale of 100".into(),
                    ));
                }
                "panic" => panic!("as the test asks"),
                _ => {}
            }
        }
        if flow.is_break() {
            return Err(EngineError::Stopped);
        }
        let shape = [request.num_frames, request.height, request.width];
        let data = vec![0; 3 * shape.iter().product::<usize>()];
        let clip =
            Frames::from_rgb(data, shape).map_err(|error| EngineError::Failed(Box::new(error)))?;
        Ok(Generated { clip, record: serde_json::json!({"prompt": request.prompt}) })
    }
}
