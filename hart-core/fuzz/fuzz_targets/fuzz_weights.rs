//! Promise: whatever a weights file holds, opening it and reading every tensor gives finite values that fit their shapes, or an error.
//! It never panics, and never allocates much more than the file's own size.
//!
//! The first byte chooses how the rest is read: 0 safetensors in memory, 1 a mapped safetensors file, 2 a torch `.bin`, 3 an index of
//! shards (`a.safetensors` and `b.safetensors` stand beside it).
#![cfg_attr(fuzzing, no_main)]

use std::alloc::System;
use std::fs;
use std::path::Path;

use cap::Cap;
use hart_core::Result;
use hart_core::weights::Checkpoint;
use hart_fuzz::fuzz_target;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, 256 << 20);

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else { return };
    let opened = match choice % 4 {
        0 => Checkpoint::from_safetensors(Path::new("in-memory.safetensors"), bytes.to_vec()),
        1 => open("x.safetensors", bytes),
        2 => open("x.bin", bytes),
        _ => open("x.index.json", bytes),
    };
    match opened {
        Ok(checkpoint) => read_all(&checkpoint),
        Err(e) => assert!(!e.to_string().is_empty()),
    }
});

/// Opens `bytes` as a file; its folder goes when this returns, but an opened file stays readable.
fn open(name: &str, bytes: &[u8]) -> Result<Checkpoint> {
    let folder = tempfile::tempdir().unwrap();
    for shard in ["a", "b"] {
        fs::write(folder.path().join(shard).with_extension("safetensors"), one_tensor(shard)).unwrap();
    }
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    Checkpoint::open_file(&path, true)
}

/// A safetensors file with one f32 of this name.
fn one_tensor(name: &str) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &1f32.to_le_bytes()].concat()
}

fn read_all(checkpoint: &Checkpoint) {
    for name in checkpoint.names() {
        let info = checkpoint.info(name).expect("a listed tensor is known");
        match checkpoint.values(name) {
            Ok(values) => {
                let count = info.shape.iter().try_fold(1usize, |count, &side| count.checked_mul(side));
                assert_eq!(count, Some(values.len()), "{:?}", info.shape);
                assert!(values.iter().all(|v| v.is_finite()));
            }
            Err(e) => assert!(!e.to_string().is_empty()),
        }
    }
    assert!(checkpoint.values("no such tensor").is_err());
}
