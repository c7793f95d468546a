//! Checkpoints as training tools save them: other names of files and tensors, nested dictionaries, tied weights and adapters.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use hart_core::stages::TextTokenizer;
use hart_core::weights::Checkpoint;
use hart_core::{Control, Error, Files, Hart, OpenOptions, Precision, Request, WeightSet, convert};
use model::Model;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

#[allow(dead_code, reason = "shared with the tests of bad input")]
#[path = "support/model.rs"]
mod model;

/// A tensor: name, shape and values.
type Named = (String, Vec<usize>, Vec<f32>);

/// A copy of the fixture's checkpoint without EMA weights, and without the weights of one part.
struct Part {
    model: Model,
    part: &'static str,
    /// The tensors of the part.
    tensors: Vec<Named>,
}

impl Part {
    fn without_weights_of(part: &'static str) -> Self {
        let model = Model::copy(|name| !name.starts_with("ema"));
        let file = model.path(part).join("model.safetensors");
        let tensors = tensors(&Checkpoint::open_file(&file, false).unwrap());
        fs::remove_file(file).unwrap();
        Self { model, part, tensors }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.model.path(self.part).join(file)
    }

    fn renamed(&self, rename: impl Fn(&str) -> String) -> Vec<Named> {
        self.tensors.iter().map(|(name, shape, values)| (rename(name), shape.clone(), values.clone())).collect()
    }

    fn open(&self) -> Result<Hart, Error> {
        self.model.open()
    }

    fn refused(&self, words: &[&str]) {
        self.model.refused(words);
    }

    /// Asserts that the part has its tensors under their usual names, and which parts of names were removed.
    fn opens_without(&self, file: &str, removed: &[&str]) {
        let checkpoint = Checkpoint::open(&self.model.path(self.part), true).unwrap();
        assert_eq!(checkpoint.path(), self.path(file));
        assert!(tensors(&checkpoint) == self.tensors, "{file}: {:?}", checkpoint.names().take(5).collect::<Vec<_>>());
        let hart = self.open().unwrap();
        let report = hart.reports().iter().find(|report| report.path == self.path(file)).unwrap();
        assert!(report.is_clean() && report.removed.iter().eq(removed), "{:?}", report.removed);
        assert!(removed.iter().all(|part| report.to_string().contains(&format!("`{part}`"))), "{report}");
    }
}

fn tensors(checkpoint: &Checkpoint) -> Vec<Named> {
    let tensor = |name: &str| (name.into(), checkpoint.info(name).unwrap().shape.clone(), checkpoint.values(name).unwrap());
    checkpoint.names().filter(|name| checkpoint.values(name).is_ok()).map(tensor).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn write_safetensors(path: &Path, tensors: &[Named], metadata: &[(&str, &str)]) {
    let bytes: Vec<_> = tensors.iter().map(|(name, shape, values)| (name, shape, bytes(values))).collect();
    let views = bytes.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    let metadata: HashMap<_, _> = metadata.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

/// A value of a pickle.
enum Pickled<'a> {
    Number(i32),
    Tensors(&'a [Named]),
    Dictionary(Vec<(&'a str, Pickled<'a>)>),
}

/// Writes a torch file in the format before version 1.6, which needs no zip archive.
fn write_torch(path: &Path, root: &Pickled<'_>) {
    let mut file = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}(".to_vec();
    file.extend([text("protocol_version"), b"M\xe9\x03".to_vec(), text("little_endian"), b"\x88".to_vec()].concat());
    file.extend([text("type_sizes"), b"}u.\x80\x02".to_vec()].concat());
    let mut storages = Vec::new();
    pickle(root, &mut file, &mut storages);
    file.extend(b".\x80\x02](");
    (0..storages.len()).for_each(|key| file.extend(text(&key.to_string())));
    file.extend(b"e.");
    for values in storages {
        file.extend((values.len() as i64).to_le_bytes());
        file.extend(bytes(values));
    }
    fs::write(path, file).unwrap();
}

fn text(text: &str) -> Vec<u8> {
    [b"X", (text.len() as u32).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

fn number(value: usize) -> Vec<u8> {
    [b"J", i32::try_from(value).unwrap().to_le_bytes().as_slice()].concat()
}

fn pickle<'a>(value: &Pickled<'a>, file: &mut Vec<u8>, storages: &mut Vec<&'a [f32]>) {
    match value {
        Pickled::Number(value) => file.extend(number(*value as usize)),
        Pickled::Dictionary(entries) => {
            file.extend(b"}(");
            for (key, value) in entries {
                file.extend(text(key));
                pickle(value, file, storages);
            }
            file.push(b'u');
        }
        Pickled::Tensors(tensors) => {
            file.extend(b"}(");
            for (name, shape, values) in *tensors {
                let strides = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product());
                let tuple =
                    |numbers: Vec<usize>| [b"(".to_vec(), numbers.into_iter().flat_map(number).collect(), b"t".to_vec()].concat();
                file.extend(text(name));
                file.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
                file.extend([text("storage"), b"ctorch\nFloatStorage\n".to_vec()].concat());
                file.extend([text(&storages.len().to_string()), text("cpu"), number(values.len()), b"NtQK\0".to_vec()].concat());
                file.extend([tuple(shape.clone()), tuple(strides.collect())].concat());
                file.extend(b"\x89ccollections\nOrderedDict\n)RtR");
                storages.push(values);
            }
            file.push(b'u');
        }
    }
}

#[test]
fn dictionaries_of_trainers_are_opened_and_wrappers_removed() {
    let model = Part::without_weights_of("llm");
    let file = model.path("pytorch_model.bin");
    let moments = [("exp_avg".to_string(), vec![2], vec![1.0, 2.0])];
    let optimizer = || ("optimizer", Pickled::Dictionary(vec![("state", Pickled::Tensors(&moments))]));
    let same = model.tensors.clone();
    write_torch(&file, &Pickled::Tensors(&same));
    model.opens_without("pytorch_model.bin", &[]);
    for key in ["state_dict", "module", "model"] {
        write_torch(&file, &Pickled::Dictionary(vec![("epoch", Pickled::Number(3)), (key, Pickled::Tensors(&same)), optimizer()]));
        model.opens_without("pytorch_model.bin", &[&format!("{key}.")]);
    }
    let of_attribute = model.renamed(|name| format!("model._orig_mod.{name}"));
    write_torch(&file, &Pickled::Dictionary(vec![("state_dict", Pickled::Tensors(&of_attribute)), optimizer()]));
    model.opens_without("pytorch_model.bin", &["_orig_mod.", "model.", "state_dict."]);
    let parallel = model.renamed(|name| format!("module.{name}"));
    write_torch(&file, &Pickled::Tensors(&parallel));
    model.opens_without("pytorch_model.bin", &["module."]);
}

#[test]
fn wrappers_are_removed_from_names_in_safetensors() {
    let model = Part::without_weights_of("llm");
    let file = model.path("model.safetensors");
    type Rename<'a> = &'a dyn Fn(&str) -> String;
    let cases: [(Rename<'_>, &[&str]); 4] = [
        (&|name| format!("_orig_mod.module.{name}"), &["_orig_mod.", "module."]),
        (&|name| name.replacen("blocks.1.", "blocks.1._orig_mod.", 1), &["_orig_mod."]),
        (&|name| format!("_fsdp_wrapped_module.{name}"), &["_fsdp_wrapped_module."]),
        (&|name| name.replacen(".attn.", "._fsdp_wrapped_module.attn.", 1), &["_fsdp_wrapped_module."]),
    ];
    for (rename, removed) in cases {
        write_safetensors(&file, &model.renamed(rename), &[("format", "pt")]);
        model.opens_without("model.safetensors", removed);
    }
    let mut twice = model.renamed(str::to_string);
    twice.push((format!("module.{}", twice[0].0), twice[0].1.clone(), twice[0].2.clone()));
    write_safetensors(&file, &twice, &[]);
    model.refused(&["model.safetensors", "under two names", "keep one"]);
}

/// Composed and decomposed letters are the same prompt to the shipped model. ASCII prompts have the tokens that the model was trained with.
#[test]
fn the_shipped_tokenizer_composes_letters() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/hart-emoji/text");
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let (shipped, settings) = (read("tokenizer.json"), read("tokenizer_config.json"));
    let mut json: serde_json::Value = serde_json::from_slice(&shipped).unwrap();
    assert_eq!(json["normalizer"].take(), serde_json::json!({ "type": "NFC" }));
    let before = json.to_string();
    let ids = |tokenizer: &[u8], text: &str| {
        TextTokenizer::parse(&folder, tokenizer, &settings, 1024).unwrap().tokenize(&[text], None, 40).unwrap().ids
    };
    let (composed, decomposed) = ("a café by the Ångström", "a cafe\u{301} by the A\u{30a}ngstro\u{308}m");
    assert_eq!(ids(&shipped, decomposed), ids(&shipped, composed));
    assert_eq!(ids(&shipped, composed), ids(before.as_bytes(), composed));
    let ascii: String = (0..128).map(|code| char::from(code as u8)).collect();
    for text in ["three red apples on a white background", "a 'Llama' in blue-green, 12\t\r\n x 34 (noto style)", &ascii] {
        assert_eq!(ids(&shipped, text), ids(before.as_bytes(), text), "{text}");
    }
}

#[test]
fn adapters_must_be_merged() {
    let model = Part::without_weights_of("text");
    for name in ["layers.0.self_attn.q_proj.lora_A.default.weight", "layers.0.self_attn.q_proj.base_layer.weight"] {
        let mut tensors = model.tensors.clone();
        tensors.push((format!("base_model.model.{name}"), vec![1], vec![0.0]));
        write_safetensors(&model.path("model.safetensors"), &tensors, &[]);
        model.refused(&["model.safetensors", name, "LoRA", "merge it first"]);
    }
    fs::rename(model.path("model.safetensors"), model.path("adapter_model.safetensors")).unwrap();
    model.refused(&["LoRA adapter without its model", "merge it first", "model.safetensors"]);
}

/// `safetensors.torch.save_model` keeps one of two tied tensors, the first by name, and the other name in the metadata.
#[test]
fn tied_weights_are_found_by_their_alias() {
    let model = Part::without_weights_of("text");
    let file = model.path("model.safetensors");
    let embedding =
        model.tensors.iter().map(|(name, ..)| name.as_str()).find(|name| name.ends_with("embed_tokens.weight")).unwrap();
    let tied = model.renamed(|name| if name == embedding { "lm_head.weight".into() } else { name.into() });
    write_safetensors(&file, &tied, &[("format", "pt")]);
    model.refused(&["1 missing", "embed_tokens.weight"]);
    write_safetensors(&file, &tied, &[("format", "pt"), (embedding, "lm_head.weight")]);
    let hart = model.open().unwrap();
    assert!(hart.reports()[0].is_clean() && hart.reports()[0].ignored.is_empty(), "{}", hart.reports()[0]);
    let checkpoint = Checkpoint::open_file(&file, true).unwrap();
    assert_eq!(checkpoint.info(embedding), checkpoint.info("lm_head.weight"));
    assert_eq!(checkpoint.values(embedding).unwrap(), checkpoint.values("lm_head.weight").unwrap());
    // The alias of a tensor that is not needed is not an unused tensor.
    write_safetensors(&file, &model.tensors, &[("lm_head.weight", embedding), ("extra", embedding)]);
    assert!(model.open().unwrap().reports()[0].is_clean());
    // A converted model has the tensor under the name that is needed.
    write_safetensors(&file, &tied, &[(embedding, "lm_head.weight")]);
    let to = model.model.folder().join("converted");
    convert(model.model.folder(), &to, Precision::Bf16, WeightSet::Plain, None, &mut |_| Control::Continue).unwrap();
    let converted = Checkpoint::open(&to.join("text"), true).unwrap();
    assert!(converted.info(embedding).is_some() && converted.info("lm_head.weight").is_none());
    assert!(Hart::open(&to, OpenOptions::new()).unwrap().reports()[0].is_clean());
}

#[test]
fn a_single_torch_file_of_any_name_is_opened() {
    let model = Part::without_weights_of("llm");
    for name in ["model.pt", "last.ckpt", "pytorch_model.pth"] {
        write_torch(&model.path(name), &Pickled::Tensors(&model.tensors));
        // Files of a trainer that hold no weights.
        write_torch(&model.path("optimizer.pt"), &Pickled::Dictionary(vec![("lr", Pickled::Number(1))]));
        model.opens_without(name, &[]);
        let mut files = Files::new();
        for part in ["llm", "tokenizer", "text"] {
            for file in fs::read_dir(model.model.folder().join(part)).unwrap() {
                let file = file.unwrap();
                files.insert(Path::new(part).join(file.file_name()), fs::read(file.path()).unwrap()).unwrap();
            }
        }
        let error = Hart::from_files(files, OpenOptions::new()).err().unwrap().to_string();
        assert!(error.contains(name) && error.contains("save its tensors as model.safetensors"), "{error}");
        fs::remove_file(model.path(name)).unwrap();
    }
    for ending in ["pt", "pth", "ckpt"] {
        let name = model.path(&format!("ema_model.{ending}"));
        write_torch(&name, &Pickled::Tensors(&model.tensors));
        let hart = Hart::open(model.model.folder(), OpenOptions::new().weight_set(WeightSet::Ema)).unwrap();
        assert_eq!(hart.reports()[1].files, BTreeSet::from([name.clone()]));
        fs::remove_file(name).unwrap();
    }
    for name in ["a.ckpt", "b.ckpt"] {
        write_torch(&model.path(name), &Pickled::Tensors(&model.tensors));
    }
    model.refused(&["found a.ckpt, b.ckpt", "rename"]);
}

#[test]
fn numbers_of_training_tools_are_ignored() {
    let model = Part::without_weights_of("llm");
    let mut tensors = model.tensors.clone();
    tensors.extend([("num_updates".into(), vec![], vec![12.0]), ("nothing".into(), vec![0, 4], vec![])]);
    // The fixture has buffers, whose names are before these.
    let are_ignored = || model.open().unwrap().reports()[1].ignored.ends_with(&["nothing".into(), "num_updates".into()]);
    write_safetensors(&model.path("model.safetensors"), &tensors, &[]);
    assert!(are_ignored());
    fs::remove_file(model.path("model.safetensors")).unwrap();
    write_torch(&model.path("pytorch_model.bin"), &Pickled::Tensors(&tensors));
    assert!(are_ignored());
    tensors.push(("extra".into(), vec![1], vec![0.0]));
    write_safetensors(&model.path("model.safetensors"), &tensors, &[]);
    model.refused(&["1 unused", "`extra` [1]"]);
}

#[test]
fn small_floats_are_named() {
    let model = Part::without_weights_of("llm");
    let (name, shape, values) = &model.tensors[0];
    let bytes = vec![0; values.len()];
    let file = model.path("model.safetensors");
    write_safetensors(&file, &model.tensors, &[]);
    let mut checkpoint: Vec<_> = model.tensors[1..].iter().map(|(n, s, v)| (n, Dtype::F32, s, self::bytes(v))).collect();
    checkpoint.push((name, Dtype::F8_E4M3, shape, bytes));
    let views =
        checkpoint.iter().map(|(name, dtype, shape, bytes)| (name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
    fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
    model.refused(&[name, "holds floats of at most 8 bits", "expected f32, f16, bf16 or f64", "save the model in one of these"]);
}

#[test]
fn files_of_weights_with_another_name_are_named() {
    let model = Part::without_weights_of("llm");
    write_safetensors(&model.path("diffusion_pytorch_model.safetensors"), &model.tensors, &[]);
    model.refused(&["found diffusion_pytorch_model.safetensors", "rename", "expected one of model.safetensors"]);
    fs::rename(model.path("diffusion_pytorch_model.safetensors"), model.path("model.pt")).unwrap();
    model.refused(&["model.pt: is a safetensors file", "ends in .safetensors"]);
    fs::write(model.path("model.safetensors"), b"PK\x03\x04 and so on").unwrap();
    model.refused(&["model.safetensors: is a torch file", "ends in .bin"]);
}

#[test]
fn a_fingerprint_tells_models_apart() {
    let plain = Model::copy(|name| !name.starts_with("ema"));
    let fingerprint = |model: &Model| model.open().unwrap().fingerprint().to_string();
    let original = fingerprint(&plain);
    assert!(original.len() == 64 && original.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')), "{original}");

    // The same files in other places.
    assert_eq!(fingerprint(&Model::copy(|name| !name.starts_with("ema"))), original);
    let read = Hart::open(plain.folder(), OpenOptions::new().memory_map(false).threads(1)).unwrap();
    let mut files = Files::new();
    for part in ["llm", "tokenizer", "text"] {
        for file in fs::read_dir(plain.path(part)).unwrap().map(Result::unwrap) {
            files.insert(Path::new(part).join(file.file_name()), fs::read(file.path()).unwrap()).unwrap();
        }
    }
    let memory = Hart::from_files(files, OpenOptions::new()).unwrap();
    assert_eq!((read.fingerprint(), memory.fingerprint()), (&*original, &*original));
    // Each image names the model.
    let image = memory.generate(&Request::new("a house")).unwrap().images.remove(0);
    assert_eq!(image.provenance.unwrap().generation.unwrap().model_fingerprint, original);
    // EMA weights are another model.
    assert_ne!(fingerprint(&Model::new()), original);

    let changed = |change: &dyn Fn(&Model)| {
        let model = Model::copy(|name| !name.starts_with("ema"));
        change(&model);
        fingerprint(&model)
    };
    let weights = ["llm/model.safetensors", "tokenizer/model.safetensors", "text/model.safetensors"];
    // Another writer orders the tensors of a file in its own way. This one leaves out those that are not f32.
    assert_eq!(changed(&|model| model.rewrite(weights[2], |_| ())), original);
    let mut all = vec![original];
    for file in weights {
        // One value of one tensor.
        let increased = changed(&|model| {
            model.rewrite(file, |tensors| {
                let (_, _, values) = tensors.iter_mut().max_by_key(|(name, _, _)| name.clone()).unwrap();
                let middle = values.len() / 2;
                values[middle] += 0.5;
            });
        });
        assert_ne!(changed(&|model| model.rewrite(file, |_| ())), increased, "{file}");
        all.push(increased);
    }
    for file in ["llm/config.json", "tokenizer/config.json", "text/config.json"] {
        all.push(changed(&|model| {
            model.set(file, "comment", "another".into());
        }));
    }
    all.push(changed(&|model| fs::write(model.path("llm/generation_config.json"), "{\"top_k\": 5}").unwrap()));
    all.push(changed(&|model| fs::write(model.path("llm/system_prompt.txt"), "draw ").unwrap()));
    all.push(changed(&|model| {
        let path = model.path("text/tokenizer.json");
        fs::write(&path, [fs::read(&path).unwrap(), b"\n".to_vec()].concat()).unwrap();
    }));
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");

    // A torch file is sampled as a whole.
    let part = Part::without_weights_of("text");
    let of_torch = |tensors: &[Named]| {
        write_torch(&part.path("pytorch_model.bin"), &Pickled::Tensors(tensors));
        part.open().unwrap().fingerprint().to_string()
    };
    let first = of_torch(&part.tensors);
    let mut other = part.tensors.clone();
    other.last_mut().unwrap().2[0] += 0.5;
    assert!(of_torch(&part.tensors) == first && of_torch(&other) != first);
}
