//! Reading a case: `case.json`, inputs and expected values.

use super::{Check, Failure, Output, Outputs, VerifyError, compare::Tolerance};
use burn::tensor::{Device, Tensor, TensorData};
use opensora::{
    checkpoint::Checkpoint,
    files::{one_line, read::read_text},
    nn::mask::TokenMask,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Most bytes of a JSON file of a case: lists of captions and keys have up to a megabyte.
const MAX_CASE_BYTES: u64 = 16 << 20;

/// An opened case.
#[derive(Debug)]
pub struct Case {
    folder: PathBuf,
    json: Value,
    inputs: Option<Checkpoint>,
    expected: Option<Checkpoint>,
    /// What the case's runner is doing, for the message of a failure.
    step: RefCell<String>,
}

impl Case {
    /// Opens a folder that holds a `case.json`.
    ///
    /// # Errors
    /// Where a file is missing or not of the format.
    pub fn open(folder: &Path) -> Result<Self, VerifyError> {
        let path = folder.join("case.json");
        let text = read_text(&path, MAX_CASE_BYTES)
            .map_err(|source| VerifyError::Read { path: path.clone(), source })?;
        let json: Value =
            serde_json::from_str(&text).map_err(|source| VerifyError::Json { path, source })?;
        let open = |field: &str, usual: &str| -> Result<Option<Checkpoint>, VerifyError> {
            let named = json.get(field).and_then(Value::as_str);
            let file = folder.join(named.unwrap_or(usual));
            if named.is_none() && !file.exists() {
                return Ok(None);
            }
            Checkpoint::open(&file).map(Some).map_err(|error| VerifyError::Library {
                path: folder.into(),
                step: "reading the case".into(),
                source: error.into(),
            })
        };
        let inputs = open("inputs_file", "inputs.safetensors")?;
        let expected = open("expected_file", "expected.safetensors")?;
        let step = RefCell::new("reading the case".into());
        Ok(Self { folder: folder.into(), json, inputs, expected, step })
    }

    /// Its kind, empty where it names none.
    pub fn kind(&self) -> &str {
        self.json["kind"].as_str().unwrap_or_default()
    }

    /// Its name, or that of its folder.
    pub fn name(&self) -> &str {
        let folder = self.folder.file_name().and_then(|name| name.to_str()).unwrap_or("case");
        self.json["name"].as_str().unwrap_or(folder)
    }

    /// Notes what the runner does next: a failure names it.
    pub(super) fn begin(&self, step: impl Into<String>) {
        self.step.replace(step.into());
    }

    /// Reads an output of the device. What was asked of it before may only be computed now, and fail.
    pub(super) fn output<const D: usize>(
        &self,
        name: impl Into<String>,
        tensor: Tensor<D>,
    ) -> Result<(String, Output), Failure> {
        let name = name.into();
        let doing = self.step();
        self.begin(format!("{doing}: reading {name}"));
        let output = Output::from_tensor(tensor)?;
        self.begin(doing);
        Ok((name, output))
    }

    /// Returns what the runner is doing.
    pub(super) fn step(&self) -> String {
        self.step.borrow().clone()
    }

    /// A part of `case.json`; `pointer` as in RFC 6901.
    pub(super) fn get<T: DeserializeOwned>(&self, pointer: &str) -> Result<T, Failure> {
        let value = self.json.pointer(pointer).unwrap_or(&Value::Null);
        serde_json::from_value(value.clone())
            .map_err(|error| format!("case.json: '{pointer}': {}", one_line(error)).into())
    }

    /// Fails if the settings at `pointer` have one that is not `known`: a case that it matters to would
    /// be compared with something else.
    pub(super) fn check_settings(&self, pointer: &str, known: &[&str]) -> Result<(), Failure> {
        let settings = self.json.pointer(pointer).and_then(Value::as_object);
        let unknown: Vec<&str> = settings
            .into_iter()
            .flat_map(|settings| settings.keys())
            .map(String::as_str)
            .filter(|name| !known.contains(name))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(format!(
            "case.json: '{pointer}': unknown settings {}, known are {}",
            unknown.join(", "),
            known.join(", ")
        )
        .into())
    }

    /// A file or folder of the case by a field of `case.json`.
    pub(super) fn path(&self, pointer: &str) -> Result<PathBuf, Failure> {
        Ok(self.folder.join(self.get::<String>(pointer)?))
    }

    /// A JSON file of the case that is not `case.json`.
    pub(super) fn json_file<T: DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        let path = self.folder.join(name);
        let text = read_text(&path, MAX_CASE_BYTES)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_str(&text)
            .map_err(|error| format!("{}: {}", path.display(), one_line(error)).into())
    }

    /// The names of the outputs that the case lists.
    pub(super) fn output_names(&self) -> Vec<String> {
        let outputs = self.json["outputs"].as_object();
        outputs.map(|map| map.keys().cloned().collect()).unwrap_or_default()
    }

    fn data(&self, name: &str) -> Result<TensorData, Failure> {
        let inputs = self.inputs.as_ref().ok_or("the case has no inputs.safetensors")?;
        let entry = inputs
            .tensors()
            .get(name)
            .ok_or_else(|| format!("input '{name}' is not in inputs.safetensors"))?;
        Ok(entry.read(name)?)
    }

    /// A float input of rank `D`.
    pub(super) fn tensor<const D: usize>(
        &self,
        name: &str,
        device: &Device,
    ) -> Result<Tensor<D>, Failure> {
        let data = self.data(name)?;
        if data.rank() != D {
            return Err(format!("input '{name}' has rank {}, expected {D}", data.rank()).into());
        }
        Ok(Tensor::from_data(data.try_cast_as::<f32>()?, device))
    }

    /// An integer input as its values and shape.
    pub(super) fn integers(&self, name: &str) -> Result<(Vec<i64>, Vec<usize>), Failure> {
        let data = self.data(name)?;
        let shape = data.shape().to_vec();
        Ok((data.try_cast_as::<i64>()?.try_into_vec::<i64>()?, shape))
    }

    /// A float input as its values.
    pub(super) fn floats(&self, name: &str) -> Result<Vec<f32>, Failure> {
        let data = self.data(name)?.try_cast_as::<f32>()?;
        Ok(data.try_into_vec::<f32>()?)
    }

    /// An integer input `[B, L]` as rows.
    pub(super) fn rows(&self, name: &str) -> Result<Vec<Vec<i64>>, Failure> {
        let (values, shape) = self.integers(name)?;
        match shape[..] {
            [_, length] if length > 0 => Ok(values.chunks(length).map(<[i64]>::to_vec).collect()),
            _ => Err(format!("input '{name}' has shape {shape:?}, expected [B, L]").into()),
        }
    }

    /// A mask input `[B, L]`.
    pub(super) fn mask(&self, name: &str) -> Result<TokenMask, Failure> {
        let rows = self.rows(name)?;
        let rows = rows.into_iter().map(|row| row.iter().map(|&keep| keep != 0).collect());
        TokenMask::new(rows.collect()).ok_or_else(|| format!("input '{name}' is empty").into())
    }

    /// An output without the slice along its first axis that the case leaves out, because
    /// rounding alone decides what stands there.
    fn without_excluded(&self, name: &str, output: Output) -> Output {
        let slice = &self.json["exclude_slices"][name];
        let (Some(start), Some(end)) = (slice[0].as_u64(), slice[1].as_u64()) else {
            return output;
        };
        match output {
            Output::Values { values, mut shape } => {
                let row = shape.iter().skip(1).product::<usize>().max(1);
                let excluded = start as usize..end as usize;
                let keep = |index: &usize| !excluded.contains(&(index / row));
                let kept = (0..values.len()).filter(keep).map(|index| values[index]).collect();
                if let Some(rows) = shape.first_mut() {
                    *rows -= (end.min(*rows as u64).saturating_sub(start)) as usize;
                }
                Output::Values { values: kept, shape }
            }
            check => check,
        }
    }

    /// Compares the outputs with all that the case expects.
    pub(super) fn compare(&self, outputs: Outputs) -> Result<Vec<Check>, Failure> {
        let mut outputs: BTreeMap<String, Output> = outputs.into_iter().collect();
        let mut checks = Vec::new();
        // JSON-only kinds bring what they expect along.
        outputs.retain(|name, output| match output {
            Output::Check(check) => {
                checks.push(Check { name: name.clone(), ..check.clone() });
                false
            }
            Output::Values { .. } => true,
        });
        let Some(expected) = &self.expected else { return Ok(checks) };
        for (name, entry) in expected.tensors() {
            self.begin(format!("comparing {name}"));
            let want = Output::from_data(entry.read(name)?)?;
            // Integers are exact wherever the case says nothing else of them.
            let integer = entry.dtype().is_some_and(|dtype| !dtype.is_float());
            let exact = integer && self.json["tolerances"][name].is_null();
            let tolerance = if exact { Tolerance::Exact } else { Tolerance::of(&self.json, name)? };
            checks.push(match outputs.remove(name) {
                Some(got) => {
                    let [got, want] = [got, want].map(|output| self.without_excluded(name, output));
                    tolerance.check(name, &got, &want)
                }
                None => Check::failed(name, "no such output is computed for this kind"),
            });
        }
        Ok(checks)
    }
}
