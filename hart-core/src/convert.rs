//! Conversion of a checkpoint to another precision. Opening the converted one needs no conversion, and its f32 weights are never in
//! memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::config::Layout;
use crate::device::{DeviceKind, Precision};
use crate::error::{Error, Result};
use crate::files::Storage;
use crate::nn::Linear;
use crate::pipeline::transformer_weights;
use crate::progress::Control;
use crate::residual::ResidualDiffusion;
use crate::transformer::Transformer;
use crate::weights::{Checkpoint, ConversionProgress, TRANSFORMER, VISUAL, WeightSet, convert_tensors};

/// Parts of the visual tokenizer whose 3x3 convolutions are computed in bfloat16.
const HALVED: [&str; 2] = ["vae.decoder.mid.", "vae.decoder.up."];

/// Writes a converted copy of a checkpoint, including its text model, to a new folder. The weights of the large layers are stored in
/// `precision`; the text model's files are copied. The folder appears only when it is complete.
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
pub fn convert(
    from: &Path,
    to: &Path,
    precision: Precision,
    weight_set: WeightSet,
    text_model: Option<&Path>,
    observer: &mut dyn FnMut(f32) -> Control,
) -> Result<()> {
    if matches!(precision, Precision::Auto | Precision::F32 | Precision::F16) {
        return Err(Error::request("precision", format!("`{precision}` is no precision to convert to; there are bf16, int8")));
    }
    if to.exists() {
        return Err(Error::request("folder", format!("{} is there already; name a new one", to.display())));
    }
    let beside = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let staging = builder.prefix(".hart-").tempdir_in(beside).map_err(Error::io(beside))?;
    write(from, staging.path(), precision, weight_set, text_model, observer)?;
    fs::rename(staging.path(), to).map_err(Error::io(to))
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
    let (mut transformer, mut residual) =
        (Transformer::init(&layout.config, &device), ResidualDiffusion::init(&layout.config, &device));
    let mut packed = names(&weights, "transformer", transformer.packable(), &layout.transformer)?;
    packed.extend(names(&weights, "residual", residual.packable(), &layout.transformer)?);
    // The text model is copied below, unless it is damaged.
    Checkpoint::open_in(&storage, &layout.text)?;
    let visual = Checkpoint::open_in(&storage, &layout.visual)?;
    let (weights, visual) = ((&weights, &TRANSFORMER), (&visual, &VISUAL));
    let progress = ConversionProgress::new(observer, [weights, visual]);
    convert_tensors(weights, precision, &packed, |_, _| false, &llm.join("model.safetensors"), &progress)?;
    let halved = |name: &str, shape: &[usize]| HALVED.iter().any(|part| name.starts_with(part)) && matches!(shape, [_, _, 3, 3]);
    convert_tensors(visual, precision, &BTreeMap::new(), halved, &tokenizer.join("model.safetensors"), &progress)?;
    let settings = |name: &str| name == "config.json" || name == "generation_config.json" || name == "system_prompt.txt";
    copy(&layout.transformer, &llm, settings)?;
    copy(&layout.visual, &tokenizer, settings)?;
    copy(&layout.text, &text, |_| true)
}

/// Returns the names of layers in the checkpoint, with their sizes `[in, out]`.
fn names(
    checkpoint: &Checkpoint,
    root: &str,
    layers: Vec<(String, &mut Linear)>,
    folder: &Path,
) -> Result<BTreeMap<String, [usize; 2]>> {
    let name = |path: String| {
        let candidates = TRANSFORMER.candidates(&format!("{root}.{path}.weight"));
        let found = candidates.iter().find(|name| checkpoint.info(name).is_some()).cloned();
        let missing = || format!("has no tensor `{}`, which its config.json asks for", candidates.join("` or `"));
        found.ok_or_else(|| Error::checkpoint(folder, missing()))
    };
    layers.into_iter().map(|(path, layer)| Ok((name(path)?, layer.weight.lazy_shape().dims()))).collect()
}

/// Copies the plain files of a folder whose name is wanted.
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
    use crate::weights::names_and_shapes;

    /// A checkpoint can therefore hold every such layer packed.
    #[test]
    fn every_packable_layer_has_a_tensor_of_its_sizes() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-a");
        let (config, device) = (Config::open(&folder).unwrap(), Device::flex());
        let mut transformer = Transformer::init(&config, &device);
        let mut residual = ResidualDiffusion::init(&config, &device);
        let first = |names: Vec<String>| names.into_iter().next();
        let mut known = names_and_shapes(&transformer, &TRANSFORMER, "transformer", first);
        known.extend(names_and_shapes(&residual, &TRANSFORMER, "residual", first));
        let layers = transformer.packable().into_iter().map(|(path, layer)| (format!("transformer.{path}.weight"), layer));
        let layers = layers.chain(residual.packable().into_iter().map(|(path, layer)| (format!("residual.{path}.weight"), layer)));
        let mut count = 0;
        for (path, layer) in layers {
            let [inputs, outputs] = layer.weight.lazy_shape().dims();
            let name = TRANSFORMER.candidates(&path).swap_remove(0);
            assert!(known.contains(&(name, vec![outputs, inputs])), "{path}");
            count += 1;
        }
        assert_eq!(count, 5 * config.transformer.depth + 1 + 3 * config.residual.depth + 2);
    }
}
