//! Kernels for burn's CPU backend.
//!
//! Every operation returns `None`, or gives its operands back, where it does not apply: on another device, in another type, or
//! for a layout that it does not read.

#[allow(unsafe_code)] // Assembly.
mod amx;
mod attention;
mod autodiff;
#[allow(unsafe_code)] // SIMD over slices whose lengths are checked first.
mod conv;
mod elementwise;
#[allow(unsafe_code)] // SIMD over slices whose lengths are checked first.
mod gemm;
mod group_norm;
mod linear;
#[allow(unsafe_code)] // The memory that burn's tensors hold.
mod memory;
mod norm;
mod packed;
#[allow(unsafe_code)] // SIMD.
mod simd;
mod tasks;
mod tensor;
#[allow(unsafe_code)] // SIMD over slices whose lengths are checked first.
mod winograd;

pub(crate) use attention::{Panels, Waiting, attention, self_attention};
#[cfg(feature = "train")]
pub(crate) use autodiff::linear as tracked_linear;
pub(crate) use autodiff::{conv3x3, group_norm, silu, silu_mul};
pub(crate) use linear::{linear, pack, swi_glu};
pub(crate) use memory::Reuse;
pub(crate) use norm::{add_gated, layer_norm, rms_norm};
pub(crate) use packed::Packed;
pub(crate) use winograd::{Before, conv2d};
