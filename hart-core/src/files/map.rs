//! Memory mapping of files.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

/// A file mapped for reading.
#[derive(Clone, Debug)]
pub(crate) struct Mapped(Arc<Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Mapped {
    /// Releases the memory of the pages read so far. They are read again, usually from the system's cache, when they are accessed next.
    /// Called after a whole file has been checked, so that unused parts do not stay in memory.
    #[allow(unsafe_code)]
    pub(crate) fn release(&self) {
        // SAFETY: the mapping is shared and read-only, so later accesses read the same file. A failure changes nothing.
        #[cfg(unix)]
        let _ = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

/// Maps a file for reading. Pages are read on first access and belong to the system's cache. Returns `None` if the platform maps no
/// files, as in wasm.
#[allow(unsafe_code)]
pub(crate) fn map_file(path: &Path) -> io::Result<Option<Mapped>> {
    let file = File::open(path)?;
    // SAFETY: sound as long as nobody changes or shortens the file while it is mapped. `OpenOptions::memory_map` makes that the
    // caller's responsibility.
    match unsafe { Mmap::map(&file) } {
        Ok(map) => Ok(Some(Mapped(Arc::new(map)))),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
        Err(error) => Err(error),
    }
}
