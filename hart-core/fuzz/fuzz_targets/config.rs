//! Whatever a `config.json` holds, reading it ends in a configuration or an error.
#![no_main]

use std::path::Path;

use hart_core::config::{TextConfig, TransformerConfig, VisualConfig};
use hart_core::stages::{plan, schedule};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let path = Path::new("config.json");
    if let Ok(config) = TextConfig::parse(path, text) {
        assert!(config.num_heads.is_multiple_of(config.num_kv_heads) && config.head_dim.is_multiple_of(2));
    }
    if let Ok((config, residual)) = TransformerConfig::parse(path, text) {
        assert!(config.head_dim() * config.num_heads == config.embed_dim && config.head_dim().is_multiple_of(4));
        let scales = plan(&config);
        assert!(scales.iter().all(|s| (0.0..1.0).contains(&s.ratio()) && s.temperature() > 0.0));
        assert!(!schedule(&residual.steps).is_empty());
    }
    if let Ok(config) = VisualConfig::parse(path, text) {
        assert!(config.downsample() >= 1 && config.phi_ratio.is_finite());
    }
});
