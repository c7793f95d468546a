//! The layout of a checkpoint: where its parts are (spec section 0).

use std::path::{Path, PathBuf};

use super::{Config, GenerationConfig, TextConfig, TransformerConfig, VisualConfig};
use crate::error::{Error, Result};
use crate::files::{Storage, decode_text};

/// Folder names of a text model, in the checkpoint's root or next to it. The second is the published one.
const TEXT_FOLDERS: [&str; 2] = ["text", "Qwen2-VL-1.5B-Instruct"];
/// Maximum size of a system prompt file in bytes.
const MAX_SYSTEM_PROMPT: u64 = 1 << 20;

/// The folders of a checkpoint's parts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Folders {
    /// The transformer and the residual diffusion, `llm`.
    pub transformer: PathBuf,
    /// The visual tokenizer, usually `tokenizer`.
    pub visual: PathBuf,
    /// The text model, in the checkpoint's root or next to it.
    pub text: PathBuf,
}

impl Folders {
    /// Finds the parts of a checkpoint like [`Hart::open`](crate::Hart::open), with their `config.json`. `text_model` is the folder of
    /// the text model; `None` looks for it in the usual places.
    ///
    /// # Errors
    ///
    /// A part is missing, or a value of its configuration is invalid.
    pub fn find(root: &Path, text_model: Option<&Path>) -> Result<Self> {
        let Layout { transformer, visual, text, .. } = Layout::find(&Storage::Disk { memory_map: false }, root, text_model)?;
        Ok(Self { transformer, visual, text })
    }
}

/// The folders of a checkpoint's parts, with their configuration.
pub(crate) struct Layout {
    pub(crate) transformer: PathBuf,
    pub(crate) visual: PathBuf,
    pub(crate) text: PathBuf,
    pub(crate) config: Config,
    pub(crate) system_prompt: Option<String>,
}

impl Layout {
    /// Finds the parts below a checkpoint's root and reads their configuration.
    ///
    /// # Errors
    ///
    /// A part is missing, or a value of its configuration is invalid.
    pub(crate) fn find(storage: &Storage, root: &Path, text_model: Option<&Path>) -> Result<Self> {
        if matches!(storage, Storage::Disk { .. }) && !root.is_dir() {
            return Err(Error::checkpoint(
                root,
                "no such folder: pass the checkpoint's root folder, which holds llm and tokenizer",
            ));
        }
        let transformer = root.join("llm");
        let config_file = part(storage, &transformer, "pass the checkpoint's root folder, which holds llm and tokenizer")?;
        let (transformer_config, residual) = TransformerConfig::read_in(storage, &config_file)?;
        let visual = visual_folder(storage, root, &transformer_config);
        let visual_config = VisualConfig::read_in(storage, &part(storage, &visual, "the visual tokenizer belongs next to llm")?)?;
        let text = text_folder(storage, root, text_model)?;
        let advice = "name the text model's folder (the option `text_model`)";
        let text_config = TextConfig::read_in(storage, &part(storage, &text, advice)?)?;
        let generation = transformer.join("generation_config.json");
        let generation = match storage.is_file(&generation) {
            true => GenerationConfig::read_in(storage, &generation)?,
            false => GenerationConfig::default(),
        };
        let config = Config { text: text_config, transformer: transformer_config, residual, visual: visual_config, generation };
        config.check(&config_file)?;
        let system_prompt = system_prompt(storage, &transformer)?;
        Ok(Self { transformer, visual, text, config, system_prompt })
    }
}

/// Returns the path of a part's `config.json`. `advice` is for the error if the file is missing.
fn part(storage: &Storage, folder: &Path, advice: &str) -> Result<PathBuf> {
    let file = folder.join("config.json");
    if storage.is_file(&file) { Ok(file) } else { Err(Error::checkpoint(&file, format!("no such file: {advice}"))) }
}

/// Returns the visual tokenizer's folder: `vae_path`, if that path of the training machine exists here, otherwise `tokenizer` next to
/// `llm`.
fn visual_folder(storage: &Storage, root: &Path, config: &TransformerConfig) -> PathBuf {
    let local = config.visual_path.iter().filter(|path| !is_remote(path));
    let named = local.flat_map(|path| [root.join(path), root.join("llm").join(path)]);
    let (usual, llm) = (root.join("tokenizer"), root.join("llm"));
    // An empty path or a dot would be the transformer's own folder.
    let mut others = named.into_iter().filter(|folder| !folder.components().eq(llm.components()));
    others.find(|folder| storage.is_file(&folder.join("config.json"))).unwrap_or(usual)
}

/// Returns whether Windows may look for a path on another machine, such as `\\server\share`, and send the user's credentials there.
/// That would let a checkpoint's author collect them.
fn is_remote(path: &Path) -> bool {
    let is_separator = |byte: &u8| matches!(byte, b'/' | b'\\');
    // `\??\` is a prefix of Windows itself, which may be followed by a remote path.
    matches!(path.as_os_str().as_encoded_bytes(), [first, second, ..] if is_separator(first) && (is_separator(second) || *second == b'?'))
}

/// Returns the text model's folder.
fn text_folder(storage: &Storage, root: &Path, text_model: Option<&Path>) -> Result<PathBuf> {
    if let Some(folder) = text_model {
        return Ok(folder.to_path_buf());
    }
    let mut roots = vec![root.to_path_buf()];
    if let Storage::Disk { .. } = storage {
        // Next to the name that was given, which may be a link, and next to the folder itself.
        let named = std::path::absolute(root).map_err(Error::io(root))?;
        let resolved = root.canonicalize().map_err(Error::io(root))?;
        let has_name = named.file_name().is_some();
        let parents = [has_name.then(|| named.parent()).flatten(), resolved.parent()];
        roots.extend(parents.into_iter().flatten().map(Path::to_path_buf));
    }
    let mut folders = roots.into_iter().flat_map(|root| TEXT_FOLDERS.map(|name| root.join(name)));
    folders.find(|folder| storage.is_file(&folder.join("config.json"))).ok_or_else(|| {
        let names = TEXT_FOLDERS.join(" or ");
        Error::checkpoint(
            root,
            format!("no text model: expected a folder {names} there or next to it, or name its folder (the option `text_model`)"),
        )
    })
}

/// Reads `system_prompt.txt`, if there is one and it is not empty. A final line break belongs to the text: the published prompt ends in
/// one. Line breaks are LF, also if an editor writes CR LF.
fn system_prompt(storage: &Storage, folder: &Path) -> Result<Option<String>> {
    let path = folder.join("system_prompt.txt");
    let exists = match storage {
        // Anything with that name must be a regular file: a pipe is refused, not ignored.
        Storage::Disk { .. } => path.exists(),
        Storage::Memory(_) => storage.is_file(&path),
    };
    if !exists {
        return Ok(None);
    }
    let bytes = storage.read(&path, MAX_SYSTEM_PROMPT, true)?;
    let text = decode_text(&path, &bytes)?.replace("\r\n", "\n");
    Ok(Some(text).filter(|t| !t.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_paths_are_recognised_on_every_system() {
        for path in [r"\\server\share", "//server/share", r"\\?\UNC\server\share", r"\??\UNC\server\share", r"\\.\x", r"/\server"] {
            assert!(is_remote(Path::new(path)), "{path}");
        }
        for path in ["", "/", "tokenizer", "/home/a/tokenizer", r"C:\models\tokenizer", "../tokenizer", "a//b", "?"] {
            assert!(!is_remote(Path::new(path)), "{path}");
        }
    }
}
