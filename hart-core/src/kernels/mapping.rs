//! Files as memory.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Maps a file for reading. Its pages are read when they are first touched, and cost no memory of our own.
#[allow(unsafe_code)]
pub(crate) fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the mapping is private to this process and never written. As with every mapped file, another program that shortens
    // it while it is in use can end this one; `OpenOptions::memory_map(false)` reads the file instead.
    unsafe { Mmap::map(&file) }
}
