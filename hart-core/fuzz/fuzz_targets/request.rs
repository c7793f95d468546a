//! Any request is valid or refused with a reason, and any name of steps or devices is known or refused.
#![no_main]

use hart_core::stages::{FULL_STEPS, schedule};
use hart_core::{DeviceKind, MAX_GUIDANCE, MAX_IMAGES, Request, Respacing, SystemPrompt};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Settings {
    prompts: Vec<String>,
    images: usize,
    seed: u64,
    guidance: f64,
    soft: bool,
    top_k: Option<usize>,
    top_p: f64,
    system_prompt: Option<String>,
    steps: String,
    device: String,
}

fuzz_target!(|settings: Settings| {
    let mut request = Request::batch(settings.prompts)
        .images_per_prompt(settings.images)
        .seed(settings.seed)
        .guidance(settings.guidance)
        .soft_sampling(settings.soft)
        .top_p(settings.top_p)
        .system_prompt(settings.system_prompt.map_or(SystemPrompt::Off, SystemPrompt::Text));
    if let Some(top_k) = settings.top_k {
        request = request.top_k(top_k);
    }
    if let Ok(steps) = settings.steps.parse::<Respacing>() {
        let kept = steps.kept();
        assert!(!kept.is_empty() && kept.is_sorted() && kept.iter().all(|&s| s < FULL_STEPS));
        for (position, step) in schedule(&steps).iter().enumerate() {
            assert!(step.beta.is_finite() && step.signal_factor.is_finite() && step.sample_factor.is_finite());
            // A single step adds no noise, and has no second step's variance to take.
            assert!(step.log_posterior_variance.is_finite() || (position == 0 && kept.len() == 1));
        }
        request = request.steps(steps);
    }
    let _ = settings.device.parse::<DeviceKind>();
    match request.validate() {
        Ok(()) => assert!((1..=MAX_IMAGES).contains(&request.total_images()) && settings.guidance.abs() <= MAX_GUIDANCE),
        Err(error) => assert!(error.to_string().starts_with("request: ")),
    }
});
