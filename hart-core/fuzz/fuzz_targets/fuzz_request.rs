//! Promise: a request of any values is fine or refused, never a panic, and a fine one is within the limits. A text that parses as
//! diffusion steps gives rising step numbers below 1000 and a schedule of finite numbers.
#![cfg_attr(fuzzing, no_main)]

use std::str::FromStr;

use arbitrary::Arbitrary;
use hart_core::stages::{FULL_STEPS, Respacing, schedule};
use hart_core::{DeviceKind, MAX_GUIDANCE, MAX_IMAGES, MAX_PROMPT_BYTES, Request, SystemPrompt};
use hart_fuzz::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    images_per_prompt: usize,
    seed: u64,
    guidance: f64,
    soft: bool,
    top_k: Option<usize>,
    top_p: f64,
    ddim: bool,
    sections: Vec<u16>,
    steps: String,
    device: String,
    system_prompt: Option<Option<String>>,
    prompts: Vec<String>,
}

fuzz_target!(|input: Input| {
    let sections: Vec<_> = input.sections.iter().map(u16::to_string).collect();
    let made = format!("{}{}", if input.ddim { "ddim" } else { "" }, sections.join(","));
    let steps = [made, input.steps].map(|text| Respacing::from_str(&text).inspect(check_steps).ok());
    if let Ok(device) = DeviceKind::from_str(&input.device) {
        assert_eq!(device.to_string(), input.device);
    }

    let prompts = input.prompts.len();
    let longest = input.prompts.iter().map(String::len).max();
    let mut request = Request::batch(input.prompts)
        .images_per_prompt(input.images_per_prompt)
        .seed(input.seed)
        .guidance(input.guidance)
        .smoothing(input.soft)
        .top_k(input.top_k)
        .top_p(input.top_p)
        .system_prompt(match input.system_prompt {
            None => SystemPrompt::Checkpoint,
            Some(None) => SystemPrompt::Off,
            Some(Some(text)) => SystemPrompt::Text(text),
        });
    request = steps.into_iter().flatten().fold(request, Request::steps);
    match request.validate() {
        Ok(()) => {
            assert!((1..=MAX_IMAGES).contains(&request.total_images()));
            assert_eq!(request.total_images(), prompts * input.images_per_prompt);
            assert!(longest.is_some_and(|bytes| (1..=MAX_PROMPT_BYTES).contains(&bytes)));
            assert!(input.guidance.abs() <= MAX_GUIDANCE && (0.0..=1.0).contains(&input.top_p));
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
});

fn check_steps(respacing: &Respacing) {
    let timesteps = respacing.timesteps();
    assert!(!timesteps.is_empty() && timesteps.windows(2).all(|w| w[0] < w[1]) && timesteps[timesteps.len() - 1] < FULL_STEPS);
    assert!(Respacing::from_str(&respacing.to_string()).is_ok_and(|again| again == *respacing));
    let steps = schedule(respacing);
    assert_eq!(steps.len(), timesteps.len());
    for (step, &timestep) in steps.iter().zip(timesteps) {
        assert_eq!(step.timestep, timestep);
        assert!([step.beta, step.alpha_bar, step.signal_factor, step.sample_factor].iter().all(|x| x.is_finite()));
        // A single step adds no noise: its posterior has no variance.
        assert!(steps.len() == 1 || step.log_posterior_variance.is_finite());
    }
}
