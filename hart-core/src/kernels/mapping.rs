//! Files as memory.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Maps a file for reading. Its pages are read when they are first touched, and cost no memory of our own.
#[allow(unsafe_code)]
pub(crate) fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: sound as long as nobody changes or shortens the file while it is mapped, which no program can check. That is the
    // caller's part, as `OpenOptions::memory_map` says; with `false` the file is read instead.
    unsafe { Mmap::map(&file) }
}
