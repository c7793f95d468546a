//! A model's files in memory.

use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex};

use hart_core::Files;

use crate::guard::{guard, lock};
use crate::handle::{Handle, free, get};
use crate::out::Out;
use crate::status::{Failure, HART_ERR_IO, HART_ERR_MEMORY, hart_status};
use crate::text;

/// Bytes that a reader is asked for at a time.
const CHUNK: usize = 16 << 20;

/// A model's files in memory, each under the name that it would have below the model's folder, such as "llm/config.json". Weights
/// must be safetensors: torch's .bin files are read from folders only.
pub struct hart_files(());

impl Handle for hart_files {
    type Value = Arc<Mutex<Files>>;
    const NAME: &'static str = "hart_files";
}

/// Reads `size` bytes at `offset` of a file into `buffer` and returns 0, or not 0 if it can't. Called on the thread that called
/// `hart_files_add_reader`. It must return: no C++ exception, no longjmp, no end of the thread.
pub type hart_reader = Option<unsafe extern "C" fn(user_data: *mut c_void, offset: u64, buffer: *mut u8, size: usize) -> i32>;

/// No files yet. Free them with `hart_files_free`; models that were opened from them go on, and share their memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_files_new(files: *mut *mut hart_files) -> hart_status {
    guard(|| {
        Out::<hart_files>::new(files, "files")?.give(Arc::default());
        Ok(())
    })
}

/// Frees the files; NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_files_free(files: *mut hart_files) {
    free(files);
}

/// Adds a file whose contents are `size` bytes at `data`, which are copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_files_add(files: *mut hart_files, name: *const c_char, data: *const u8, size: usize) -> hart_status {
    guard(|| {
        let (files, name) = (get(files, "files")?, text::get(name, "name")?);
        let bytes = text::bytes(data, size, "data")?;
        let mut contents = room(name, bytes.len())?;
        contents.extend_from_slice(bytes);
        Ok(lock(files).insert(name, contents)?)
    })
}

/// Adds a file of `size` bytes, which are read through `reader` before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_files_add_reader(
    files: *mut hart_files,
    name: *const c_char,
    size: u64,
    reader: hart_reader,
    user_data: *mut c_void,
) -> hart_status {
    guard(|| {
        // Held here: the reader may free both.
        let (files, name) = (Arc::clone(get(files, "files")?), text::get(name, "name")?.to_string());
        let reader = reader.ok_or_else(|| Failure::null("reader"))?;
        let size = usize::try_from(size).map_err(|_| Failure::argument(format!("`size` of {name} is {size}, which is no size")))?;
        let mut contents = room(&name, size)?;
        contents.resize(size, 0);
        for (index, part) in contents.chunks_mut(CHUNK).enumerate() {
            let offset = (index * CHUNK) as u64;
            let answer = reader(user_data, offset, part.as_mut_ptr(), part.len());
            if answer != 0 {
                let message = format!("{name}: the reader answered {answer} for {} bytes at {offset}", part.len());
                return Err(Failure::new(HART_ERR_IO, message));
            }
        }
        Ok(lock(&files).insert(&name, contents)?)
    })
}

/// An empty buffer with room for a file.
fn room(name: &str, size: usize) -> Result<Vec<u8>, Failure> {
    let mut contents = Vec::new();
    contents.try_reserve_exact(size).map_err(|_| Failure::new(HART_ERR_MEMORY, format!("{name}: no memory for {size} bytes")))?;
    Ok(contents)
}
