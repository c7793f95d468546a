//! Settings from an image file, for generating the image again.

use std::error::Error;
use std::path::{Path, PathBuf};

use hart_core::{GenerationSettings, Hart, Image, Request};

use super::args::{GenerationArgs, Seed};
use super::output;

/// The settings in an image file.
#[derive(Debug)]
pub struct Again {
    file: PathBuf,
    settings: GenerationSettings,
}

impl Again {
    /// Reads the settings in a file and sets them where the command line has no others.
    ///
    /// # Errors
    ///
    /// Returns an error that names the file if it can't be read, lacks settings, or is an edit of another image.
    pub fn open(file: &Path, arguments: &mut GenerationArgs, prompts: &mut Vec<String>) -> Result<Self, Box<dyn Error>> {
        let image = Image::open(file)?;
        let named = |error: String| format!("--again {}: {error}", file.display());
        // This checks all settings.
        drop(Request::again(&image).map_err(|error| named(error.to_string()))?);
        let provenance = image.provenance.ok_or("a request needs a provenance")?;
        let settings = provenance.generation.ok_or("a request needs all settings")?;
        if prompts.is_empty() {
            if provenance.prompt.is_empty() {
                return Err(named("the prompt was left out of the file: add it to the command".into()).into());
            }
            prompts.push(provenance.prompt);
        }
        arguments.seed.get_or_insert(Seed::Number(provenance.seed));
        arguments.request.guidance.get_or_insert(settings.guidance);
        arguments.request.smoothing.get_or_insert(settings.smoothing);
        arguments.request.top_k = arguments.request.top_k.or(settings.top_k);
        arguments.request.top_p.get_or_insert(settings.top_p);
        if arguments.request.steps.is_none() {
            arguments.request.steps = Some(settings.steps.parse()?);
        }
        if let (None, Some(ratios)) = (&arguments.request.prune, &settings.prune) {
            arguments.request.prune = Some(ratios.parse()?);
        }
        arguments.request.system_prompt = arguments.request.system_prompt.take().or_else(|| settings.system_prompt.clone());
        if arguments.model.precision.is_none() {
            arguments.model.precision = Some(settings.precision.parse()?);
        }
        Ok(Self { file: file.into(), settings })
    }

    /// Prints why the image may differ, if it may.
    pub fn warn(&self, hart: &Hart) {
        let GenerationSettings { model, model_fingerprint, device, version, width, height, .. } = &self.settings;
        let side = hart.config().resolution();
        let (kind, own) = (hart.device_kind().to_string(), env!("CARGO_PKG_VERSION"));
        let kind = kind.split(':').next().unwrap_or_default();
        let size = |width: usize, height: usize| format!("{width} x {height} pixels");
        // Folders of other names may hold the same model, and folders of the same name another one.
        let named =
            |name: &str, fingerprint: &str| format!("{name} (fingerprint {})", fingerprint.chars().take(10).collect::<String>());
        let models = match model_fingerprint.as_str() {
            "" => [model.clone(), hart.model_name().into()],
            of_image if of_image == hart.fingerprint() => [String::new(), String::new()],
            of_image => [named(model, of_image), named(hart.model_name(), hart.fingerprint())],
        };
        let [model, own_model] = models;
        for (what, of_image, of_run) in [
            ("the model", model, own_model),
            ("a size of", size(*width, *height), size(side, side)),
            ("the device", device.clone(), kind.into()),
            ("version", version.clone(), own.into()),
        ] {
            if of_image != of_run {
                let file = self.file.display();
                let (of_image, of_run) = (output::one_line(&of_image), output::one_line(&of_run));
                eprintln!("warning: {file} was generated with {what} {of_image}, not {of_run}: the image may differ");
            }
        }
    }
}
