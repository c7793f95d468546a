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
}

impl Info<'_> {
    /// Returns the parameters of an image as one text, as A1111 writes it.
    fn text(&self, seed: u64) -> String {
        let negative =
            if self.negative_prompt.is_empty() { String::new() } else { format!("\nNegative prompt: {}", self.negative_prompt) };
        let strength = self.strength.map_or_else(String::new, |strength| format!(", Denoising strength: {strength}"));
        let (width, height) = self.size;
        format!(
            "{}{negative}\nSteps: {}, Sampler: {}, CFG scale: {}, Seed: {seed}, Size: {width}x{height}, Model: {}{strength}, Version: hart {}",
            self.prompt,
            self.steps,
            self.sampler,
            self.cfg_scale,
            self.model,
            env!("CARGO_PKG_VERSION")
        )
    }

    /// Returns the description as JSON.
    pub fn to_json(&self) -> Value {
        let all = |text: &str| vec![text.to_string(); self.seeds.len()];
        let texts: Vec<String> = self.seeds.iter().map(|&seed| self.text(seed)).collect();
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
            "sd_model_hash": "",
            "sd_vae_name": null,
            "sd_vae_hash": null,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "denoising_strength": self.strength,
            "extra_generation_params": {},
            "index_of_first_image": 0,
            "infotexts": texts,
            "styles": [],
            "job_timestamp": "0",
            "clip_skip": 1,
            "is_using_inpainting_conditioning": false,
            "version": format!("hart {}", env!("CARGO_PKG_VERSION")),
        })
    }
}
