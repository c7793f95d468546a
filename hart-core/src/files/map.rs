//! Files as memory.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

/// A file that is mapped for reading.
#[derive(Clone, Debug)]
pub(crate) struct Mapped(Arc<Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Mapped {
    /// Gives back the memory of pages that were read. They are read again, from the system's cache, when they are next touched: after
    /// all of a file was looked at, what no run needs doesn't stay.
    #[allow(unsafe_code)]
    pub(crate) fn let_go(&self) {
        // SAFETY: the mapping is shared and only read, so that what is read again is the file, as before. A refusal changes nothing.
        #[cfg(unix)]
        let _ = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

/// Maps a file for reading. Its pages are read when they are first touched, and cost no memory of our own.
#[allow(unsafe_code)]
pub(crate) fn map_file(path: &Path) -> io::Result<Mapped> {
    let file = File::open(path)?;
    // SAFETY: sound as long as nobody changes or shortens the file while it is mapped, which no program can check. That is the
    // caller's part, as `OpenOptions::memory_map` says; with `false` the file is read instead.
    unsafe { Mmap::map(&file) }.map(|map| Mapped(Arc::new(map)))
}
