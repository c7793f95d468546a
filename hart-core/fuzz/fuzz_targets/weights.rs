//! Whatever a weights file holds, opening and reading it ends in finite tensors or an error. The first byte chooses the format.
#![no_main]

use std::fs;
use std::path::Path;

use hart_core::weights::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    let opened = match kind % 3 {
        0 => Checkpoint::from_safetensors(Path::new("model.safetensors"), bytes.to_vec()),
        kind => {
            let name = if kind == 1 { "model.bin" } else { "model.safetensors.index.json" };
            let folder = tempfile::tempdir().expect("a folder for temporary files");
            let path = folder.path().join(name);
            fs::write(&path, bytes).expect("room for a small file");
            read_all(Checkpoint::open_file(&path, true));
            return;
        }
    };
    read_all(opened);
});

fn read_all(opened: hart_core::Result<Checkpoint>) {
    let Ok(checkpoint) = opened else { return };
    for name in checkpoint.names() {
        let elements: usize = checkpoint.info(name).expect("a listed tensor").shape.iter().product();
        // A loader reads only tensors of the shape that it expects; a torch view may claim far more than its file holds.
        if elements > 1 << 20 {
            continue;
        }
        if let Ok(values) = checkpoint.values(name) {
            assert!(values.len() == elements && values.iter().all(|v| v.is_finite()));
        }
    }
}
