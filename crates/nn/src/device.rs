//! The table of backends: names, devices and their properties.
//!
//! burn 0.22 carries the backend in the [`Device`] and not in a type, so one binary runs on every
//! backend that was compiled in. No code of `opensora` outside this module and `kernels` names one.

#[cfg(any(feature = "metal", feature = "vulkan", feature = "wgpu"))]
mod adapters;
mod info;
mod probe;

pub use info::{DeviceInfo, DeviceKind, kind};
pub use probe::{ProbeError, probe, probe_reason, run_first_kernel};

#[allow(unused_imports, reason = "no backend may be compiled in")]
use burn::backend::DispatchDevice;
use burn::tensor::Device;

/// The known backends. A name is that in `--device`, and also the Cargo feature.
const BACKENDS: [Backend; 8] = [
    Backend { name: "cuda", list: cuda },
    Backend { name: "metal", list: metal },
    Backend { name: "rocm", list: rocm },
    Backend { name: "vulkan", list: vulkan },
    Backend { name: "wgpu", list: wgpu },
    Backend { name: "flex", list: flex },
    Backend { name: "tch", list: tch },
    Backend { name: "ndarray", list: ndarray },
];

/// A row of the table of backends: name, and function that lists devices.
struct Backend {
    name: &'static str,
    /// Lists the devices in burn's order; `None` if the backend is not compiled in.
    list: fn() -> Option<Vec<Found>>,
}

/// A device and its name in `--device`.
type Found = (String, Device);

/// A backend and its devices, from [`list`].
#[derive(Debug, Clone)]
pub struct BackendInfo {
    /// Name, also of the Cargo feature.
    pub name: &'static str,
    /// True if the backend is part of this build.
    pub compiled: bool,
    /// The devices that are present on this machine, by the names that [`parse`] takes.
    pub devices: Vec<String>,
}

/// A device that is unknown or not available.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No such backend.
    #[error("unknown device '{name}': this build has {available}")]
    Unknown {
        /// The rejected name.
        name: String,
        /// The available devices.
        available: String,
    },
    /// A known backend that was not compiled in.
    #[error(
        "device '{name}' is not part of this build: rebuild with `--features {backend}`, or use {available}"
    )]
    NotCompiled {
        /// The rejected name.
        name: String,
        /// Cargo feature of the backend.
        backend: &'static str,
        /// The available devices.
        available: String,
    },
    /// Compiled in, but the hardware or its driver is missing.
    #[error("device '{name}' was not found on this machine: it has {available}")]
    Absent {
        /// The rejected name.
        name: String,
        /// The available devices.
        available: String,
    },
    /// The only devices are software drivers, which are never the default.
    #[error("no default device: found only '{name}', a software driver, which has to be named")]
    OnlySoftware {
        /// Name of the first software driver.
        name: String,
    },
}

/// Returns every known backend with its available devices, in order of preference.
pub fn list() -> Vec<BackendInfo> {
    BACKENDS
        .iter()
        .map(|backend| {
            let found = (backend.list)();
            let names = |found: Vec<Found>| found.into_iter().map(|(name, _)| name).collect();
            BackendInfo {
                name: backend.name,
                compiled: found.is_some(),
                devices: found.map(names).unwrap_or_default(),
            }
        })
        .collect()
}

/// Returns the hardware, driver and memory of a named device.
///
/// Queries the drivers, and opens CUDA and ROCm devices.
///
/// # Errors
/// Returns an error if [`parse`] does.
pub fn describe(name: &str) -> Result<DeviceInfo, DeviceError> {
    find(name).map(|(name, device)| info::describe(name, &device))
}

/// Returns the device to use if none is named.
///
/// Takes the first backend with a device, accelerators first, and of its devices the first of the
/// preferred kind (a discrete GPU before an integrated one). Software drivers are left out: a backend
/// made for the processor is many times faster.
///
/// # Errors
/// Returns an error if no backend was compiled in, or none of those has a device that is not a software
/// driver.
pub fn default_device() -> Result<Device, DeviceError> {
    let rows = BACKENDS.iter().filter_map(|backend| (backend.list)());
    match pick(rows.map(|row| row.into_iter().map(with_kind).collect())) {
        Ok((_, device)) => Ok(device),
        Err(Some((name, _))) => Err(DeviceError::OnlySoftware { name }),
        Err(None) => Err(DeviceError::Absent { name: "default".into(), available: available() }),
    }
}

fn with_kind(found: Found) -> (Found, DeviceKind) {
    let kind = kind(&found.1);
    (found, kind)
}

/// Returns the first device of the preferred kind, from the first row with a device that is not a
/// software driver. If there is none, returns the first software driver as the error.
fn pick<T>(rows: impl Iterator<Item = Vec<(T, DeviceKind)>>) -> Result<T, Option<T>> {
    let mut software = None;
    for row in rows {
        match best(row) {
            Some((found, DeviceKind::Software)) => software = software.or(Some(found)),
            Some((found, _)) => return Ok(found),
            None => {}
        }
    }
    Err(software)
}

/// Returns the first device of the preferred kind.
fn best<T>(row: Vec<(T, DeviceKind)>) -> Option<(T, DeviceKind)> {
    row.into_iter().min_by_key(|(_, kind)| *kind)
}

/// Returns the name by which [`parse`] finds a device, or `None` if the device is not present.
pub fn name(device: &Device) -> Option<String> {
    let mut present = BACKENDS.iter().filter_map(|backend| (backend.list)()).flatten();
    present.find(|(_, found)| found == device).map(|(name, _)| name)
}

/// Returns true if tensors of this device are in host memory and can be read without a copy and without
/// waiting: on flex, without autodiff.
pub fn is_host(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    return !device.is_autodiff() && *device == Device::flex();
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        false
    }
}

/// Returns the device of a name, such as `flex`, `ndarray`, `tch`, `tch:cuda:0`, `cuda:0` or `vulkan`.
///
/// Devices are numbered in burn's order. A backend's name alone means its preferred device: a discrete
/// GPU before an integrated one, a software driver last.
///
/// # Errors
/// Returns an error if the name is unknown, its backend is not in this build, or the device is not
/// present.
pub fn parse(name: &str) -> Result<Device, DeviceError> {
    find(name).map(|(_, device)| device)
}

/// Finds a device with its full name, such as `cuda:0` for `cuda`.
fn find(name: &str) -> Result<Found, DeviceError> {
    let prefix = name.split(':').next().unwrap_or(name);
    let Some(backend) = BACKENDS.iter().find(|backend| backend.name == prefix) else {
        return Err(DeviceError::Unknown { name: name.into(), available: available() });
    };
    let Some(mut found) = (backend.list)() else {
        return Err(DeviceError::NotCompiled {
            name: name.into(),
            backend: backend.name,
            available: available(),
        });
    };
    if let Some(at) = found.iter().position(|(device_name, _)| device_name == name) {
        return Ok(found.swap_remove(at));
    }
    let preferred = || best(found.into_iter().map(with_kind).collect()).map(|(found, _)| found);
    (name == prefix)
        .then(preferred)
        .flatten()
        .ok_or_else(|| DeviceError::Absent { name: name.into(), available: available() })
}

/// Returns true if the device's kernels are compiled at their first use (and tuned, with the feature
/// `autotune`), so that first steps take far longer than later ones.
pub fn compiles_kernels(device: &Device) -> bool {
    #[cfg(any(
        feature = "cuda",
        feature = "metal",
        feature = "rocm",
        feature = "vulkan",
        feature = "wgpu"
    ))]
    return matches!(device.clone().inner().as_dispatch(), DispatchDevice::Cube(_));
    #[cfg(not(any(
        feature = "cuda",
        feature = "metal",
        feature = "rocm",
        feature = "vulkan",
        feature = "wgpu"
    )))]
    {
        let _ = device;
        false
    }
}

/// Properties of a device's fused attention; see [`attention_kernel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionKernel {
    /// True if scores are computed tile by tile and never held all at once. Calls with an additive bias
    /// always hold all scores.
    pub tiled: bool,
    /// The accelerated kernel requires a `head_dim` that is a multiple of this, no bias and the default
    /// scale. `None` if `head_dim` does not matter.
    pub head_dim_multiple: Option<usize>,
}

/// Returns how `device` computes attention in burn 0.22.1.
///
/// - flex: above 2^18 scores per head, tiles of 64 keys with an online softmax (burn-flex
///   `ops/attention.rs`).
/// - tch: libtorch's `scaled_dot_product_attention` (burn-tch `ops/module.rs`).
/// - ndarray, and every backend under autodiff: separate products with all scores held
///   (burn-backend `ops/modules/attention.rs`).
/// - CubeCL (cuda, rocm, vulkan, metal, wgpu): the accelerated kernel requires no bias, no explicit scale
///   (burn-cubecl `ops/module.rs`) and a `head_dim` that is a multiple of its tile (cubek-attention
///   `forward/routines/blackbox_accelerated.rs`: 16 on present matrix units). Other calls use separate
///   products (burn-cubecl `kernel/attention/base.rs`), so `tiled` is false.
pub fn attention_kernel(device: &Device) -> AttentionKernel {
    const HELD: AttentionKernel = AttentionKernel { tiled: false, head_dim_multiple: None };
    if device.is_autodiff() {
        return HELD;
    }
    match device.as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => AttentionKernel { tiled: true, head_dim_multiple: None },
        #[cfg(feature = "tch")]
        DispatchDevice::LibTorch(_) => AttentionKernel { tiled: true, head_dim_multiple: None },
        #[cfg(any(
            feature = "cuda",
            feature = "metal",
            feature = "rocm",
            feature = "vulkan",
            feature = "wgpu"
        ))]
        DispatchDevice::Cube(_) => AttentionKernel { tiled: false, head_dim_multiple: Some(16) },
        #[allow(unreachable_patterns, reason = "which backends there are is a matter of features")]
        _ => HELD,
    }
}

/// Returns the names of the available devices, for error messages.
fn available() -> String {
    let names: Vec<String> = list().into_iter().flat_map(|backend| backend.devices).collect();
    if names.is_empty() { "no device".into() } else { names.join(", ") }
}

/// Returns devices with their names: `name:0`, `name:1`, ...
#[allow(dead_code, reason = "used by accelerators only, which may all be compiled out")]
fn numbered(name: &str, devices: impl IntoIterator<Item = Device>) -> Option<Vec<Found>> {
    Some(devices.into_iter().enumerate().map(|(i, d)| (format!("{name}:{i}"), d)).collect())
}

/// Defines the `list` function of a row: `$found` with the backend's feature, `None` without.
macro_rules! backend {
    ($name:ident, $feature:literal, $found:expr) => {
        fn $name() -> Option<Vec<Found>> {
            #[cfg(feature = $feature)]
            #[allow(deprecated, reason = "burn plans to retire ndarray and tch; 0.22 has them")]
            return $found;
            #[cfg(not(feature = $feature))]
            None
        }
    };
}

#[allow(unused_imports, reason = "used by accelerators only, which may all be compiled out")]
use burn::tensor::DeviceType;

backend!(cuda, "cuda", numbered("cuda", Device::enumerate(DeviceType::Cuda)));
backend!(metal, "metal", numbered("metal", Device::enumerate(DeviceType::Metal)));
backend!(rocm, "rocm", numbered("rocm", Device::enumerate(DeviceType::Rocm)));
backend!(vulkan, "vulkan", numbered("vulkan", Device::enumerate(DeviceType::Vulkan)));
backend!(wgpu, "wgpu", numbered("wgpu", Device::enumerate(DeviceType::Wgpu)));
backend!(flex, "flex", Some(vec![("flex".into(), Device::flex())]));
backend!(ndarray, "ndarray", Some(vec![("ndarray".into(), Device::ndarray())]));
backend!(tch, "tch", {
    // The processor, then the NVIDIA GPUs that libtorch sees.
    let mut found = vec![("tch".to_string(), Device::libtorch())];
    found.extend(numbered("tch:cuda", Device::enumerate(DeviceType::LibTorch))?);
    #[cfg(target_os = "macos")]
    found.push(("tch:mps".into(), Device::libtorch_mps()));
    Some(found)
});

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "flex")]
    #[test]
    fn available_devices_are_listed() {
        let backends = list();
        let flex = backends.iter().find(|backend| backend.name == "flex").unwrap();
        assert!(flex.compiled && flex.devices == ["flex"]);
        assert!(available().split(", ").any(|name| name == "flex"));
        assert!(is_host(&Device::flex()) && !is_host(&Device::flex().autodiff()));
    }

    #[cfg(feature = "flex")]
    #[test]
    fn devices_are_numbered_and_the_processor_compiles_no_kernels() {
        let found = numbered("cuda", [Device::flex(), Device::flex()]).unwrap();
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["cuda:0", "cuda:1"]);
        assert!(
            !compiles_kernels(&Device::flex()) && !compiles_kernels(&Device::flex().autodiff())
        );
    }

    #[test]
    fn unknown_names_give_an_error_of_one_line() {
        for name in ["", "gpu", "flex:1:2:3", "flexx", "🙂"] {
            let error = parse(name).unwrap_err().to_string();
            assert!(!error.contains('\n') && !error.is_empty(), "{error}");
        }
        assert!(matches!(parse("gpu"), Err(DeviceError::Unknown { .. })));
    }

    #[test]
    fn listed_devices_can_be_parsed() {
        for backend in list() {
            assert!(backend.compiled || backend.devices.is_empty());
            for name in backend.devices {
                parse(&name).unwrap();
            }
        }
    }

    #[test]
    fn software_drivers_are_never_the_default_and_discrete_gpus_come_first() {
        use DeviceKind::*;
        let pick = |rows: &[&[(&'static str, DeviceKind)]]| {
            super::pick(rows.iter().map(|row| row.to_vec()))
        };
        let lavapipe: &[_] = &[("vulkan:0", Software)];
        let flex: &[_] = &[("flex", Cpu)];
        assert_eq!(pick(&[lavapipe, flex]), Ok("flex"));
        assert_eq!(pick(&[lavapipe, &[("wgpu:0", Software)]]), Err(Some("vulkan:0")));
        assert_eq!(pick(&[&[], &[]]), Err(None));
        let laptop: &[_] = &[("wgpu:0", Software), ("wgpu:1", Integrated), ("wgpu:2", Discrete)];
        assert_eq!(pick(&[lavapipe, laptop, flex]), Ok("wgpu:2"));
        let twins: &[_] = &[("cuda:0", Gpu), ("cuda:1", Gpu)];
        assert_eq!(pick(&[twins, laptop]), Ok("cuda:0"));
    }

    #[test]
    fn every_listed_device_is_described_under_its_name() {
        for name in list().into_iter().flat_map(|backend| backend.devices) {
            let info = describe(&name).unwrap();
            assert_eq!(info.name, name);
            assert_eq!(info.kind, kind(&parse(&name).unwrap()));
        }
        assert!(matches!(describe("gpu"), Err(DeviceError::Unknown { .. })));
    }

    #[test]
    fn the_default_device_is_not_a_software_driver() {
        match default_device() {
            Ok(device) => assert_ne!(kind(&device), DeviceKind::Software),
            Err(error) => {
                assert!(!list().iter().any(|row| row.name == "flex" && row.compiled), "{error}")
            }
        }
    }

    #[test]
    fn attention_under_autodiff_holds_its_scores() {
        let device = Device::flex();
        let held = AttentionKernel { tiled: false, head_dim_multiple: None };
        assert_eq!(attention_kernel(&device.clone().autodiff()), held);
        #[cfg(feature = "flex")]
        assert!(attention_kernel(&device).tiled);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_backend_that_is_not_compiled_in_names_its_feature() {
        let error = parse("cuda:0").unwrap_err();
        assert!(matches!(error, DeviceError::NotCompiled { backend: "cuda", .. }), "{error}");
    }
}
