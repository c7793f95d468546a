//! Devices and precisions: names, discovery and tests.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;

use burn::prelude::Device;
use burn::tensor::DType;

use crate::error::{Error, Result};
use crate::process;

/// The kind of device that a model runs on, chosen at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// The first usable device of these: an NVIDIA GPU, another GPU that is not a software renderer, the CPU.
    #[default]
    Auto,
    /// The CPU, with all threads of the current rayon pool.
    Cpu,
    /// An NVIDIA GPU through CUDA, by its index from 0.
    Cuda(usize),
    /// A GPU through Vulkan, Metal or DX12, by its index from 0. Software renderers come last.
    Wgpu(usize),
}

/// A usable device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Name for [`DeviceKind::from_str`], such as `cpu` or `cuda:0`.
    pub name: String,
    /// Human-readable description.
    pub description: String,
}

/// Lists the usable devices, the best first. Tests each GPU with a small kernel, which takes a moment the first time. A process that was
/// forked by one that uses a GPU can use none.
pub fn devices() -> Vec<DeviceInfo> {
    let mut found: Vec<DeviceInfo> = Vec::new();
    #[cfg(feature = "cuda")]
    found.extend(gpu::usable(DeviceKind::Cuda));
    #[cfg(feature = "wgpu")]
    found.extend(gpu::usable(DeviceKind::Wgpu));
    if cfg!(feature = "cpu") {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cpu = DeviceInfo { name: "cpu".into(), description: format!("{} CPU, {cores} cores", std::env::consts::ARCH) };
        // A software renderer is slower than the CPU backend.
        let index = found.iter().position(|gpu| gpu.description.contains(SOFTWARE)).unwrap_or(found.len());
        found.insert(index, cpu);
    }
    found
}

/// Part of the description of a software renderer.
const SOFTWARE: &str = "in software";

/// The precision of a model's weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// The default of the device: f32 on the CPU, f16 on a GPU that supports it.
    #[default]
    Auto,
    /// 32-bit floats, the reference.
    F32,
    /// Weights and operands of the large linear layers in f16; sums, norms, softmax and logits in f32. GPUs only. The model can
    /// generate, but cannot be trained or saved.
    F16,
    /// Weights and operands of the large linear layers in bf16; everything else in f32. The model can generate, but cannot be trained
    /// or saved.
    Bf16,
    /// Weights of the large linear layers in 8-bit integers with one scale per output, their operands with one scale per row;
    /// everything else as with [`Self::Bf16`]. CPU only.
    Int8,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            _ => Err(Error::request("precision", format!("`{name}` is unknown; expected auto, f32, f16, bf16 or int8"))),
        }
    }
}

impl DeviceKind {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if it is not compiled in, does not exist, or does not work; [`Error::State`] if it is a GPU and this process was
    /// forked by one that uses a GPU.
    pub fn open(self) -> Result<Device> {
        self.find().map(|found| found.device)
    }

    /// Opens the device and resolves [`Self::Auto`].
    pub(crate) fn find(self) -> Result<OpenDevice> {
        match self {
            Self::Auto => Self::best(),
            #[cfg(feature = "cpu")]
            Self::Cpu => Ok(OpenDevice { kind: self, device: Device::flex() }),
            #[cfg(feature = "cuda")]
            Self::Cuda(number) => gpu::open(self, number),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(number) => gpu::open(self, number),
            #[allow(unreachable_patterns, reason = "all kinds are matched if all features are enabled")]
            other => {
                let feature = other.to_string();
                let feature = feature.split(':').next().unwrap_or_default();
                Err(other.problem(format!("not compiled in: build with the feature `{feature}`, or choose {}", Self::NAMES)))
            }
        }
    }

    fn best() -> Result<OpenDevice> {
        #[cfg(feature = "cuda")]
        if let Some(found) = gpu::unless_missing(Self::Cuda(0).find())? {
            return Ok(found);
        }
        #[cfg(feature = "wgpu")]
        if gpu::is_hardware(0)?
            && let Some(found) = gpu::unless_missing(Self::Wgpu(0).find())?
        {
            return Ok(found);
        }
        Self::Cpu.find()
    }

    /// Names of the kinds in this build.
    const NAMES: &str = match (cfg!(feature = "cuda"), cfg!(feature = "wgpu")) {
        (false, false) => "auto or cpu",
        (true, false) => "auto, cpu or cuda[:n]",
        (false, true) => "auto, cpu or wgpu[:n]",
        (true, true) => "auto, cpu, cuda[:n] or wgpu[:n]",
    };

    fn problem(self, problem: String) -> Error {
        Error::Device { name: self.to_string(), problem }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Wgpu(number) => write!(f, "wgpu:{number}"),
        }
    }
}

impl FromStr for DeviceKind {
    type Err = Error;

    /// Parses `auto`, `cpu`, `cuda`, `cuda:1`, `wgpu`, `wgpu:1` and so on. The index defaults to 0.
    fn from_str(name: &str) -> Result<Self> {
        let unknown = || Error::Device { name: name.into(), problem: format!("unknown; choose {}", Self::NAMES) };
        let (kind, number) = match name.split_once(':') {
            None => (name, None),
            Some((kind, number)) if number.bytes().all(|digit| digit.is_ascii_digit()) => {
                (kind, Some(number.parse::<u16>().map_err(|_| unknown())?))
            }
            Some(_) => return Err(unknown()),
        };
        match (kind, number.map(usize::from)) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda", number) => Ok(Self::Cuda(number.unwrap_or(0))),
            ("wgpu", number) => Ok(Self::Wgpu(number.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

/// A device that has been opened.
#[derive(Clone, Debug)]
pub(crate) struct OpenDevice {
    /// Never [`DeviceKind::Auto`].
    pub(crate) kind: DeviceKind,
    /// burn's device.
    pub(crate) device: Device,
}

impl OpenDevice {
    /// Returns whether operations are complete when their calls return, as on the CPU. A GPU computes, and fails, asynchronously.
    pub(crate) fn is_synchronous(&self) -> bool {
        is_cpu(&self.device)
    }

    /// Runs work that panics if the device fails: burn's GPU backends report failures that way, when a result is read.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] with the panic's message, or [`Error::State`] if another process has opened the GPU.
    pub(crate) fn catch_backend_panic<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.kind == DeviceKind::Cpu {
            return work();
        }
        process::claim_gpus()?;
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
            Err(self.kind.problem(format!("failed: {}", text.unwrap_or("it gave no reason"))))
        })
    }

    /// Waits until the device has finished all pending work.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if some of it failed.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.device.sync().map_err(|error| self.kind.problem(format!("failed: {error:?}")))
    }
}

/// Returns whether the device is the CPU backend's.
pub(crate) fn is_cpu(device: &Device) -> bool {
    #[cfg(feature = "cpu")]
    if device.clone().inner() == Device::flex() {
        return true;
    }
    let _ = device;
    false
}

/// Returns the precision that [`Precision::Auto`] stands for on a device.
pub(crate) fn best_precision(device: &Device) -> Precision {
    if check_precision(Precision::F16, device).is_ok() { Precision::F16 } else { Precision::F32 }
}

/// Checks that a device supports a precision, and returns it.
///
/// # Errors
///
/// [`Error::Request`] if it does not.
pub(crate) fn check_precision(precision: Precision, device: &Device) -> Result<Precision> {
    let is_supported = match (precision, is_cpu(device)) {
        (Precision::Auto | Precision::F32, _) | (Precision::Bf16 | Precision::Int8, true) => true,
        (Precision::F16, false) => device.supports_dtype(DType::F16),
        (Precision::Bf16, false) => device.supports_dtype(DType::BF16),
        (Precision::F16, true) | (Precision::Int8, false) => false,
    };
    let choices = if is_cpu(device) { "f32, bf16 or int8" } else { "f32 or f16" };
    let problem = || format!("{precision} is not supported on this device: choose {choices}");
    if is_supported { Ok(precision) } else { Err(Error::request("precision", problem())) }
}

/// Discovery of GPUs.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod gpu {
    use burn::prelude::{Device, Tensor};
    use burn::tensor::{DType, DeviceType, TensorData};
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

    use super::{DeviceInfo, DeviceKind, OpenDevice, SOFTWARE};
    use crate::error::{Error, Result};
    use crate::process;

    /// Lists the devices of a kind. Hardware comes before software renderers.
    fn all(kind: DeviceKind) -> Result<Vec<Device>> {
        let is_first = process::claim_gpus()?;
        let found = enumerate(kind);
        if is_first && found.is_empty() {
            process::release_gpus();
        }
        Ok(found)
    }

    fn enumerate(kind: DeviceKind) -> Vec<Device> {
        enable_kernel_cache();
        match kind {
            #[cfg(feature = "cuda")]
            DeviceKind::Cuda(_) => Device::enumerate(DeviceType::Cuda).into_iter().collect(),
            #[cfg(feature = "wgpu")]
            DeviceKind::Wgpu(_) => {
                let mut all: Vec<Device> = Device::enumerate(DeviceType::Wgpu).into_iter().collect();
                all.sort_by_key(is_software);
                all
            }
            _ => Vec::new(),
        }
    }

    /// Makes CubeCL cache compiled kernels on disk. By default it caches only autotuning results. Does nothing if the program has
    /// already configured CubeCL.
    fn enable_kernel_cache() {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        config.compilation.cache = true;
        CubeClRuntimeConfig::try_set(config);
    }

    #[cfg(feature = "wgpu")]
    fn is_software(device: &Device) -> bool {
        use burn::backend::{CubeDevice, DispatchDevice, WgpuDeviceKind};
        matches!(device.as_dispatch(), DispatchDevice::Cube(CubeDevice::Wgpu(device)) if device.kind == WgpuDeviceKind::Cpu)
    }

    #[cfg(not(feature = "wgpu"))]
    fn is_software(_: &Device) -> bool {
        false
    }

    /// Returns whether the GPU with this index exists and is hardware.
    #[cfg(feature = "wgpu")]
    pub(super) fn is_hardware(number: usize) -> Result<bool> {
        Ok(all(DeviceKind::Wgpu(number))?.get(number).is_some_and(|device| !is_software(device)))
    }

    /// Returns `None` for a device that does not exist or does not work.
    pub(super) fn unless_missing(found: Result<OpenDevice>) -> Result<Option<OpenDevice>> {
        match found {
            Err(Error::Device { .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    pub(super) fn open(kind: DeviceKind, number: usize) -> Result<OpenDevice> {
        let all = all(kind)?;
        let device = all.get(number).ok_or_else(|| match (kind, all.len()) {
            (DeviceKind::Cuda(_), 0) => kind.problem("there is no NVIDIA GPU with a driver: choose auto or cpu".into()),
            (_, 0) => kind.problem("there is no GPU with a driver for Vulkan, Metal or DX12: choose auto or cpu".into()),
            (_, count) => kind.problem(format!("does not exist: the highest index is {}", count - 1)),
        })?;
        let found = OpenDevice { kind, device: device.clone() };
        test(&found)?;
        Ok(found)
    }

    /// Checks that the device compiles and runs kernels, by computing a small sum.
    fn test(open: &OpenDevice) -> Result<()> {
        let OpenDevice { kind, device } = open;
        let sum = open.catch_backend_panic(|| {
            open.synchronize()?;
            let two = Tensor::<1>::from_data(TensorData::new(vec![1.0f32; 2], [2]), (device, DType::F32));
            Ok((two.clone() + two).into_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default())
        })?;
        if sum == [2.0, 2.0] { Ok(()) } else { Err(kind.problem(format!("does not work: it computes 1 + 1 as {sum:?}"))) }
    }

    /// Lists the devices of a kind that work.
    pub(super) fn usable(kind: fn(usize) -> DeviceKind) -> Vec<DeviceInfo> {
        let works = |(number, device): &(usize, Device)| test(&OpenDevice { kind: kind(*number), device: device.clone() }).is_ok();
        let info = |(number, device): (usize, Device)| {
            let name = device.identity().map_or_else(|| "GPU".into(), |identity| identity.name);
            let through = if matches!(kind(0), DeviceKind::Cuda(_)) { "CUDA" } else { "wgpu" };
            let through = if is_software(&device) { format!("{through}, {SOFTWARE}") } else { through.into() };
            DeviceInfo { name: kind(number).to_string(), description: format!("{name}, through {through}") }
        };
        all(kind(0)).unwrap_or_default().into_iter().enumerate().filter(works).map(info).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        let name = |name: &str| DeviceKind::from_str(name);
        for kind in [DeviceKind::Auto, DeviceKind::Cpu, DeviceKind::Cuda(0), DeviceKind::Cuda(3), DeviceKind::Wgpu(1)] {
            assert_eq!(name(&kind.to_string()).unwrap(), kind);
        }
        assert_eq!(name("cuda").unwrap(), DeviceKind::Cuda(0));
        assert_eq!(name("wgpu").unwrap(), DeviceKind::Wgpu(0));
        for wrong in ["", "gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cuda:70000", "cpu:0", "auto:1", "wgpu:0:1"] {
            assert!(matches!(name(wrong), Err(Error::Device { .. })), "{wrong}");
        }
    }

    /// No machine has a GPU with this index.
    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        for kind in [DeviceKind::Cuda(65_535), DeviceKind::Wgpu(65_535)] {
            let error = kind.open().unwrap_err().to_string();
            assert!(error.contains(&kind.to_string()), "{error}");
        }
    }
}
