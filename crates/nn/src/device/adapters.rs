//! Finds the wgpu adapter of a device without opening the device.
//!
//! burn names a wgpu device by its kind and its number among those of that kind, in the order in which
//! the graphics API lists them (cubecl-wgpu `runtime.rs`). A device of `wgpu` is on the first of the
//! platform's APIs that has a GPU, else on the first that has any adapter; one of `vulkan` or `metal`
//! is on that API. This module enumerates adapters in the same order.

use super::info::DeviceInfo;
use burn::{
    backend::{
        AutoGraphicsApi, CubeDevice, DispatchDevice, WgpuBackend, WgpuDevice, WgpuDeviceKind,
    },
    tensor::{
        Device,
        wgpu::wgpu::{self, hal::api::Vulkan},
    },
};
use std::{
    pin::pin,
    sync::Mutex,
    task::{Context, Poll, Waker},
};

/// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT` of Vulkan.
const DEVICE_LOCAL: u32 = 1;

/// Instances by API, never dropped: some Vulkan loaders crash if instances are created repeatedly.
static INSTANCES: Mutex<Vec<(wgpu::Backend, wgpu::Instance)>> = Mutex::new(Vec::new());

/// An adapter with the properties that its driver reports.
pub(super) struct Adapter {
    info: wgpu::AdapterInfo,
    vulkan: Option<VulkanFacts>,
}

/// Properties that Vulkan reports and wgpu does not pass on.
struct VulkanFacts {
    memory_bytes: Option<u64>,
    #[cfg(feature = "vulkan")]
    untyped_pointers: bool,
}

impl Adapter {
    /// Fills the known properties into `info`.
    pub(super) fn fill(self, info: &mut DeviceInfo) {
        let stated = |text: String| (!text.is_empty()).then_some(text);
        info.adapter = stated(self.info.name);
        info.api = Some(format!("{:?}", self.info.backend));
        info.driver = stated(self.info.driver);
        info.driver_version = stated(self.info.driver_info);
        info.memory_bytes = self.vulkan.and_then(|facts| facts.memory_bytes);
    }

    /// Returns true for a Vulkan adapter.
    #[cfg(feature = "vulkan")]
    pub(super) fn is_vulkan(&self) -> bool {
        self.vulkan.is_some()
    }

    /// Returns true if the driver has `VK_KHR_shader_untyped_pointers`.
    #[cfg(feature = "vulkan")]
    pub(super) fn has_untyped_pointers(&self) -> bool {
        self.vulkan.as_ref().is_some_and(|facts| facts.untyped_pointers)
    }
}

/// Finds the adapter of a wgpu device.
pub(super) fn find(device: &Device) -> Option<Adapter> {
    let device = device.clone().inner();
    let DispatchDevice::Cube(CubeDevice::Wgpu(WgpuDevice { kind, backend, .. })) =
        device.as_dispatch()
    else {
        return None;
    };
    let (device_type, index) = match *kind {
        WgpuDeviceKind::DiscreteGpu(index) => (wgpu::DeviceType::DiscreteGpu, index),
        WgpuDeviceKind::IntegratedGpu(index) => (wgpu::DeviceType::IntegratedGpu, index),
        WgpuDeviceKind::VirtualGpu(index) => (wgpu::DeviceType::VirtualGpu, index),
        WgpuDeviceKind::Other(index) => (wgpu::DeviceType::Other, index),
        WgpuDeviceKind::Cpu => (wgpu::DeviceType::Cpu, 0),
        WgpuDeviceKind::DefaultDevice | WgpuDeviceKind::Existing(_) => return None,
    };
    let same = |adapter: &wgpu::Adapter| adapter.get_info().device_type == device_type;
    let adapter = reachable(backend).into_iter().filter(same).nth(index)?;
    Some(Adapter { info: adapter.get_info(), vulkan: vulkan_facts(&adapter) })
}

/// Returns the adapters of the API on which burn opens devices of `backend`.
fn reachable(backend: &WgpuBackend) -> Vec<wgpu::Adapter> {
    let apis = match backend {
        WgpuBackend::Auto => AutoGraphicsApi::chain(),
        WgpuBackend::Vulkan => vec![wgpu::Backend::Vulkan],
        WgpuBackend::Metal => vec![wgpu::Backend::Metal],
        WgpuBackend::Dx12 => vec![wgpu::Backend::Dx12],
        WgpuBackend::Gl => vec![wgpu::Backend::Gl],
        WgpuBackend::WebGpu => vec![wgpu::Backend::BrowserWebGpu],
    };
    let mut software = Vec::new();
    for api in apis {
        let adapters = adapters_of(api);
        let is_gpu =
            |adapter: &wgpu::Adapter| adapter.get_info().device_type != wgpu::DeviceType::Cpu;
        if adapters.iter().any(is_gpu) {
            return adapters;
        }
        if software.is_empty() {
            software = adapters;
        }
    }
    software
}

fn adapters_of(api: wgpu::Backend) -> Vec<wgpu::Adapter> {
    let Ok(mut instances) = INSTANCES.lock() else { return Vec::new() };
    let at = match instances.iter().position(|(found, _)| *found == api) {
        Some(at) => at,
        None => {
            let descriptor = wgpu::InstanceDescriptor {
                backends: api.into(),
                ..wgpu::InstanceDescriptor::new_without_display_handle()
            };
            instances.push((api, wgpu::Instance::new(descriptor)));
            instances.len() - 1
        }
    };
    let adapters = pin!(instances[at].1.enumerate_adapters(api.into()));
    // Outside browsers the future is ready at once.
    match adapters.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(adapters) => adapters,
        Poll::Pending => Vec::new(),
    }
}

#[allow(unsafe_code, reason = "wgpu states memory and extensions through its inner layer only")]
fn vulkan_facts(adapter: &wgpu::Adapter) -> Option<VulkanFacts> {
    // SAFETY: the inner adapter is only queried, while `adapter` keeps it alive.
    let inner = unsafe { adapter.as_hal::<Vulkan>() }?;
    let instance = inner.shared_instance().raw_instance();
    // SAFETY: the physical device is one of this instance, and both live as long as `inner`.
    let memory =
        unsafe { instance.get_physical_device_memory_properties(inner.raw_physical_device()) };
    let heaps = memory.memory_heaps.iter().take(memory.memory_heap_count as usize);
    let local = heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0);
    Some(VulkanFacts {
        memory_bytes: local.map(|heap| heap.size).max(),
        #[cfg(feature = "vulkan")]
        untyped_pointers: inner
            .physical_device_capabilities()
            .supports_extension(c"VK_KHR_shader_untyped_pointers"),
    })
}
