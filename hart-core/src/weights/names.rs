//! The table from module fields to tensor names in checkpoints (spec section 0).
//!
//! A row maps the path of a field to the name of its tensor, or the path of a module to the prefix of its tensors' names. `*` matches a
//! number and copies it. The first row that matches applies. The rest of a path stays the same, except that burn's `gamma` and `beta`
//! are `weight` and `bias` in every checkpoint.

/// The names of the tensors of one checkpoint file.
pub struct Table {
    /// Paths in the module tree and names in the checkpoint.
    rows: &'static [(&'static str, &'static str)],
    /// Possible prefixes of all names, in order of precedence.
    prefixes: &'static [&'static str],
    /// Prefixes of tensors that are not weights, or belong to other models.
    ignored: &'static [&'static str],
}

/// The text model: a Qwen2 decoder.
pub static TEXT: Table = Table {
    rows: &[
        ("embedding", "embed_tokens"),
        ("layers.*.attention_norm", "layers.*.input_layernorm"),
        ("layers.*.attention.query", "layers.*.self_attn.q_proj"),
        ("layers.*.attention.key", "layers.*.self_attn.k_proj"),
        ("layers.*.attention.value", "layers.*.self_attn.v_proj"),
        ("layers.*.attention.output", "layers.*.self_attn.o_proj"),
        ("layers.*.feed_forward_norm", "layers.*.post_attention_layernorm"),
        ("layers.*.feed_forward.gate", "layers.*.mlp.gate_proj"),
        ("layers.*.feed_forward.up", "layers.*.mlp.up_proj"),
        ("layers.*.feed_forward.down", "layers.*.mlp.down_proj"),
        ("norm", "norm"),
    ],
    // The third and fourth are those of newer exports of the vision-language model.
    prefixes: &["model.", "", "model.language_model.", "language_model."],
    ignored: &["lm_head", "visual", "layers.*.self_attn.rotary_emb"],
};

/// `llm`: the transformer and the residual diffusion.
pub static TRANSFORMER: Table = Table {
    rows: &[
        ("transformer.context_norm", "context_norm"),
        ("transformer.context_embed", "context_embed"),
        ("transformer.token_embed", "word_embed"),
        ("transformer.level_embed.Sinusoid.hidden", "lvl_embed.mlp.0"),
        ("transformer.level_embed.Sinusoid.output", "lvl_embed.mlp.2"),
        ("transformer.level_embed.Table", "lvl_embed"),
        ("transformer.blocks.*.norm", "blocks.*.ln_wo_grad"),
        ("transformer.blocks.*.modulator.Linear", "blocks.*.ada_lin.1"),
        ("transformer.blocks.*.modulator.Table.rows", "blocks.*.scale_shift_table"),
        ("transformer.blocks.*.attention.qkv", "blocks.*.attn.qkv_proj"),
        ("transformer.blocks.*.attention.query_bias", "blocks.*.attn.q_bias"),
        ("transformer.blocks.*.attention.value_bias", "blocks.*.attn.v_bias"),
        ("transformer.blocks.*.attention.log_scale", "blocks.*.attn.scale_mul_1H11"),
        ("transformer.blocks.*.attention.output", "blocks.*.attn.proj"),
        ("transformer.blocks.*.feed_forward.gate", "blocks.*.ffn.gate_proj"),
        ("transformer.blocks.*.feed_forward.up", "blocks.*.ffn.up_proj"),
        ("transformer.blocks.*.feed_forward.down", "blocks.*.ffn.down_proj"),
        ("transformer.head.norm", "head_nm.ln_wo_grad"),
        ("transformer.head.modulator", "head_nm.ada_lin.1"),
        ("transformer.head.logits", "head"),
        ("transformer.residual_norm", "decoder_norm"),
        ("residual.mlp.step_embed.hidden", "diffloss.net.time_embed.mlp.0"),
        ("residual.mlp.step_embed.output", "diffloss.net.time_embed.mlp.2"),
        ("residual.mlp.condition_embed", "diffloss.net.cond_embed"),
        ("residual.mlp.input", "diffloss.net.input_proj"),
        ("residual.mlp.blocks.*.norm", "diffloss.net.res_blocks.*.in_ln"),
        ("residual.mlp.blocks.*.modulator", "diffloss.net.res_blocks.*.adaLN_modulation.1"),
        ("residual.mlp.blocks.*.hidden", "diffloss.net.res_blocks.*.mlp.0"),
        ("residual.mlp.blocks.*.output", "diffloss.net.res_blocks.*.mlp.2"),
        ("residual.mlp.final_modulator", "diffloss.net.final_layer.adaLN_modulation.1"),
        ("residual.mlp.output", "diffloss.net.final_layer.linear"),
    ],
    prefixes: &[""],
    ignored: &["attn_bias_for_masking", "lvl_1L", "blocks.*.attn.zero_k_bias"],
};

/// `tokenizer`: the visual tokenizer. The autoencoder's fields are named as in the file.
pub static VISUAL: Table = Table {
    rows: &[
        ("codebook.embedding", "quantize.embedding"),
        // Phis that are partly shared, not shared, and one for all scales.
        ("codebook.phis.*", "quantize.quant_resi.qresi_ls.*"),
        ("codebook.phis.*", "quantize.quant_resi.*"),
        ("codebook.phis.*", "quantize.quant_resi.qresi"),
        ("", ""),
    ],
    // Without its discriminator the published autoencoder has no prefix.
    prefixes: &["vae.", ""],
    ignored: &["disc", "quantize.ema_vocab_hit_SV", "decoder2", "post_quant_conv2"],
};

/// Returns a function that selects a published name of the visual tokenizer. The names of the phi convolutions depend on
/// `share_quant_resi` in `config.json`, whose default is 4.
pub fn visual_names(share_quant_resi: Option<u64>) -> impl Fn(Vec<String>) -> Option<String> {
    let index = match share_quant_resi {
        Some(0) => 1,
        Some(1) => 2,
        _ => 0,
    };
    move |names| {
        let mut names: Vec<String> = names.into_iter().filter(|name| name.starts_with("vae.")).collect();
        (!names.is_empty()).then(|| names.swap_remove(index.min(names.len() - 1)))
    }
}

impl Table {
    /// Returns the possible names of a field's tensor in a checkpoint, in order of precedence.
    pub(crate) fn candidates(&self, field: &str) -> Vec<String> {
        let segments: Vec<&str> = if field.is_empty() { vec![] } else { field.split('.').collect() };
        let mut names = Vec::new();
        let mut matched = None;
        for (from, to) in self.rows {
            // Rows with the same left side are alternatives. Other rows after a match do not apply.
            if matched.is_some_and(|m| m != *from) {
                continue;
            }
            if let Some(name) = translate(&segments, from, to) {
                matched = Some(*from);
                names.extend(self.prefixes.iter().map(|prefix| format!("{prefix}{name}")));
            }
        }
        names
    }

    /// Returns whether a tensor is ignored.
    pub(super) fn ignores(&self, name: &str) -> bool {
        self.ignored.iter().any(|pattern| self.is_below(name, pattern))
    }

    /// Returns whether a tensor's name, with or without one of the prefixes, starts with a pattern.
    pub(super) fn is_below(&self, name: &str, pattern: &str) -> bool {
        let below = |name: &str| capture(&name.split('.').collect::<Vec<_>>(), pattern).is_some();
        below(name) || self.prefixes.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(below))
    }
}

/// Returns whether a field belongs to a module or one of its submodules. `*` in the module's path matches a number.
pub(crate) fn is_field_below(field: &str, module: &str) -> bool {
    capture(&field.split('.').collect::<Vec<_>>(), module).is_some()
}

/// Returns the name of a field's tensor by one row, if the row matches.
fn translate(field: &[&str], from: &str, to: &str) -> Option<String> {
    let (numbers, rest) = capture(field, from)?;
    let mut numbers = numbers.into_iter();
    let target = to.split('.').filter(|s| !s.is_empty()).map(|s| if s == "*" { numbers.next().unwrap_or("*") } else { s });
    let rest = rest.iter().map(|s| match *s {
        "gamma" => "weight",
        "beta" => "bias",
        other => other,
    });
    Some(target.chain(rest).collect::<Vec<_>>().join("."))
}

/// Returns the segments matched by a pattern's `*` and the segments after the pattern, if the pattern is a prefix.
fn capture<'a, 'b>(segments: &'a [&'b str], pattern: &str) -> Option<(Vec<&'b str>, &'a [&'b str])> {
    let pattern: Vec<&str> = pattern.split('.').filter(|s| !s.is_empty()).collect();
    let rest = segments.get(pattern.len()..)?;
    let mut numbers = Vec::new();
    for (segment, want) in segments.iter().zip(&pattern) {
        if *want == "*" && segment.bytes().all(|b| b.is_ascii_digit()) {
            numbers.push(*segment);
        } else if segment != want {
            return None;
        }
    }
    Some((numbers, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_become_published_names() {
        let one = |table: &Table, field| table.candidates(field)[0].clone();
        assert_eq!(one(&TRANSFORMER, "transformer.blocks.7.attention.qkv.weight"), "blocks.7.attn.qkv_proj.weight");
        assert_eq!(one(&TRANSFORMER, "transformer.blocks.0.attention.query_bias"), "blocks.0.attn.q_bias");
        assert_eq!(one(&TRANSFORMER, "residual.mlp.blocks.2.norm.beta"), "diffloss.net.res_blocks.2.in_ln.bias");
        assert_eq!(one(&VISUAL, "decoder.up.2.block.0.norm1.gamma"), "vae.decoder.up.2.block.0.norm1.weight");
        let phis = VISUAL.candidates("codebook.phis.3.bias").into_iter().filter(|name| name.starts_with("vae."));
        let usual =
            ["vae.quantize.quant_resi.qresi_ls.3.bias", "vae.quantize.quant_resi.3.bias", "vae.quantize.quant_resi.qresi.bias"];
        assert_eq!(phis.collect::<Vec<_>>(), usual);
        let norm = ["model.", "", "model.language_model.", "language_model."]
            .map(|prefix| format!("{prefix}layers.1.input_layernorm.weight"));
        assert_eq!(TEXT.candidates("layers.1.attention_norm.gamma"), norm);
        assert!(TRANSFORMER.candidates("transformer.unknown.weight").is_empty());
    }

    #[test]
    fn buffers_are_ignored_and_nothing_else() {
        assert!(TRANSFORMER.ignores("blocks.11.attn.zero_k_bias") && TRANSFORMER.ignores("lvl_1L"));
        assert!(!TRANSFORMER.ignores("blocks.11.attn.q_bias") && !TRANSFORMER.ignores("lvl_embed.weight"));
        assert!(VISUAL.ignores("disc.layer.weight") && !VISUAL.ignores("vae.decoder.conv_in.bias"));
        assert!(TEXT.ignores("lm_head.weight") && TEXT.ignores("visual.blocks.0.weight") && TEXT.ignores("model.visual.x"));
    }
}
