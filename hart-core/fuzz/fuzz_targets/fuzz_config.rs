//! Promise: whatever bytes a `config.json` holds, reading it gives a checked configuration or an error that can be shown. It never
//! panics and never allocates much; what it accepts is within the limits that the layers count on.
#![cfg_attr(fuzzing, no_main)]

use std::alloc::System;
use std::path::Path;

use cap::Cap;
use hart_core::config::{GenerationConfig, TextConfig, TransformerConfig, VisualConfig};
use hart_fuzz::fuzz_target;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, 256 << 20);

const MAX_WIDTH: usize = 65_536;

fuzz_target!(|text: &[u8]| {
    let path = Path::new("config.json");
    match TextConfig::parse(path, text) {
        Ok(c) => {
            assert!(c.head_dim.is_multiple_of(2) && c.num_heads.is_multiple_of(c.num_kv_heads));
            assert!(c.hidden_size.max(c.intermediate_size).max(c.head_dim) <= MAX_WIDTH);
            assert!(c.rms_norm_eps.is_finite() && c.rope_theta.is_finite());
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
    match TransformerConfig::parse(path, text) {
        Ok((c, residual)) => {
            assert!(c.head_dim() >= 4 && c.head_dim().is_multiple_of(4) && c.head_dim() * c.num_heads == c.embed_dim);
            assert!(c.feed_forward_dim > 0 && c.feed_forward_dim <= 64 * MAX_WIDTH);
            assert!(c.sides[0] == 1 && c.sides.is_sorted() && c.last_side() <= 256);
            assert!(residual.width <= MAX_WIDTH && !residual.steps.timesteps().is_empty());
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
    match GenerationConfig::parse(path, text) {
        Ok(c) => {
            assert!(c.guidance.is_none_or(f64::is_finite) && c.top_k != Some(0) && c.top_p.is_none_or(|p| (0.0..=1.0).contains(&p)))
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
    match VisualConfig::parse(path, text) {
        Ok(c) => {
            assert!(c.downsample() <= 128 && c.multipliers.iter().all(|m| m * c.channels <= MAX_WIDTH));
            assert!(c.quant_conv_kernel % 2 == 1 && c.phi_ratio.is_finite());
            assert!(c.sides[0] == 1 && c.sides.is_sorted());
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
});
