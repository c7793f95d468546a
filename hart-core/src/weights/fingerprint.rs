//! Fingerprints of checkpoints, which tell models apart without reading all of their weights.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::checkpoint::Checkpoint;
use super::tensors::TensorBytes;
use crate::error::{Error, Result};

/// Name and version of the scheme, which is hashed first.
const SCHEME: &str = "hart checkpoint 1";
/// Number of bytes that are hashed of a tensor, from its middle.
const TENSOR_BYTES: usize = 256;
/// Number of bytes of a block of a sampled file.
const BLOCK: usize = 1 << 12;
/// Number of blocks that are hashed of a longer file.
const BLOCKS: u64 = 64;
/// Number of bytes at the end of a torch file that are hashed as well. They hold the checksums of the tensors, or a part of them.
const TORCH_END: u64 = 1 << 18;

/// A SHA-256 over parts of a checkpoint. It covers
///
/// - texts in full: configurations and the system prompt,
/// - of each tensor the name, the type, the shape and up to 256 bytes from the middle of its data,
/// - of each torch file, whose tensors can't be read in part, the length, 64 blocks of 4 KiB at equal distances, and the last 256 KiB,
/// - of other files the length and the same 64 blocks.
///
/// Tensors are hashed in the order of their names, so the division into files doesn't matter.
pub(crate) struct Fingerprint(Sha256);

impl Fingerprint {
    /// Starts a fingerprint.
    pub(crate) fn new() -> Self {
        let mut fingerprint = Self(Sha256::new());
        fingerprint.bytes(SCHEME.as_bytes());
        fingerprint
    }

    /// Returns the fingerprint: 64 hexadecimal digits.
    pub(crate) fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Adds bytes and their number, so that no two sequences of parts are equal.
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// Adds a text and its name; `None` for a text that the checkpoint lacks.
    pub(crate) fn text(&mut self, name: &str, text: Option<&[u8]>) {
        self.bytes(name.as_bytes());
        self.bytes(if text.is_some() { b"1" } else { b"0" });
        self.bytes(text.unwrap_or_default());
    }

    /// Adds a file and its name by its length and a sample.
    pub(crate) fn sample(&mut self, name: &str, file: &[u8]) {
        self.bytes(name.as_bytes());
        self.bytes(&(file.len() as u64).to_le_bytes());
        for start in block_starts(file.len() as u64) {
            let start = start as usize;
            self.bytes(&file[start..file.len().min(start + BLOCK)]);
        }
    }

    /// Adds a set of weights and its name.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a torch file cannot be read.
    pub(crate) fn weights(&mut self, name: &str, checkpoint: &Checkpoint) -> Result<()> {
        self.bytes(name.as_bytes());
        let mut torch_files: Vec<&Path> = Vec::new();
        for (name, entry) in checkpoint.entries() {
            self.bytes(name.as_bytes());
            self.bytes(entry.element.name().as_bytes());
            let shape: Vec<u8> = entry.info.shape.iter().flat_map(|&side| (side as u64).to_le_bytes()).collect();
            self.bytes(&shape);
            match &entry.bytes {
                TensorBytes::Buffer(data) => self.bytes(middle(data)),
                TensorBytes::Torch(_) if torch_files.contains(&&*entry.info.file) => {}
                TensorBytes::Torch(_) => torch_files.push(&entry.info.file),
            }
        }
        // In an order that doesn't depend on the names of the tensors.
        torch_files.sort();
        torch_files.into_iter().try_for_each(|path| self.torch_file(path).map_err(Error::io(path)))
    }

    fn torch_file(&mut self, path: &Path) -> std::io::Result<()> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        self.bytes(&length.to_le_bytes());
        let blocks = block_starts(length).map(|start| (start, BLOCK as u64));
        for (start, bytes) in blocks.chain([(length.saturating_sub(TORCH_END), TORCH_END)]) {
            file.seek(SeekFrom::Start(start))?;
            let mut block = Vec::new();
            Read::by_ref(&mut file).take(bytes).read_to_end(&mut block)?;
            self.bytes(&block);
        }
        Ok(())
    }
}

/// Returns the bytes of a tensor that are hashed.
fn middle(data: &[u8]) -> &[u8] {
    let length = data.len().min(TENSOR_BYTES);
    &data[(data.len() - length) / 2..][..length]
}

/// Returns where the blocks of a file start that are hashed: all of a short one, otherwise blocks at equal distances, among them the
/// first and the last.
fn block_starts(length: u64) -> impl Iterator<Item = u64> {
    let block = BLOCK as u64;
    let blocks = length.div_ceil(block).min(BLOCKS);
    let last = if length > block * BLOCKS { length - block } else { block * blocks.saturating_sub(1) };
    let gaps = blocks.saturating_sub(1).max(1);
    // Products of small numbers, which can't overflow.
    (0..blocks).map(move |index| index * (last / gaps) + index * (last % gaps) / gaps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: impl FnOnce(&mut Fingerprint)) -> String {
        let mut fingerprint = Fingerprint::new();
        parts(&mut fingerprint);
        fingerprint.finish()
    }

    #[test]
    fn a_short_file_is_covered_and_a_long_one_sampled() {
        for length in [0, 1, 4095, 4096, 4097, 262_143, 262_144] {
            let starts: Vec<u64> = block_starts(length).collect();
            let expected: Vec<u64> = (0..length.div_ceil(4096)).map(|block| 4096 * block).collect();
            assert_eq!(starts, expected, "{length}");
        }
        for length in [262_145, 1 << 20, 7_000_003, u64::from(u32::MAX) * 1000] {
            let starts: Vec<u64> = block_starts(length).collect();
            assert_eq!((starts.len(), starts[0], starts[63]), (64, 0, length - 4096), "{length}");
            assert!(starts.is_sorted(), "{length}");
        }
    }

    #[test]
    fn every_part_changes_the_fingerprint() {
        let all = [
            of(|_| {}),
            of(|f| f.text("a", None)),
            of(|f| f.text("a", Some(b""))),
            of(|f| f.text("b", Some(b""))),
            of(|f| f.text("a", Some(b"b"))),
            of(|f| f.sample("a", b"b")),
            of(|f| f.sample("a", b"")),
            of(|f| f.sample("a", &[0; 1 << 20])),
            of(|f| f.sample("a", &[0; (1 << 20) + 1])),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(one.len() == 64 && !all[..index].contains(one), "{index}");
        }
        assert_eq!(middle(&[1, 2, 3]), [1, 2, 3]);
        let data: Vec<u8> = (0..=255).cycle().take(1000).collect();
        assert_eq!(middle(&data), &data[372..628]);
    }
}
