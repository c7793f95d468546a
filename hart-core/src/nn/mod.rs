//! Layers that own weights or the state of a run, built from [`crate::kernels`].

mod rope;
mod step_embedding;

pub(crate) use rope::Rotation;
pub(crate) use step_embedding::StepEmbedding;
