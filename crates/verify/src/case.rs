//! A case: `case.json`, inputs and expected values.

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

/// Largest JSON file of a case, in bytes; lists of captions and keys have up to a megabyte.
const MAX_CASE_BYTES: u64 = 16 << 20;

/// An opened case.
#[derive(Debug)]
pub struct Case {
    folder: PathBuf,
    json: Value,
    inputs: Option<Checkpoint>,
    expected: Option<Checkpoint>,
    /// Current step of the runner, for error messages.
    step: RefCell<String>,
}

impl Case {
    /// Opens a folder with a `case.json`.
    ///
    /// # Errors
    /// Returns an error if a file is missing or malformed.
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

    /// Returns the kind of the case, or an empty text if it has none.
    pub fn kind(&self) -> &str {
        self.json["kind"].as_str().unwrap_or_default()
    }

    /// Returns the name of the case, or else of its folder.
    pub fn name(&self) -> &str {
        let folder = self.folder.file_name().and_then(|name| name.to_str()).unwrap_or("case");
        self.json["name"].as_str().unwrap_or(folder)
    }

    /// Sets the current step, which error messages name.
    pub(super) fn begin(&self, step: impl Into<String>) {
        self.step.replace(step.into());
    }

    /// Reads an output from the device. Lazy backends compute it only now, so that an error may belong to an
    /// earlier operation.
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

    /// Returns the current step.
    pub(super) fn step(&self) -> String {
        self.step.borrow().clone()
    }

    /// Returns a value of `case.json` by a JSON pointer (RFC 6901).
    pub(super) fn get<T: DeserializeOwned>(&self, pointer: &str) -> Result<T, Failure> {
        let value = self.json.pointer(pointer).unwrap_or(&Value::Null);
        serde_json::from_value(value.clone())
            .map_err(|error| format!("case.json: '{pointer}': {}", one_line(error)).into())
    }

    /// Returns an error if the settings at `pointer` contain one that is not `known` and would be ignored.
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

    /// Returns the path of a file or folder that `case.json` names at `pointer`.
    pub(super) fn path(&self, pointer: &str) -> Result<PathBuf, Failure> {
        Ok(self.folder.join(self.get::<String>(pointer)?))
    }

    /// Reads another JSON file of the case.
    pub(super) fn json_file<T: DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        let path = self.folder.join(name);
        let text = read_text(&path, MAX_CASE_BYTES)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_str(&text)
            .map_err(|error| format!("{}: {}", path.display(), one_line(error)).into())
    }

    /// Returns the names of the expected outputs.
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

    /// Returns a float input of rank `D`.
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

    /// Returns the values and the shape of an integer input.
    pub(super) fn integers(&self, name: &str) -> Result<(Vec<i64>, Vec<usize>), Failure> {
        let data = self.data(name)?;
        let shape = data.shape().to_vec();
        Ok((data.try_cast_as::<i64>()?.try_into_vec::<i64>()?, shape))
    }

    /// Returns the values of a float input.
    pub(super) fn floats(&self, name: &str) -> Result<Vec<f32>, Failure> {
        let data = self.data(name)?.try_cast_as::<f32>()?;
        Ok(data.try_into_vec::<f32>()?)
    }

    /// Returns the rows of an integer input `[B, L]`.
    pub(super) fn rows(&self, name: &str) -> Result<Vec<Vec<i64>>, Failure> {
        let (values, shape) = self.integers(name)?;
        match shape[..] {
            [_, length] if length > 0 => Ok(values.chunks(length).map(<[i64]>::to_vec).collect()),
            _ => Err(format!("input '{name}' has shape {shape:?}, expected [B, L]").into()),
        }
    }

    /// Returns a mask input `[B, L]`.
    pub(super) fn mask(&self, name: &str) -> Result<TokenMask, Failure> {
        let rows = self.rows(name)?;
        let rows = rows.into_iter().map(|row| row.iter().map(|&keep| keep != 0).collect());
        TokenMask::new(rows.collect()).ok_or_else(|| format!("input '{name}' is empty").into())
    }

    /// Removes the slice of an output along its first axis that the case excludes, because its values depend on
    /// rounding.
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

    /// Compares the outputs with all expected values.
    pub(super) fn compare(&self, outputs: Outputs) -> Result<Vec<Check>, Failure> {
        let mut outputs: BTreeMap<String, Output> = outputs.into_iter().collect();
        let mut checks = Vec::new();
        // Kinds without tensors compare their outputs themselves.
        outputs.retain(|name, output| match output {
            Output::Check(check) => {
                checks.push(Check { name: name.clone(), ..check.clone() });
                false
            }
            Output::Values { .. } => true,
        });
        let Some(expected) = &self.expected else {
            let missing = "the case has no expected values for this output";
            checks.extend(outputs.keys().map(|name| Check::failed(name, missing)));
            return Ok(checks);
        };
        for (name, entry) in expected.tensors() {
            self.begin(format!("comparing {name}"));
            let want = Output::from_data(entry.read(name)?)?;
            // Integers must be equal unless the case has a tolerance for them.
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
