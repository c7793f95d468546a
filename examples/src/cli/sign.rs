//! Signatures of image files: C2PA manifests, if the feature `c2pa` is on.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use hart_core::{Error, Image, ImageFormat, write_file};

#[cfg(feature = "c2pa")]
use super::c2pa::Signer;

/// Arguments that select the certificate with which image files are signed. There are none without the feature `c2pa`.
#[derive(Args, Clone, Debug, Default)]
pub struct SignArgs {
    #[cfg(feature = "c2pa")]
    /// Sign the files with a C2PA manifest; PEM file with the signing certificate, then those that certify it
    #[arg(long, value_name = "FILE", requires = "c2pa_key", help_heading = "Signing (C2PA)")]
    pub c2pa_certificate: Option<std::path::PathBuf>,
    #[cfg(feature = "c2pa")]
    /// Private key of the certificate: PEM file in PKCS#8, without a password
    #[arg(long, value_name = "FILE", requires = "c2pa_certificate", help_heading = "Signing (C2PA)")]
    pub c2pa_key: Option<std::path::PathBuf>,
    #[cfg(feature = "c2pa")]
    /// Signature algorithm [default: the one that fits the key; of an RSA key, ps256]
    #[arg(long, value_name = "es256|es384|es512|ps256|ps384|ps512|ed25519", requires = "c2pa_certificate")]
    #[arg(help_heading = "Signing (C2PA)", value_parser = super::c2pa::algorithm)]
    pub c2pa_algorithm: Option<super::c2pa::Algorithm>,
    #[cfg(feature = "c2pa")]
    /// Have each signature timestamped by this authority (RFC 3161), so that it outlives the certificate
    #[arg(long, value_name = "URL", requires = "c2pa_certificate", help_heading = "Signing (C2PA)")]
    pub c2pa_timestamp: Option<String>,
}

impl SignArgs {
    /// Opens the certificate and its key, and signs an image as a trial. Programs call it before they generate anything.
    ///
    /// # Errors
    ///
    /// Returns a message that names the file and says what to do.
    pub fn open(&self) -> Result<Signing, String> {
        #[cfg(feature = "c2pa")]
        if let (Some(certificate), Some(key)) = (&self.c2pa_certificate, &self.c2pa_key) {
            let signer = Signer::open(certificate, key, self.c2pa_algorithm, self.c2pa_timestamp.as_deref())?;
            return Ok(Signing { signer: Some(signer), original: None });
        }
        Ok(Signing::default())
    }
}

/// A signer without the feature `c2pa`, which does not exist.
#[cfg(not(feature = "c2pa"))]
#[derive(Clone, Debug)]
enum Signer {}

#[cfg(not(feature = "c2pa"))]
impl Signer {
    fn sign(&self, _file: &[u8], _format: ImageFormat, _image: &Image, _original: Option<&[u8]>) -> Result<Vec<u8>, String> {
        match *self {}
    }
}

/// How the files of a run are signed. By default they are not.
#[derive(Clone, Debug, Default)]
pub struct Signing {
    signer: Option<Signer>,
    /// File of the image that the run edits.
    original: Option<Arc<[u8]>>,
}

impl Signing {
    /// Returns whether files are signed.
    pub fn is_on(&self) -> bool {
        self.signer.is_some()
    }

    /// Names the image that is edited, by its file; `None` if the run edits no image. Manifests refer to it.
    #[must_use]
    pub fn edits(self, original: Option<Arc<[u8]>>) -> Self {
        let is_on = self.is_on();
        Self { original: original.filter(|_| is_on), ..self }
    }

    /// Encodes an image like [`Image::encode`], as a signed file if signing is on.
    ///
    /// # Errors
    ///
    /// Like [`Image::encode`], or [`Error::Request`] if the file can't be signed.
    pub fn encode(&self, image: &Image, format: ImageFormat) -> Result<Vec<u8>, Error> {
        let file = image.encode(format)?;
        let Some(signer) = &self.signer else { return Ok(file) };
        let signed = signer.sign(&file, format, image, self.original.as_deref());
        signed.map_err(|problem| Error::Request { field: "c2pa", problem })
    }

    /// Writes an image like [`Image::save`], as a signed file if signing is on.
    ///
    /// # Errors
    ///
    /// Like [`Image::save`], or [`Error::Request`] if the file can't be signed. Nothing is written then.
    pub fn save(&self, image: &Image, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        write_file(path, &self.encode(image, ImageFormat::from_path(path)?)?)
    }
}
