//! Additions of training tools to a model's tensors: parts of names, dictionaries in torch files, and adapters that are not merged.

use pytorch_reader::{PickleValue, PytorchReader};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// Parts of names that wrappers of PyTorch add anywhere: `torch.compile`, FSDP and activation checkpointing.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// Part that DataParallel, DistributedDataParallel and averaged models add in front.
const PARALLEL: &str = "module";
/// Keys of a dictionary below which trainers store a model's tensors, in order of precedence.
const DICTIONARIES: [&str; 4] = ["state_dict", "model_state_dict", "module", "model"];
/// Prefix that a trainer with an attribute `model` adds to all names.
const ATTRIBUTE: &str = "model.";

/// Removes the wrappers' parts from a tensor's name and adds each one to `removed`.
pub(super) fn unwrapped_name(name: &str, removed: &mut BTreeSet<String>) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for part in name.split('.') {
        if WRAPPERS.contains(&part) || part == PARALLEL && kept.is_empty() {
            removed.insert(format!("{part}."));
        } else {
            kept.push(part);
        }
    }
    kept.join(".")
}

/// Returns whether a name is of a LoRA adapter, or of a layer below one.
pub(super) fn is_of_adapter(name: &str) -> bool {
    name.split('.').any(|part| part.starts_with("lora_") || part == "base_layer")
}

/// Reads the tensors of a torch file. If they are in a dictionary one level down, reads that one only, and adds its key to `removed`.
pub(super) fn torch_tensors(
    path: &Path,
    removed: &mut BTreeSet<String>,
) -> Result<HashMap<String, pytorch_reader::Tensor>, pytorch_reader::PytorchError> {
    let tensors = PytorchReader::new(path)?.into_tensors();
    // The reader joins keys with dots. Only the pickle itself distinguishes a dictionary from a part of a name.
    let is_below = |key: &str| tensors.keys().any(|name| name.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')));
    let candidates: Vec<&str> = DICTIONARIES.into_iter().filter(|key| is_below(key)).collect();
    if candidates.is_empty() {
        return Ok(tensors);
    }
    let PickleValue::Dict(root) = PytorchReader::read_pickle_data(path, None)? else { return Ok(tensors) };
    let Some(key) = candidates.into_iter().find(|key| matches!(root.get(*key), Some(PickleValue::Dict(_)))) else {
        return Ok(tensors);
    };
    removed.insert(format!("{key}."));
    let tensors = PytorchReader::with_top_level_key(path, key)?.into_tensors();
    if !tensors.keys().all(|name| name.starts_with(ATTRIBUTE)) {
        return Ok(tensors);
    }
    removed.insert(ATTRIBUTE.to_string());
    Ok(tensors.into_iter().map(|(name, tensor)| (name[ATTRIBUTE.len()..].to_string(), tensor)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_wrappers_are_removed() {
        for (name, expected, parts) in [
            ("blocks.0.attn.proj.weight", "blocks.0.attn.proj.weight", vec![]),
            ("_orig_mod.blocks.0.ffn.up_proj.weight", "blocks.0.ffn.up_proj.weight", vec!["_orig_mod."]),
            ("blocks.0._orig_mod.attn.q_bias", "blocks.0.attn.q_bias", vec!["_orig_mod."]),
            ("module._orig_mod.module.head.bias", "head.bias", vec!["_orig_mod.", "module."]),
            ("_fsdp_wrapped_module.blocks.1._fsdp_wrapped_module.norm", "blocks.1.norm", vec!["_fsdp_wrapped_module."]),
            ("blocks.1._checkpoint_wrapped_module.norm", "blocks.1.norm", vec!["_checkpoint_wrapped_module."]),
            // Only a whole part counts, and `module` only in front.
            ("blocks.module.x_orig_mod", "blocks.module.x_orig_mod", vec![]),
        ] {
            let mut removed = BTreeSet::new();
            assert_eq!(unwrapped_name(name, &mut removed), expected);
            assert_eq!(removed.into_iter().collect::<Vec<_>>(), parts, "{name}");
        }
    }

    #[test]
    fn adapters_are_recognised() {
        let adapted =
            ["base_model.model.layers.0.q_proj.lora_A.default.weight", "q_proj.base_layer.weight", "lora_magnitude_vector"];
        assert!(adapted.into_iter().all(is_of_adapter));
        assert!(!is_of_adapter("layers.0.self_attn.q_proj.weight") && !is_of_adapter("explora_A.weight"));
    }
}
