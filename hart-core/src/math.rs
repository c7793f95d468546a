//! Functions that every platform computes to the same bits.
//!
//! std takes these functions from the platform's C library, whose results differ in the last place. They are used for tables,
//! schedules and noise, all of which are rounded to f32 afterwards. Kernels have polynomials of their own.

pub(crate) use libm::{cos, exp, expf, log as ln, log2, pow, sin, sincos as sin_cos};
