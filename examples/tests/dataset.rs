//! The program dataset and its scenes.
