//! Float types of weights and activations.

use burn::tensor::{Device, FloatDType};
use std::{fmt, str::FromStr};

/// A float type of weights and activations, as in `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dtype {
    /// 32 bits: the type in which results are tested against the reference.
    #[default]
    F32,
    /// bfloat16, 8 bits of precision: the type of the published training.
    Bf16,
    /// IEEE half precision, 11 bits of precision: the type of the published sampling.
    F16,
}

impl Dtype {
    /// Returns burn's type.
    pub fn float(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
            Self::F16 => FloatDType::F16,
        }
    }

    /// Returns this type if `device` can compute in it.
    ///
    /// # Errors
    /// Returns an error if the device does not support the type.
    pub fn check(self, device: &Device) -> Result<Self, DtypeError> {
        check(self.float(), device)?;
        Ok(self)
    }
}

/// Checks that `device` computes in `dtype`.
///
/// # Errors
/// Returns [`DtypeError::Unsupported`] if it does not.
pub fn check(dtype: FloatDType, device: &Device) -> Result<(), DtypeError> {
    if device.supports_dtype(dtype) {
        Ok(())
    } else {
        Err(DtypeError::Unsupported { dtype, device: format!("{device:?}") })
    }
}

/// Returns the short name of a float type, such as `bf16`.
pub fn name(dtype: FloatDType) -> &'static str {
    match dtype {
        FloatDType::F64 => "f64",
        FloatDType::F32 => "f32",
        FloatDType::Flex32 => "flex32",
        FloatDType::F16 => "f16",
        FloatDType::BF16 => "bf16",
    }
}

impl From<Dtype> for FloatDType {
    fn from(dtype: Dtype) -> Self {
        dtype.float()
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(self.float()))
    }
}

impl FromStr for Dtype {
    type Err = DtypeError;

    fn from_str(name: &str) -> Result<Self, DtypeError> {
        match name {
            "f32" | "fp32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" | "fp16" => Ok(Self::F16),
            _ => Err(DtypeError::Unknown(name.to_string())),
        }
    }
}

/// A dtype that is unknown or not supported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DtypeError {
    /// The name is unknown.
    #[error("unknown dtype '{0}': expected f32, bf16 or f16")]
    Unknown(String),
    /// The device does not compute in this type.
    #[error("dtype {} is not supported on {device}: use f32", name(*dtype))]
    Unsupported {
        /// The type.
        dtype: FloatDType,
        /// Debug text of the device.
        device: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "flex")]
    #[test]
    fn devices_without_a_type_are_rejected() {
        let device = Device::flex();
        assert_eq!(Dtype::F32.check(&device), Ok(Dtype::F32));
        assert_eq!(Dtype::Bf16.check(&device), Ok(Dtype::Bf16));
        let error = check(FloatDType::Flex32, &device).unwrap_err();
        assert!(matches!(error, DtypeError::Unsupported { dtype: FloatDType::Flex32, .. }));
        assert!(error.to_string().starts_with("dtype flex32 is not supported on "), "{error}");
    }

    #[test]
    fn names_round_trip() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        assert_eq!("f64".parse::<Dtype>(), Err(DtypeError::Unknown("f64".into())));
    }
}
