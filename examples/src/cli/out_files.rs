//! The files that a run writes its images to.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use hart_core::{Error, Image};

use super::args::count;
use super::output;
use super::sign::Signing;

/// Stands for the number of an image in the pattern of file names.
const NUMBER: &str = "{n}";

/// Arguments that name the files of a run's images.
#[derive(Args, Clone, Debug)]
pub struct OutFiles {
    /// PNG, JPEG or WebP file; n in braces stands for the number of the image, from 0, also in the name of a folder, which is then
    /// created
    #[arg(id = "out", short, long = "out", value_name = "FILE", default_value = "out.png")]
    pub pattern: PathBuf,
    /// Number of the first image in the names of files; seeds do not depend on it
    #[arg(long, value_name = "NUMBER", default_value_t = 0, value_parser = count::<u32>)]
    pub first: u32,
    /// Keep the images whose files exist, and generate only the others
    #[arg(long, conflicts_with = "grid")]
    pub skip_existing: bool,
}

impl OutFiles {
    /// Returns the file of the image at `index` in the run.
    pub fn path(&self, index: usize) -> PathBuf {
        numbered(&self.pattern, self.first as usize + index)
    }

    /// Returns whether the image at `index` is kept because its file exists.
    pub fn is_kept(&self, index: usize) -> bool {
        self.skip_existing && self.path(index).exists()
    }

    /// Checks that the files of `count` images can be written. Programs call it before they start to compute.
    ///
    /// # Errors
    ///
    /// Returns a message that names `--out` and says what to do.
    pub fn check(&self, count: usize) -> Result<(), String> {
        let folder = unnumbered_folder(&self.pattern);
        output::check_is_folder("--out", &self.pattern, folder)?;
        (0..count).try_for_each(|index| output::check_image_file("--out", &self.path(index)))?;
        output::check_writable("--out", &self.pattern, folder)
    }

    /// Writes the image at `index` to its file, whose path it returns. Creates its folder if the pattern has a number there.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with the path, or like [`Signing::save`].
    pub fn save(&self, index: usize, image: &Image, signing: &Signing) -> Result<PathBuf, Error> {
        let path = self.path(index);
        let folder = output::folder_of(&path);
        if unnumbered_folder(&self.pattern) != output::folder_of(&self.pattern) {
            fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.into(), source })?;
        }
        signing.save(image, &path)?;
        Ok(path)
    }
}

/// Returns the file of image `number`.
///
/// `{n}` in the pattern is replaced by the number. Without it, images after number 0 get `-1`, `-2` and so on before the extension.
pub fn numbered(pattern: &Path, number: usize) -> PathBuf {
    if let Some(text) = pattern.to_str().filter(|text| text.contains(NUMBER)) {
        return PathBuf::from(text.replace(NUMBER, &number.to_string()));
    }
    if number == 0 {
        return pattern.to_path_buf();
    }
    let mut name = pattern.file_stem().unwrap_or_default().to_os_string();
    name.push(format!("-{number}"));
    if let Some(extension) = pattern.extension() {
        name.push(".");
        name.push(extension);
    }
    pattern.with_file_name(name)
}

/// Returns the innermost folder of a pattern that all images share.
fn unnumbered_folder(pattern: &Path) -> &Path {
    let shared = output::folder_of(pattern).ancestors().find(|folder| !folder.to_string_lossy().contains(NUMBER));
    shared.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pattern: PathBuf) -> OutFiles {
        OutFiles { pattern, first: 0, skip_existing: false }
    }

    #[test]
    fn images_get_distinct_file_names() {
        let name = |pattern: &str, number| numbered(Path::new(pattern), number).to_string_lossy().into_owned();
        assert_eq!(name("a/out.png", 0), "a/out.png");
        assert_eq!(name("a/out.png", 2), "a/out-2.png");
        assert_eq!(name("p{n}.png", 0), "p0.png");
        assert_eq!(name("f{n}/p{n}.png", 12), "f12/p12.png");
        assert_eq!(name("out", 1), "out-1");
        let continued = OutFiles { first: 7, ..files("p{n}.png".into()) };
        assert_eq!(continued.path(2), Path::new("p9.png"));
    }

    #[test]
    fn folders_with_a_number_are_created_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let image = Image::from_rgb(1, 1, vec![0; 3]).unwrap();
        let numbered = files(folder.path().join("f{n}/sub/x.png"));
        numbered.check(2).unwrap();
        assert_eq!(numbered.save(1, &image, &Signing::default()).unwrap(), folder.path().join("f1/sub/x.png"));
        assert!(folder.path().join("f1/sub/x.png").is_file() && !folder.path().join("f0").exists());
        let missing = files(folder.path().join("missing/f{n}/x.png"));
        assert!(missing.check(1).unwrap_err().contains("missing; create it first"));
        assert!(!folder.path().join("missing").exists());
        assert_eq!(unnumbered_folder(Path::new("x{n}/y.png")), Path::new("."));
    }

    #[test]
    fn every_file_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let names = files(folder.path().join("{n}.png"));
        fs::create_dir(folder.path().join("3.png")).unwrap();
        names.check(3).unwrap();
        assert!(names.check(4).unwrap_err().contains("3.png: is a folder"));
        fs::write(folder.path().join("1.png"), "").unwrap();
        assert!(!names.is_kept(1));
        let skipping = OutFiles { skip_existing: true, ..names };
        assert!(skipping.is_kept(1) && !skipping.is_kept(2));
        // A file in place of a folder.
        assert!(files(folder.path().join("{n}.png/x.png")).check(2).unwrap_err().contains("choose another name"));
    }
}
