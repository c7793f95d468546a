#![doc = include_str!("../README.md")]
// docs.rs names the feature that each item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// Unsafe code is denied in the workspace; `kernels` and `files` allow it item by item.

pub mod config;
mod convert;
mod device;
mod error;
mod files;
mod filter;
mod from_image;
mod image;
mod kernels;
mod math;
mod memory;
mod nn;
mod options;
mod pipeline;
mod precision;
mod process;
mod progress;
mod pruning;
mod request;
mod residual;
mod rng;
mod sampling;
mod scales;
mod schedule;
pub mod stages;
mod text;
mod threads;
#[cfg(feature = "train")]
pub mod train;
mod transformer;
mod visual;
pub mod weights;

/// The tensor library, for the inputs and outputs of the stages.
pub use burn;
pub use config::MAX_GUIDANCE;
pub use convert::convert;
pub use device::{DeviceInfo, DeviceKind, Precision, devices};
pub use error::{Error, Result};
pub use files::{Files, NewFolder, check_download, check_file_name, decode_text, replace_file, windows_name_problem, write_file};
pub use filter::PromptFilter;
pub use from_image::{FromImage, Keep, Mask};
pub use image::{DigitalSource, GenerationSettings, Image, ImageFormat, Marks, PixelFormat, Provenance};
pub use kernels::{with_default_float_state, with_enough_stack};
pub use memory::Memory;
pub use options::OpenOptions;
pub use pipeline::{Generation, Hart};
pub use progress::{CancelToken, Control, Event, Observer, Stage, Step, Timings};
pub use pruning::Pruning;
pub use request::{MAX_IMAGES, MAX_PROMPT_BYTES, Request};
pub use schedule::Respacing;
pub use text::{PromptContext, SystemPrompt, Truncation};
pub use weights::WeightSet;
