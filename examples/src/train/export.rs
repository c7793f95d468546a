//! Export of the trained model in the published layout.

use std::error::Error;
use std::path::Path;

use hart_core::config::Config;
use hart_core::stages::VisualTokenizer;
use hart_core::train::Generator;
use hart_core::weights::{NamedTensor, StorageDtype, TEXT, TRANSFORMER, VISUAL, named_tensors, save_tensors, visual_names};
use hart_core::write_file;
use serde_json::{Value, json};

use crate::recipe::ModelConfigs;

/// Name of the files of weights.
const WEIGHTS: &str = "model.safetensors";

/// Writes the `config.json` files and reads them back as a program that opens the model does.
///
/// # Errors
///
/// Returns an error if a file can't be written or the configuration is invalid.
pub fn write_configs(model: &ModelConfigs, folder: &Path, vocabulary: usize) -> Result<Config, Box<dyn Error>> {
    let with_defaults = |value: &Value, defaults: Value| {
        let mut merged = defaults;
        if let (Some(merged), Some(given)) = (merged.as_object_mut(), value.as_object()) {
            given.iter().for_each(|(key, value)| drop(merged.insert(key.clone(), value.clone())));
        }
        merged
    };
    let llm = json!({
        "model_type": "hart_transformer_t2i", "architectures": ["HARTForT2I"], "attn_type": "llama", "mlp_type": "llama",
        "use_cross_attn": false, "sampler": "iddpm",
    });
    let visual = json!({ "model_type": "hart_autoencoder_with_disc", "quantizer_type": "var_hybrid", "hybrid": false });
    let text = json!({ "model_type": "qwen2", "architectures": ["Qwen2Model"], "hidden_act": "silu", "rope_scaling": null });
    let mut text = with_defaults(&model.text, text);
    text["vocab_size"] = vocabulary.into();
    let save = |name: &str, value: &Value| write_file(folder.join(name), format!("{value:#}\n").as_bytes());
    // The exported tokenizer, not the one that the configuration of another model names.
    let mut llm = with_defaults(&model.llm, llm);
    llm["vae_path"] = Value::Null;
    save("llm/config.json", &llm)?;
    save("tokenizer/config.json", &with_defaults(&model.tokenizer, visual))?;
    save("text/config.json", &text)?;
    save("llm/generation_config.json", &model.generation)?;
    Ok(Config::open(folder)?)
}

/// Copies the text tokenizer of another model, from the folder of its text model.
///
/// # Errors
///
/// Returns an error if a file can't be read or written.
pub fn copy_text_tokenizer(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        let path = from.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => write_file(to.join("text").join(name), &bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && name != "tokenizer.json" => {}
            Err(error) => return Err(format!("{}: {error}", path.display()).into()),
        }
    }
    Ok(())
}

/// Writes the weights of the visual tokenizer.
///
/// # Errors
///
/// Returns an error if a weight is not finite or the file can't be written.
pub fn write_tokenizer(
    tokenizer: &VisualTokenizer,
    model: &ModelConfigs,
    folder: &Path,
    stored_as: StorageDtype,
) -> hart_core::Result<()> {
    let choose = visual_names(model.tokenizer.get("share_quant_resi").and_then(Value::as_u64));
    save_tensors(&folder.join("tokenizer").join(WEIGHTS), &named_tensors(tokenizer, &VISUAL, "", choose), stored_as)
}

/// Writes the weights of the text encoder, transformer and residual diffusion.
///
/// # Errors
///
/// Returns an error if a weight is not finite or a file can't be written.
pub fn write_generator(generator: &Generator, folder: &Path, stored_as: StorageDtype) -> hart_core::Result<()> {
    let first_name = |names: Vec<String>| names.into_iter().next();
    let mut llm: Vec<NamedTensor> = named_tensors(&generator.transformer, &TRANSFORMER, "transformer", first_name);
    llm.extend(named_tensors(&generator.residual, &TRANSFORMER, "residual", first_name));
    save_tensors(&folder.join("llm").join(WEIGHTS), &llm, stored_as)?;
    let without_prefix = |names: Vec<String>| names.into_iter().find(|name| !name.starts_with("model."));
    save_tensors(&folder.join("text").join(WEIGHTS), &named_tensors(&generator.text, &TEXT, "", without_prefix), stored_as)
}
