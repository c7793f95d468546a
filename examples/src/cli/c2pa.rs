//! Signed C2PA manifests in image files.

use std::fmt;
use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use c2pa::crypto::cose::CertificateProfileError;
use c2pa::crypto::raw_signature::SigningAlg;
use c2pa::crypto::time_stamp::default_rfc3161_request;
use c2pa::http::{HttpResolverError, SyncHttpResolver, http};
use c2pa::validation_status::SIGNING_CREDENTIAL_UNTRUSTED;
use c2pa::{BoxedSigner, Builder, Context, Error, Reader, create_signer};
use hart_core::{DigitalSource, Image, ImageFormat};
use serde_json::{Value, json};

/// A signature algorithm.
pub type Algorithm = SigningAlg;

/// The algorithms by their names, in the order in which they are tried.
const ALGORITHMS: [(&str, Algorithm); 7] = [
    ("es256", SigningAlg::Es256),
    ("es384", SigningAlg::Es384),
    ("es512", SigningAlg::Es512),
    ("ed25519", SigningAlg::Ed25519),
    ("ps256", SigningAlg::Ps256),
    ("ps384", SigningAlg::Ps384),
    ("ps512", SigningAlg::Ps512),
];
/// Beginning of IPTC's digital source types.
const SOURCE_TYPES: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/";
/// Name by which an action refers to the image that was edited.
const ORIGINAL: &str = "original";

/// Parses the name of an algorithm.
///
/// # Errors
///
/// Returns a message with the valid names.
pub fn algorithm(name: &str) -> Result<Algorithm, String> {
    let found = ALGORITHMS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, algorithm)| *algorithm).ok_or_else(|| format!("expected {}", ALGORITHMS.map(|(name, _)| name).join(", ")))
}

/// A certificate and its key. Clones share them.
#[derive(Clone)]
pub struct Signer {
    signer: Arc<BoxedSigner>,
    context: Arc<Context>,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads a certificate and its key, and signs an image as a trial. `None` chooses the algorithm that fits the key. `timestamp` is the
    /// address of an authority that timestamps each signature.
    ///
    /// # Errors
    ///
    /// Returns a message that names the file and says what to do.
    pub fn open(certificate: &Path, key: &Path, algorithm: Option<Algorithm>, timestamp: Option<&str>) -> Result<Self, String> {
        let [certificate_name, key_name] =
            [("--c2pa-certificate", certificate), ("--c2pa-key", key)].map(|(flag, path)| format!("{flag} {}", path.display()));
        let certificates = fs::read(certificate).map_err(|error| format!("{certificate_name}: {error}"))?;
        let private_key = fs::read(key).map_err(|error| format!("{key_name}: {error}"))?;
        if !contains(&certificates, b"-----BEGIN CERTIFICATE-----") {
            return Err(format!(
                "{certificate_name}: holds no certificate: expected a PEM file with the signing certificate, then those that certify it"
            ));
        }
        if !contains(&private_key, b"-----BEGIN PRIVATE KEY-----") {
            return Err(format!(
                "{key_name}: holds no key in PKCS#8: convert it with `openssl pkcs8 -topk8 -nocrypt -in {} -out key.pem`",
                key.display()
            ));
        }
        let algorithms = ALGORITHMS.iter().map(|(_, known)| *known).filter(|known| algorithm.is_none_or(|wanted| wanted == *known));
        let signers = algorithms.map(|algorithm| create_signer::from_keys(&certificates, &private_key, algorithm, None));
        let signer =
            signers.reduce(|found, next| found.or(next)).expect("there are algorithms").map_err(|error| match algorithm {
                Some(algorithm) => {
                    format!("{key_name}: does not fit the algorithm {algorithm} ({error}): leave out --c2pa-algorithm")
                }
                None => format!(
                    "{key_name}: is of no kind that C2PA allows: expected P-256, P-384, P-521, Ed25519, or RSA with 2048 bits"
                ),
            })?;
        let signer = match timestamp {
            None => signer,
            // Timestamps are signed themselves. A library for TLS would need a compiler for C.
            Some(url) if !url.starts_with("http://") => {
                return Err(format!("--c2pa-timestamp {url}: expected an address that begins with http://, as authorities have"));
            }
            Some(url) => {
                Box::new(Timestamped { signer, url: url.into(), context: Context::new().with_resolver(Client(ureq::agent())) })
            }
        };
        // Without a client, so that reading a file never loads anything.
        let signer = Self { signer: Arc::new(signer), context: Context::new().into_shared() };
        let trial = Image::from_rgb(1, 1, vec![0; 3]).and_then(|image| Ok((image.encode(ImageFormat::Png)?, image)));
        let (file, image) = trial.map_err(|error| error.to_string())?;
        signer.try_sign(&file, ImageFormat::Png, &image, None).map_err(|failure| match failure {
            Failure::Certificate(CertificateProfileError::CertificateNotValidAtTime) => {
                format!("{certificate_name}: the certificate has expired or is not valid yet: renew it, or set the clock")
            }
            Failure::Certificate(CertificateProfileError::SelfSignedCertificate) => format!(
                "{certificate_name}: the first certificate is self-signed: expected the signing certificate first, signed by another one"
            ),
            Failure::Certificate(error) => format!(
                "{certificate_name}: {error}: expected an X.509 v3 certificate with the key usage digitalSignature and an extended key \
                 usage, such as emailProtection"
            ),
            Failure::WrongKey => {
                format!("{key_name}: is not the key of {}: name the key for which the certificate was issued", certificate.display())
            }
            Failure::Timestamp(problem) => {
                format!("--c2pa-timestamp {}: {problem}; leave it out, or name another authority", timestamp.unwrap_or_default())
            }
            Failure::Other(problem) => format!("{certificate_name}: {problem}"),
        })?;
        Ok(signer)
    }

    /// Adds a signed manifest to the file of an image, and verifies it. `original` is the file of the image that was edited.
    ///
    /// # Errors
    ///
    /// Returns a message if the file can't be signed.
    pub fn sign(&self, file: &[u8], format: ImageFormat, image: &Image, original: Option<&[u8]>) -> Result<Vec<u8>, String> {
        self.try_sign(file, format, image, original).map_err(|failure| format!("the file can't be signed: {failure}"))
    }

    fn try_sign(&self, file: &[u8], format: ImageFormat, image: &Image, original: Option<&[u8]>) -> Result<Vec<u8>, Failure> {
        let media_type = format.media_type();
        let source = image.digital_source().unwrap_or(DigitalSource::Generated);
        let original = original.filter(|_| source == DigitalSource::Composite).and_then(|file| Some((file, media_type_of(file)?)));
        let builder = |has_original: bool| {
            let definition = json!({
                "claim_generator_info": [agent()],
                "assertions": [{ "label": "c2pa.actions.v2", "data": { "actions": actions(source, has_original) } }],
            });
            Builder::from_shared_context(&self.context).with_definition(definition.to_string())
        };
        let with_original = |(file, media_type): (&[u8], &str)| {
            let (mut builder, ingredient) = (builder(true)?, json!({ "relationship": "parentOf", "label": ORIGINAL }));
            builder.add_ingredient_from_stream(ingredient.to_string(), media_type, &mut Cursor::new(file))?;
            Ok::<_, Error>(builder)
        };
        // hart reads some damaged files that C2PA can't refer to.
        let mut builder = original.and_then(|original| with_original(original).ok()).map_or_else(|| builder(false), Ok)?;
        let mut signed = Cursor::new(Vec::new());
        builder.sign(self.signer.as_ref().as_ref(), media_type, &mut Cursor::new(file), &mut signed)?;
        let signed = signed.into_inner();
        self.verify(&signed, media_type)?;
        Ok(signed)
    }

    /// Verifies a signed file. That nobody on this machine trusts the certificate is no failure.
    fn verify(&self, file: &[u8], media_type: &str) -> Result<(), Failure> {
        let reader = Reader::from_shared_context(&self.context).with_stream(media_type, &mut Cursor::new(file))?;
        let statuses = reader.validation_results().and_then(|results| results.active_manifest()).map(|codes| codes.failure());
        let statuses = statuses.ok_or_else(|| Failure::Other("the signed file has no manifest".into()))?;
        match statuses.iter().find(|status| status.code() != SIGNING_CREDENTIAL_UNTRUSTED) {
            None => Ok(()),
            Some(status) if status.code() == c2pa::validation_status::CLAIM_SIGNATURE_MISMATCH => Err(Failure::WrongKey),
            Some(status) => Err(Failure::Other(status.explanation().unwrap_or(status.code()).to_string())),
        }
    }
}

/// A reason why a file can't be signed.
enum Failure {
    /// The certificate can't be used for C2PA.
    Certificate(CertificateProfileError),
    /// The key is not that of the certificate.
    WrongKey,
    /// The authority of timestamps does not answer as expected.
    Timestamp(String),
    /// Any other reason.
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(error) => error.fmt(f),
            Self::WrongKey => f.write_str("the key is not that of the certificate"),
            Self::Timestamp(problem) | Self::Other(problem) => f.write_str(problem),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::CertificateProfileError(error) => Self::Certificate(error),
            Error::TimeStampError(error) => Self::Timestamp(error.to_string()),
            error => Self::Other(error.to_string()),
        }
    }
}

/// A signer whose signatures an authority timestamps.
struct Timestamped {
    signer: BoxedSigner,
    url: String,
    context: Context,
}

impl c2pa::Signer for Timestamped {
    fn sign(&self, data: &[u8]) -> c2pa::Result<Vec<u8>> {
        self.signer.sign(data)
    }

    fn alg(&self) -> SigningAlg {
        self.signer.alg()
    }

    fn certs(&self) -> c2pa::Result<Vec<Vec<u8>>> {
        self.signer.certs()
    }

    fn reserve_size(&self) -> usize {
        self.signer.reserve_size()
    }

    fn time_authority_url(&self) -> Option<String> {
        Some(self.url.clone())
    }

    // Without this, the library uses an HTTP client that is not compiled in.
    fn send_timestamp_request(&self, message: &[u8]) -> Option<c2pa::Result<Vec<u8>>> {
        let request = |body: Vec<u8>| Ok(default_rfc3161_request(&self.url, None, &body, message, &self.context)?);
        Some(self.timestamp_request_body(message).and_then(request))
    }
}

/// The HTTP client that requests timestamps.
struct Client(ureq::Agent);

impl SyncHttpResolver for Client {
    fn http_resolve(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Box<dyn Read>>, HttpResolverError> {
        let response = self.0.run(request).map_err(|error| HttpResolverError::Other(Box::new(error)))?;
        Ok(response.map(|body| Box::new(body.into_reader()) as Box<dyn Read>))
    }
}

/// Returns the name and the version of this program.
fn agent() -> Value {
    json!({ "name": "hart", "version": env!("CARGO_PKG_VERSION") })
}

/// Returns the actions by which an image was made.
fn actions(source: DigitalSource, has_original: bool) -> Value {
    let name = match source {
        DigitalSource::Composite => "compositeWithTrainedAlgorithmicMedia",
        _ => "trainedAlgorithmicMedia",
    };
    let action = if has_original { "c2pa.edited" } else { "c2pa.created" };
    let own = json!({ "action": action, "digitalSourceType": format!("{SOURCE_TYPES}{name}"), "softwareAgent": agent() });
    let opened = json!({ "action": "c2pa.opened", "parameters": { "ingredientIds": [ORIGINAL] } });
    if has_original { json!([opened, own]) } else { json!([own]) }
}

/// Returns the media type of an image file that a manifest can refer to.
fn media_type_of(file: &[u8]) -> Option<&'static str> {
    match file {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        _ => None,
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
