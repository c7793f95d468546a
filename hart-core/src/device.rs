//! Devices by name.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Where the arithmetic runs; chosen at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// The best that is compiled in; without a GPU feature that is the CPU.
    #[default]
    Auto,
    /// The CPU, all cores of the current rayon pool.
    Cpu,
}

/// A device that a model can be opened on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its name for [`DeviceKind::from_str`], such as `cpu`.
    pub name: String,
    /// What it is, for people.
    pub description: String,
}

/// The devices that are compiled in and there, the best first.
pub fn devices() -> Vec<DeviceInfo> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = || DeviceInfo { name: "cpu".into(), description: format!("{} CPU, {cores} cores", std::env::consts::ARCH) };
    cfg!(feature = "cpu").then(cpu).into_iter().collect()
}

/// The numbers that a model computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// The best of the device; on the CPU that is f32.
    #[default]
    Auto,
    /// 32-bit floats: the reference.
    F32,
    /// Weights and operands of the large layers' products in bfloat16, sums and everything else in f32. A model opened so makes
    /// pictures; it can't be trained or saved.
    Bf16,
    /// Weights of products in 8-bit integers with a scale for each output, operands too with a scale for each row; everything else
    /// as with [`Self::Bf16`].
    Int8,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
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
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            _ => Err(Error::request("precision", format!("`{name}` is unknown; there are auto, f32, bf16, int8"))),
        }
    }
}

impl DeviceKind {
    /// burn's device.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if it isn't compiled in or not there.
    pub fn open(self) -> Result<burn::prelude::Device> {
        match self {
            #[cfg(feature = "cpu")]
            Self::Auto | Self::Cpu => Ok(burn::prelude::Device::flex()),
            #[cfg(not(feature = "cpu"))]
            Self::Auto | Self::Cpu => {
                Err(Error::Device { name: self.to_string(), problem: "not compiled in: build with the feature `cpu`".into() })
            }
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
        })
    }
}

impl FromStr for DeviceKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => Err(Error::Device { name: name.into(), problem: "unknown or not compiled in; this build has auto, cpu".into() }),
        }
    }
}
