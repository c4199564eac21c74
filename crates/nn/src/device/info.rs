//! Kind, hardware, driver and memory of devices.

use burn::tensor::Device;
use serde::Serialize;

#[allow(unused_imports, reason = "no backend may be compiled in")]
use burn::backend::DispatchDevice;

/// Kind of a device. The order is that of preference among the devices of one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DeviceKind {
    /// A GPU with dedicated memory.
    Discrete,
    /// A GPU of unknown kind: CUDA, ROCm and libtorch do not report it.
    Gpu,
    /// A GPU that shares the processor's memory.
    Integrated,
    /// A virtual GPU of a virtual machine.
    Virtual,
    /// An adapter that its driver does not classify.
    Unknown,
    /// The processor, through a backend made for it.
    Cpu,
    /// A driver that emulates a GPU on the processor (lavapipe, SwiftShader, WARP): for tests, and far
    /// slower than a backend made for the processor.
    Software,
}

impl DeviceKind {
    /// Returns the kind as text, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discrete => "discrete",
            Self::Gpu => "gpu",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Unknown => "unknown",
            Self::Cpu => "cpu",
            Self::Software => "software",
        }
    }
}

/// Details of a device; `None` for those that neither driver nor API reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Name of the device as in `--device`.
    pub name: String,
    /// Kind of the device.
    pub kind: DeviceKind,
    /// Name of the hardware, or of the software driver.
    pub adapter: Option<String>,
    /// Graphics API: Vulkan, Metal, Dx12 or Gl.
    pub api: Option<String>,
    /// Name of the driver.
    pub driver: Option<String>,
    /// Version of the driver, in the driver's own format.
    pub driver_version: Option<String>,
    /// Size of the device's largest memory in bytes.
    pub memory_bytes: Option<u64>,
}

/// Returns the kind of a device. Does not open it.
pub fn kind(device: &Device) -> DeviceKind {
    // Looks through the autodiff wrapper.
    let device = device.clone().inner();
    match device.as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => DeviceKind::Cpu,
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => DeviceKind::Cpu,
        #[cfg(feature = "tch")]
        #[allow(deprecated, reason = "burn plans to retire tch; 0.22 has it")]
        DispatchDevice::LibTorch(device) => {
            use burn::backend::LibTorchDevice;
            match device {
                LibTorchDevice::Cpu => DeviceKind::Cpu,
                LibTorchDevice::Mps => DeviceKind::Integrated,
                _ => DeviceKind::Gpu,
            }
        }
        #[cfg(any(
            feature = "cuda",
            feature = "metal",
            feature = "rocm",
            feature = "vulkan",
            feature = "wgpu"
        ))]
        DispatchDevice::Cube(device) => of_cube(device),
        #[allow(unreachable_patterns, reason = "which backends there are is a matter of features")]
        _ => DeviceKind::Unknown,
    }
}

#[cfg(any(
    feature = "cuda",
    feature = "metal",
    feature = "rocm",
    feature = "vulkan",
    feature = "wgpu"
))]
fn of_cube(device: &burn::backend::CubeDevice) -> DeviceKind {
    match device {
        #[cfg(any(feature = "metal", feature = "vulkan", feature = "wgpu"))]
        burn::backend::CubeDevice::Wgpu(device) => {
            use burn::backend::WgpuDeviceKind;
            match device.kind {
                WgpuDeviceKind::DiscreteGpu(_) => DeviceKind::Discrete,
                WgpuDeviceKind::IntegratedGpu(_) => DeviceKind::Integrated,
                WgpuDeviceKind::VirtualGpu(_) => DeviceKind::Virtual,
                WgpuDeviceKind::Cpu => DeviceKind::Software,
                _ => DeviceKind::Unknown,
            }
        }
        #[allow(unreachable_patterns, reason = "which runtimes there are is a matter of features")]
        _ => DeviceKind::Gpu,
    }
}

/// Returns the details of a device. Queries drivers for their adapters, and opens CUDA and ROCm devices.
pub(super) fn describe(name: String, device: &Device) -> DeviceInfo {
    let kind = kind(device);
    #[allow(unused_mut, reason = "nothing more is known of backends for the processor")]
    let mut info = DeviceInfo {
        name,
        kind,
        adapter: None,
        api: None,
        driver: None,
        driver_version: None,
        memory_bytes: None,
    };
    #[cfg(any(feature = "metal", feature = "vulkan", feature = "wgpu"))]
    if let Some(adapter) = super::adapters::find(device) {
        adapter.fill(&mut info);
        return info;
    }
    #[cfg(any(feature = "cuda", feature = "rocm"))]
    if kind == DeviceKind::Gpu {
        fill_opened(device, &mut info);
    }
    info
}

/// Fills in the name and memory that a CubeCL runtime reports once its device is opened.
#[cfg(any(feature = "cuda", feature = "rocm"))]
fn fill_opened(device: &Device, info: &mut DeviceInfo) {
    let DispatchDevice::Cube(device) = device.as_dispatch() else { return };
    // burn panics if a driver does not start: the device is then listed without details.
    let opened = std::panic::catch_unwind(|| {
        let client = device.client();
        let properties = client.properties();
        (properties.identity.name.clone(), properties.memory.max_memory())
    });
    if let Ok((name, memory)) = opened {
        info.adapter = Some(name);
        info.memory_bytes = memory;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names() {
        use DeviceKind::*;
        let kinds = [Discrete, Gpu, Integrated, Virtual, Unknown, Cpu, Software];
        let names = ["discrete", "gpu", "integrated", "virtual", "unknown", "cpu", "software"];
        assert_eq!(kinds.map(DeviceKind::as_str), names);
    }

    #[test]
    fn software_drivers_come_last_and_discrete_gpus_first() {
        use DeviceKind::*;
        let mut kinds = [Software, Cpu, Unknown, Virtual, Integrated, Gpu, Discrete];
        kinds.sort();
        assert_eq!(kinds, [Discrete, Gpu, Integrated, Virtual, Unknown, Cpu, Software]);
    }

    #[cfg(feature = "flex")]
    #[test]
    fn flex_is_the_processor() {
        assert_eq!(kind(&Device::flex()), DeviceKind::Cpu);
        let info = describe("flex".into(), &Device::flex());
        assert_eq!((info.kind, info.adapter, info.memory_bytes), (DeviceKind::Cpu, None, None));
    }

    #[cfg(all(feature = "flex", feature = "autodiff"))]
    #[test]
    fn a_device_under_autodiff_is_the_one_it_wraps() {
        assert_eq!(kind(&Device::flex().autodiff()), DeviceKind::Cpu);
    }
}
