//! Layers that own weights or the state of a run, computed by [`crate::kernels`].

mod conv;
mod kv_cache;
mod linear;
mod norm;
mod packed;
mod rope;
mod step_embedding;
mod swiglu;

#[cfg(test)]
pub(crate) use conv::conv_params;
pub(crate) use conv::{compact_res_block, compact_upsample_conv2d, conv2d, norm_silu_conv2d, upsample_conv2d};
pub(crate) use kv_cache::KvCache;
pub(crate) use linear::{Linear, LinearConfig};
#[cfg(test)]
pub(crate) use norm::group_norm_params;
pub(crate) use norm::{add_norm, group_norm, layer_norm, rms_norm};
pub(crate) use packed::{pack, replace_packed};
pub(crate) use rope::RotaryEmbedding;
pub(crate) use step_embedding::StepEmbedding;
pub(crate) use swiglu::SwiGlu;
