//! Conversion of a checkpoint to another precision. Opening the converted one needs no conversion, and its f32 weights are never in
//! memory.

use std::fs;
use std::path::Path;

use crate::config::Layout;
use crate::device::{DeviceKind, Precision};
use crate::error::{Error, Result};
use crate::files::{NewFolder, Storage};
use crate::kernels::with_default_float_state;
use crate::pipeline::transformer_weights;
use crate::process::Call;
use crate::progress::Control;
use crate::residual::ResidualDiffusion;
use crate::text::Qwen2;
use crate::threads::require_current_pool;
use crate::transformer::Transformer;
use crate::visual::VisualTokenizer;
use crate::weights::{Checkpoint, ConversionProgress, TEXT, TRANSFORMER, VISUAL, WeightSet, convert_tensors, rounded_tensors};

/// Writes a converted copy of a checkpoint, including its text model, to a new folder. The weights of the large layers are stored in
/// `precision`; the rows of the text model's embedding stay as they are. The folder appears only when it is complete.
///
/// [`Precision::Auto`](crate::Precision) opens the copy in its precision, the only one possible. `observer` receives the converted share
/// of the parameters, from 0 to 1, after every tensor, and may cancel.
///
/// # Errors
///
/// - [`Error::Request`] if the precision cannot be stored, or the folder exists.
/// - [`Error::Checkpoint`] and others like [`Hart::open`](crate::Hart::open).
/// - [`Error::Io`] if the folder cannot be written.
/// - [`Error::Cancelled`].
/// - [`Error::Threads`], or [`Error::State`] if rayon's current pool belongs to the process that this one was forked from.
pub fn convert(
    from: &Path,
    to: &Path,
    precision: Precision,
    weight_set: WeightSet,
    text_model: Option<&Path>,
    observer: &mut dyn FnMut(f32) -> Control,
) -> Result<()> {
    let _call = Call::begin()?;
    if matches!(precision, Precision::Auto | Precision::F32 | Precision::F16) {
        return Err(Error::request(
            "precision",
            format!("{precision}, expected int8 or bf16, the precisions that a model can be converted to"),
        ));
    }
    if to.exists() {
        return Err(Error::request("folder", format!("{} already exists: choose another name", to.display())));
    }
    require_current_pool()?;
    let folder = NewFolder::create(to)?;
    let written = with_default_float_state(|| write(from, folder.path(), precision, weight_set, text_model, observer));
    written.map_err(|error| folder.with_final_path(error))?;
    folder.finish()
}

fn write(
    from: &Path,
    to: &Path,
    precision: Precision,
    weight_set: WeightSet,
    text_model: Option<&Path>,
    observer: &mut dyn FnMut(f32) -> Control,
) -> Result<()> {
    let storage = Storage::Disk { memory_map: true };
    let layout = Layout::find(&storage, from, text_model)?;
    let device = DeviceKind::Cpu.open()?;
    let [llm, tokenizer, text] = ["llm", "tokenizer", "text"].map(|part| to.join(part));
    for folder in [&llm, &tokenizer, &text] {
        fs::create_dir(folder).map_err(Error::io(folder))?;
    }
    let weights = transformer_weights(&storage, &layout.transformer, weight_set)?;
    let mut forms = rounded_tensors(&Transformer::init(&layout.config, &device), "transformer", &weights, &TRANSFORMER)?;
    forms.extend(rounded_tensors(&ResidualDiffusion::init(&layout.config, &device), "residual", &weights, &TRANSFORMER)?);
    let text_model = Checkpoint::open_in(&storage, &layout.text)?;
    let text_forms = rounded_tensors(&Qwen2::init(&layout.config.text, &device), "", &text_model, &TEXT)?;
    let visual = Checkpoint::open_in(&storage, &layout.visual)?;
    let visual_forms = rounded_tensors(&VisualTokenizer::init(&layout.config.visual, &device), "", &visual, &VISUAL)?;
    let (weights, visual, text_model) = ((&weights, &TRANSFORMER), (&visual, &VISUAL), (&text_model, &TEXT));
    let progress = ConversionProgress::new(observer, [weights, visual, text_model]);
    convert_tensors(weights, precision, &forms, &llm.join("model.safetensors"), &progress, &device)?;
    convert_tensors(visual, precision, &visual_forms, &tokenizer.join("model.safetensors"), &progress, &device)?;
    convert_tensors(text_model, precision, &text_forms, &text.join("model.safetensors"), &progress, &device)?;
    let settings = |name: &str| name == "config.json" || name == "generation_config.json" || name == "system_prompt.txt";
    copy(&layout.transformer, &llm, settings)?;
    copy(&layout.visual, &tokenizer, settings)?;
    copy(&layout.text, &text, |name| !is_of_weights(name))
}

/// Returns whether a file of a text model's folder holds weights or lists their shards.
fn is_of_weights(name: &str) -> bool {
    [".safetensors", ".bin", ".index.json", ".pt", ".pth", ".ckpt", ".gguf"].iter().any(|ending| name.ends_with(ending))
}

/// Copies the regular files of a folder whose names are wanted.
fn copy(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(from).map_err(Error::io(from))? {
        let path = entry.map_err(Error::io(from))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| wanted(name)) else { continue };
        if path.is_file() {
            fs::copy(&path, to.join(name)).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use burn::prelude::Device;

    use super::*;
    use crate::config::Config;
    use crate::precision::{CpuForm, TABLE, cpu_form};
    use crate::weights::{fields_and_shapes, is_field_below};

    #[test]
    fn the_table_of_precision_names_modules_that_there_are() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-a");
        let (config, device) = (Config::open(&folder).unwrap(), Device::flex());
        let fields = [
            fields_and_shapes(&Qwen2::init(&config.text, &device), ""),
            fields_and_shapes(&Transformer::init(&config, &device), "transformer"),
            fields_and_shapes(&ResidualDiffusion::init(&config, &device), "residual"),
            fields_and_shapes(&VisualTokenizer::init(&config.visual, &device), ""),
        ]
        .concat();
        for (module, form) in TABLE {
            let mut below = fields.iter().filter(|(field, _)| is_field_below(field, module)).peekable();
            assert!(below.peek().is_some(), "{module}");
            assert!(below.any(|(field, shape)| cpu_form(field, shape) == form), "{module}");
        }
        let count = |form| fields.iter().filter(|(field, shape)| cpu_form(field, shape) == form).count();
        let text = 7 * config.text.num_layers;
        assert_eq!(count(CpuForm::Packed), text + 5 * config.transformer.depth + 1 + 3 * config.residual.depth + 2);
        assert_eq!(count(CpuForm::Stored), 1);
        // Two residual blocks in the middle and three of each level, with two convolutions each, and one for each upsampling.
        let levels = config.visual.multipliers.len();
        assert_eq!(count(CpuForm::Bf16), 2 * (2 + 3 * levels) + levels - 1);
    }
}
