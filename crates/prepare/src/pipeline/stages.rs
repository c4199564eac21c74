//! The steps of this crate as stages of a pipeline: each step's `Job` is a [`Stage`].

use super::Stage;
use crate::{Observer, PrepareError, Summary, clean, filter, scan, split};
use clean::{Naming, Treatment};
use filter::Keep;
use opensora_manifest::Table;
use scan::{Found, Walk};
use serde_json::{Value, json};
use std::path::Path;

impl Stage for scan::Job {
    fn name(&self) -> &str {
        "scan"
    }

    fn settings(&self) -> Value {
        match self.walk {
            // The form of earlier versions.
            Walk { follow_links: false } => json!({}),
            walk => json!(walk),
        }
    }

    fn run(
        &self,
        input: &Path,
        output: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Summary, PrepareError> {
        let found = Found::walk(&[input.to_path_buf()], self.walk)?;
        scan::run(self, &found, output, observer)
    }
}

impl Stage for split::Job {
    fn name(&self) -> &str {
        "split"
    }

    fn settings(&self) -> Value {
        json!(self.settings)
    }

    fn run(
        &self,
        input: &Path,
        output: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Summary, PrepareError> {
        // Not the table's name, which the folder of the stage has already.
        let clips = self.clips.clone().unwrap_or_else(|| output.with_file_name("clips"));
        let job = Self { clips: Some(clips), ..self.clone() };
        split::run(&job, &Table::read(input)?, output, observer)
    }
}

impl Stage for filter::Job {
    fn name(&self) -> &str {
        "filter"
    }

    fn settings(&self) -> Value {
        let distance = self.duplicates.map(|duplicates| duplicates.max_distance);
        let mut settings = json!({ "bounds": self.bounds, "duplicates": distance });
        // Options that are not set are left out, as in the form of earlier versions.
        if self.hashes {
            settings["hashes"] = true.into();
        }
        if self.duplicates.is_some_and(|duplicates| duplicates.keep == Keep::First) {
            settings["keep"] = "first".into();
        }
        if !self.models.is_empty() {
            settings["models"] = self.models.iter().map(|model| model.settings()).collect();
        }
        if self.score_only {
            settings["score_only"] = true.into();
        }
        if self.measure_again {
            settings["measure_again"] = true.into();
        }
        settings
    }

    fn for_part(&self) -> Option<Box<dyn Stage>> {
        self.duplicates?;
        Some(Box::new(Self { duplicates: None, hashes: true, ..self.clone() }))
    }

    fn run(
        &self,
        input: &Path,
        output: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Summary, PrepareError> {
        Ok(filter::run(self, &Table::read(input)?, output, observer)?.summary())
    }
}

impl Stage for clean::Job {
    fn name(&self) -> &str {
        "clean"
    }

    fn settings(&self) -> Value {
        let mut settings = json!({ "openings": self.openings, "relength": self.relength });
        // Options that are not set are left out, as in the form of earlier versions.
        for (name, treatment) in [("empty", self.empty), ("unusable", self.unusable)] {
            if treatment != Treatment::Drop {
                settings[name] = json!(treatment);
            }
        }
        if self.naming != Naming::Movable {
            settings["naming"] = json!(self.naming);
        }
        settings
    }

    fn run(
        &self,
        input: &Path,
        output: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Summary, PrepareError> {
        Ok(clean::run(self, &Table::read(input)?, output, observer)?.summary())
    }
}

#[cfg(feature = "caption")]
impl Stage for crate::caption::Job {
    fn name(&self) -> &str {
        "caption"
    }

    fn settings(&self) -> Value {
        self.journal_settings()
    }

    fn run(
        &self,
        input: &Path,
        output: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Summary, PrepareError> {
        Ok(crate::caption::run(self, &Table::read(input)?, output, observer)?.summary())
    }
}
