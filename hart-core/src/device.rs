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
