//! The description of a run that clients parse: `info`.

use serde_json::{Value, json};

/// The settings of a run in A1111's terms.
pub struct Info<'a> {
    /// The prompt.
    pub prompt: String,
    /// The negative prompt, which HART does not have.
    pub negative_prompt: String,
    /// Seeds of the finished images.
    pub seeds: Vec<u64>,
    /// Seed of the first image.
    pub first_seed: u64,
    /// Width and height.
    pub size: (usize, usize),
    /// The sampler that the client named.
    pub sampler: String,
    /// The guidance scale as the client sent it.
    pub cfg_scale: f64,
    /// The steps as the client sent them.
    pub steps: f64,
    /// Images of one batch.
    pub batch_size: usize,
    /// The strength of img2img.
    pub strength: Option<f64>,
    /// Name of the model.
    pub model: &'a str,
    /// Ten digits of the model's fingerprint.
    pub model_hash: &'a str,
    /// The parameters of each finished image as its file has them.
    pub texts: Vec<String>,
}

impl Info<'_> {
    /// Returns the description as JSON.
    pub fn to_json(&self) -> Value {
        let all = |text: &str| vec![text.to_string(); self.seeds.len()];
        json!({
            "prompt": self.prompt,
            "all_prompts": all(&self.prompt),
            "negative_prompt": self.negative_prompt,
            "all_negative_prompts": all(&self.negative_prompt),
            "seed": self.first_seed,
            "all_seeds": self.seeds,
            "subseed": self.first_seed,
            "all_subseeds": self.seeds,
            "subseed_strength": 0,
            "width": self.size.0,
            "height": self.size.1,
            "sampler_name": self.sampler,
            "cfg_scale": self.cfg_scale,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "restore_faces": false,
            "face_restoration_model": null,
            "sd_model_name": self.model,
            "sd_model_hash": self.model_hash,
            "sd_vae_name": null,
            "sd_vae_hash": null,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "denoising_strength": self.strength,
            "extra_generation_params": {},
            "index_of_first_image": 0,
            "infotexts": self.texts,
            "styles": [],
            "job_timestamp": "0",
            "clip_skip": 1,
            "is_using_inpainting_conditioning": false,
            "version": format!("hart {}", env!("CARGO_PKG_VERSION")),
        })
    }
}
