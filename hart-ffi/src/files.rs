//! Files of a model in memory.

use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex};

use hart_core::{Files, with_default_float_state};

use crate::guard::{guard, lock};
use crate::handle::{Handle, free, get};
use crate::out::Out;
use crate::status::{Failure, HART_ERR_IO, HART_ERR_MEMORY, hart_status};
use crate::text::{self, Text};
use crate::user_data::{UserData, hart_destroy};

/// Maximum number of bytes that one call of a reader reads.
const CHUNK: usize = 16 << 20;

/// Files of a model in memory. Each has the path that it would have inside the model's folder, such as
/// "llm/config.json". Weights must be safetensors files: PyTorch .bin files can only be read from a folder.
pub struct hart_files(());

impl Handle for hart_files {
    type Value = Arc<Mutex<Files>>;
    const NAME: &'static str = "hart_files";
}

/// Callback that reads `size` bytes at `offset` of a file into `buffer`. Returns 0 on success and any other value on
/// failure. hart calls it on the thread that called `hart_files_add_reader`. It must return normally: no C++ exception,
/// no longjmp, no thread exit.
pub type hart_reader = Option<unsafe extern "C" fn(user_data: *mut c_void, offset: u64, buffer: *mut u8, size: usize) -> i32>;

/// Creates an empty set of files. Free it with `hart_files_free`; models opened from it keep working and share its
/// memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_files_new(files: *mut *mut hart_files) -> hart_status {
    guard(|| {
        Out::<hart_files>::new(files, "files")?.write(Arc::default());
        Ok(())
    })
}

/// Frees the files. Does nothing if `files` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_files_free(files: *mut hart_files) {
    free(files);
}

/// Adds a file with the `size` bytes at `data`, which are copied. Returns `HART_ERR_REQUEST` if the name
/// already exists or is not a path inside the model's folder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_files_add(files: *mut hart_files, name: *const c_char, data: *const u8, size: usize) -> hart_status {
    add(files, Text::Terminated(name), data, size)
}

/// Like `hart_files_add`, for a name of `name_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_files_add_n(
    files: *mut hart_files,
    name: *const c_char,
    name_size: usize,
    data: *const u8,
    size: usize,
) -> hart_status {
    add(files, Text::Sized(name, name_size), data, size)
}

unsafe fn add(files: *mut hart_files, name: Text, data: *const u8, size: usize) -> hart_status {
    guard(|| {
        let (files, name) = (get(files, "files")?, name.get("name")?);
        let bytes = text::bytes(data, size, "data")?;
        let mut contents = buffer(name, bytes.len())?;
        contents.extend_from_slice(bytes);
        Ok(lock(files).insert(name, contents)?)
    })
}

/// Adds a file with the `size` bytes at `data`, which are not copied. They must stay valid and unchanged until hart calls
/// `destroy` with `user_data`: when the files and all models that were opened from them are freed, or before the call
/// returns if it fails. `destroy` may be NULL, for data that outlives them. Weights in f32, and those in half precision
/// that are used as they are stored, are read in place if `data` is aligned to 8 bytes; otherwise they are copied when
/// the model is opened. Returns `HART_ERR_REQUEST` like `hart_files_add`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_files_add_borrowed(
    files: *mut hart_files,
    name: *const c_char,
    data: *const u8,
    size: usize,
    user_data: *mut c_void,
    destroy: hart_destroy,
) -> hart_status {
    add_borrowed(files, Text::Terminated(name), data, size, UserData::new(user_data, destroy))
}

/// Like `hart_files_add_borrowed`, for a name of `name_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_files_add_borrowed_n(
    files: *mut hart_files,
    name: *const c_char,
    name_size: usize,
    data: *const u8,
    size: usize,
    user_data: *mut c_void,
    destroy: hart_destroy,
) -> hart_status {
    add_borrowed(files, Text::Sized(name, name_size), data, size, UserData::new(user_data, destroy))
}

unsafe fn add_borrowed(files: *mut hart_files, name: Text, data: *const u8, size: usize, user_data: UserData) -> hart_status {
    // Kept until the lock on the files is released: destroying the user data calls the program.
    let owner = Arc::new(user_data);
    guard(|| {
        let (files, name) = (get(files, "files")?, name.get("name")?);
        let bytes = text::bytes(data, size, "data")?;
        Ok(lock(files).insert_owner(name, Borrowed { bytes, _owner: owner.clone() })?)
    })
}

/// Bytes of the program, which are valid until its user data is destroyed.
struct Borrowed {
    bytes: &'static [u8],
    _owner: Arc<UserData>,
}

impl AsRef<[u8]> for Borrowed {
    fn as_ref(&self) -> &[u8] {
        self.bytes
    }
}

/// Adds a file of `size` bytes, read through `reader` before the call returns. `destroy` may be NULL; otherwise hart
/// calls it with `user_data` before the call returns. Returns `HART_ERR_IO` if the reader fails, `HART_ERR_MEMORY` if
/// there is no memory for the file, and `HART_ERR_REQUEST` like `hart_files_add`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_files_add_reader(
    files: *mut hart_files,
    name: *const c_char,
    size: u64,
    reader: hart_reader,
    user_data: *mut c_void,
    destroy: hart_destroy,
) -> hart_status {
    add_reader(files, Text::Terminated(name), size, reader, UserData::new(user_data, destroy))
}

/// Like `hart_files_add_reader`, for a name of `name_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_files_add_reader_n(
    files: *mut hart_files,
    name: *const c_char,
    name_size: usize,
    size: u64,
    reader: hart_reader,
    user_data: *mut c_void,
    destroy: hart_destroy,
) -> hart_status {
    add_reader(files, Text::Sized(name, name_size), size, reader, UserData::new(user_data, destroy))
}

unsafe fn add_reader(files: *mut hart_files, name: Text, size: u64, reader: hart_reader, user_data: UserData) -> hart_status {
    guard(|| {
        // Cloned first: the reader may free both.
        let (files, name) = (Arc::clone(get(files, "files")?), name.get("name")?.to_string());
        let reader = reader.ok_or_else(|| Failure::null("reader"))?;
        let size = usize::try_from(size)
            .map_err(|_| Failure::argument(format!("`size` of {name} is {size}, which is more than memory can hold")))?;
        let mut contents = buffer(&name, size)?;
        contents.resize(size, 0);
        for (index, part) in contents.chunks_mut(CHUNK).enumerate() {
            let offset = (index * CHUNK) as u64;
            let code = with_default_float_state(|| reader(user_data.pointer(), offset, part.as_mut_ptr(), part.len()));
            if code != 0 {
                let message = format!("{name}: the reader returned {code} for {} bytes at offset {offset}", part.len());
                return Err(Failure::new(HART_ERR_IO, message));
            }
        }
        Ok(lock(&files).insert(&name, contents)?)
    })
}

/// Returns an empty buffer with the capacity for a file.
fn buffer(name: &str, size: usize) -> Result<Vec<u8>, Failure> {
    let mut contents = Vec::new();
    contents.try_reserve_exact(size).map_err(|_| Failure::new(HART_ERR_MEMORY, format!("{name}: no memory for {size} bytes")))?;
    Ok(contents)
}
