//! Scores a model.
pub mod colour;
pub mod feature;
pub mod references;
pub mod score;
pub mod segment;
