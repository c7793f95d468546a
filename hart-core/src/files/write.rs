//! Atomic writing of files.

use std::io::{self, Write};
use std::path::Path;

/// Writes a file atomically: to a temporary file in the same folder, which is then renamed. Follows links. Fails if the path exists and
/// is not a regular file, such as a device.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let target = match path.canonicalize() {
        Ok(target) if !target.is_file() => {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "exists and is not a regular file: choose another name"));
        }
        Ok(target) => target,
        Err(_) => path.to_path_buf(),
    };
    let path = target.as_path();
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    // Temporary files are private by default. This one gets the permissions of any new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.prefix(".hart-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}
