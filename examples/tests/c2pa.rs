//! Signed C2PA manifests in the files of generate, edit and web. `examples/tests/c2pa.sh` makes the certificates and runs these tests.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use c2pa::validation_status::{
    ASSERTION_DATAHASH_MATCH, ASSERTION_DATAHASH_MISMATCH, CLAIM_SIGNATURE_VALIDATED, SIGNING_CREDENTIAL_TRUSTED,
    SIGNING_CREDENTIAL_UNTRUSTED, TIMESTAMP_VALIDATED,
};
use c2pa::{Context, Reader, Settings, ValidationState};
use client::Server;
use hart_core::Image;
use serde_json::{Value, json};
use support::{fails, names, run, succeeds};

#[allow(dead_code, reason = "shared with the tests of the server")]
#[path = "web/client.rs"]
mod client;
mod support;

const GENERATE: &str = env!("CARGO_BIN_EXE_generate");
const EDIT: &str = env!("CARGO_BIN_EXE_edit");
const BATCH: &str = env!("CARGO_BIN_EXE_batch");
const FORMATS: [(&str, &str); 3] = [("png", "image/png"), ("jpg", "image/jpeg"), ("webp", "image/webp")];

/// Returns the path of a certificate or key of the test.
fn file(name: &str) -> String {
    let folder = std::env::var("HART_TEST_CERTIFICATES").expect("run examples/tests/c2pa.sh, which makes the certificates");
    PathBuf::from(folder).join(name).into_os_string().into_string().unwrap()
}

/// Returns the arguments that sign with a certificate and a key.
fn signed_by(certificate: &str, key: &str) -> Vec<String> {
    vec!["--c2pa-certificate".into(), file(certificate), "--c2pa-key".into(), file(key)]
}

/// Runs a program with these arguments and those that sign.
fn sign(program: &str, folder: &Path, arguments: &[&str], signing: &[String]) {
    let arguments: Vec<&str> = arguments.iter().copied().chain(signing.iter().map(String::as_str)).collect();
    succeeds(program, folder, &arguments);
}

fn read(media_type: &str, bytes: &[u8]) -> Reader {
    Reader::from_context(Context::new()).with_stream(media_type, Cursor::new(bytes)).unwrap()
}

/// Returns the codes of a file's failures and successes.
fn codes(reader: &Reader) -> [Vec<String>; 2] {
    let results = reader.validation_results().unwrap().active_manifest().unwrap();
    [results.failure(), results.success()].map(|codes| codes.iter().map(|status| status.code().to_string()).collect())
}

/// Asserts that a file has a valid manifest by a certificate that nobody trusts, and returns its description.
fn assert_signed(media_type: &str, bytes: &[u8]) -> Value {
    let reader = read(media_type, bytes);
    assert_eq!(reader.validation_state(), ValidationState::Valid);
    let [failures, successes] = codes(&reader);
    assert_eq!(failures, [SIGNING_CREDENTIAL_UNTRUSTED]);
    for code in [CLAIM_SIGNATURE_VALIDATED, ASSERTION_DATAHASH_MATCH] {
        assert!(successes.iter().any(|found| found == code), "{code}: {successes:?}");
    }
    let store: Value = serde_json::from_str(&reader.json()).unwrap();
    store["manifests"][store["active_manifest"].as_str().unwrap()].clone()
}

/// Returns the actions of a manifest.
fn actions(manifest: &Value) -> Vec<Value> {
    let assertions = manifest["assertions"].as_array().unwrap();
    let actions = assertions.iter().find(|assertion| assertion["label"] == "c2pa.actions.v2").unwrap();
    actions["data"]["actions"].as_array().unwrap().clone()
}

fn assert_created(manifest: &Value) {
    let agent = json!({ "name": "hart", "version": env!("CARGO_PKG_VERSION") });
    let source = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";
    assert_eq!(actions(manifest), [json!({ "action": "c2pa.created", "digitalSourceType": source, "softwareAgent": agent })]);
    assert_eq!(manifest["claim_generator_info"][0]["name"], "hart");
}

fn assert_edited(manifest: &Value) {
    let actions = actions(manifest);
    assert_eq!((&actions[0]["action"], &actions[1]["action"], actions.len()), (&json!("c2pa.opened"), &json!("c2pa.edited"), 2));
    assert!(actions[1]["digitalSourceType"].as_str().unwrap().ends_with("/compositeWithTrainedAlgorithmicMedia"));
    assert_eq!(manifest["ingredients"][0]["relationship"], "parentOf");
}

#[test]
fn every_format_is_signed_and_keeps_its_marks() {
    let folder = tempfile::tempdir().unwrap();
    for (ending, media_type) in FORMATS {
        let [plain, signed, grid] = ["plain", "signed", "grid"].map(|name| format!("{name}.{ending}"));
        succeeds(GENERATE, folder.path(), &["a parrot", "-s", "3", "-o", &plain]);
        sign(
            GENERATE,
            folder.path(),
            &["a parrot", "-s", "3", "-o", &signed, "--grid", &grid],
            &signed_by("chain.pem", "es256.key"),
        );
        let [plain, signed, grid] = [plain, signed, grid].map(|name| folder.path().join(name));
        let (before, after) = (Image::open(plain).unwrap(), Image::open(&signed).unwrap());
        assert!(before == after && after.provenance.unwrap().generation.is_some(), "{ending}");
        assert_created(&assert_signed(media_type, &fs::read(&signed).unwrap()));
        assert_created(&assert_signed(media_type, &fs::read(&grid).unwrap()));

        // A changed pixel is found.
        let mut bytes = fs::read(&signed).unwrap();
        let pixels: &[u8] = match ending {
            "png" => b"IDAT",
            "jpg" => b"\xff\xda",
            _ => b"VP8L",
        };
        let start = bytes.windows(pixels.len()).rposition(|window| window == pixels).unwrap();
        bytes[start + 100] ^= 1;
        let changed = read(media_type, &bytes);
        assert_eq!(changed.validation_state(), ValidationState::Invalid);
        assert!(codes(&changed)[0].iter().any(|code| code == ASSERTION_DATAHASH_MISMATCH), "{:?}", codes(&changed));
    }
}

#[test]
fn every_kind_of_key_signs_and_a_trusted_root_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["es256", "es384", "ed25519", "ps256"] {
        sign(GENERATE, folder.path(), &["a parrot"], &signed_by(&format!("{name}.pem"), &format!("{name}.key")));
        let bytes = fs::read(folder.path().join("out.png")).unwrap();
        let manifest = assert_signed("image/png", &bytes);
        assert_eq!(manifest["signature_info"]["alg"].as_str().unwrap().to_lowercase(), name);
        let root = fs::read_to_string(file("root.pem")).unwrap();
        let settings = Settings::new().with_value("trust.user_anchors", root).unwrap();
        let context = Context::new().with_settings(settings).unwrap();
        let reader = Reader::from_context(context).with_stream("image/png", Cursor::new(&bytes)).unwrap();
        assert_eq!(reader.validation_state(), ValidationState::Trusted, "{name}");
        assert!(codes(&reader)[1].iter().any(|code| code == SIGNING_CREDENTIAL_TRUSTED));
    }
    let signing = [signed_by("ps256.pem", "ps256.key"), vec!["--c2pa-algorithm".into(), "PS384".into()]].concat();
    sign(GENERATE, folder.path(), &["a parrot"], &signing);
    let manifest = assert_signed("image/png", &fs::read(folder.path().join("out.png")).unwrap());
    assert_eq!(manifest["signature_info"]["alg"], "Ps384");
}

#[test]
fn an_edit_names_the_image_that_it_was_made_of() {
    let (folder, signing) = (tempfile::tempdir().unwrap(), signed_by("chain.pem", "es256.key"));
    let image = |name: &str| folder.path().join(name);
    sign(GENERATE, folder.path(), &["a red heart", "-o", "first.webp"], &signing);
    sign(EDIT, folder.path(), &["first.webp", "a sunflower", "--rectangle", "0,0,50,100", "-o", "edit.png"], &signing);
    let bytes = fs::read(image("edit.png")).unwrap();
    assert_edited(&assert_signed("image/png", &bytes));
    // The manifest of the first image is still there.
    assert_eq!(read("image/png", &bytes).manifests().len(), 2);
    // C2PA has no BMP files.
    let edited = Image::open(image("edit.png")).unwrap();
    let pixels = image::RgbImage::from_raw(64, 64, edited.pixels().to_vec()).unwrap();
    pixels.save(image("edit.bmp")).unwrap();
    sign(EDIT, folder.path(), &["edit.bmp", "a sunflower", "--vary", "2", "-o", "varied.jpg"], &signing);
    let manifest = assert_signed("image/jpeg", &fs::read(image("varied.jpg")).unwrap());
    let actions = actions(&manifest);
    assert_eq!((&actions[0]["action"], actions.len()), (&json!("c2pa.created"), 1));
    assert!(actions[0]["digitalSourceType"].as_str().unwrap().ends_with("/compositeWithTrainedAlgorithmicMedia"));
}

#[test]
fn every_image_of_a_batch_is_signed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("prompts.txt"), "a parrot\na house\n").unwrap();
    sign(BATCH, folder.path(), &["prompts.txt", "-o", "out"], &signed_by("chain.pem", "es256.key"));
    for number in [1, 2] {
        let bytes = fs::read(folder.path().join(format!("out/line-0000000{number}.png"))).unwrap();
        assert_created(&assert_signed("image/png", &bytes));
    }
}

#[test]
fn a_signature_can_be_timestamped() {
    let (folder, address) = (tempfile::tempdir().unwrap(), std::env::var("HART_TEST_TIMESTAMP").unwrap());
    let signing = |url: &str| [signed_by("chain.pem", "es256.key"), vec!["--c2pa-timestamp".into(), url.into()]].concat();
    sign(GENERATE, folder.path(), &["a parrot"], &signing(&address));
    let bytes = fs::read(folder.path().join("out.png")).unwrap();
    assert!(assert_signed("image/png", &bytes)["signature_info"]["time"].is_string());
    assert!(codes(&read("image/png", &bytes))[1].iter().any(|code| code == TIMESTAMP_VALIDATED));
    for (url, words) in [("http://127.0.0.1:1/", "name another authority"), ("https://localhost/", "begins with http://")] {
        let arguments = [vec!["x".to_string()], signing(url)].concat();
        fails(GENERATE, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), &["--c2pa-timestamp", url, words]);
    }
}

#[test]
fn wrong_certificates_are_refused_before_anything_is_generated() {
    for (certificate, key, words) in [
        ("missing.pem", "es256.key", ["--c2pa-certificate", "missing.pem", "No such file"]),
        ("es256.pem", "missing.key", ["--c2pa-key", "missing.key", "No such file"]),
        ("es256.key", "es256.key", ["--c2pa-certificate", "es256.key", "holds no certificate"]),
        ("es256.pem", "es256.pem", ["--c2pa-key", "es256.pem", "openssl pkcs8 -topk8"]),
        ("es256.pem", "sec1.key", ["--c2pa-key", "sec1.key", "openssl pkcs8 -topk8"]),
        ("es256.pem", "es384.key", ["--c2pa-key", "es384.key", "is not the key of"]),
        ("es256.pem", "root.key", ["--c2pa-key", "root.key", "is not the key of"]),
        ("root.pem", "root.key", ["--c2pa-certificate", "root.pem", "self-signed"]),
        ("expired.pem", "expired.key", ["--c2pa-certificate", "expired.pem", "has expired or is not valid yet: renew it"]),
        ("server.pem", "server.key", ["--c2pa-certificate", "server.pem", "key usage digitalSignature"]),
    ] {
        let signing = signed_by(certificate, key);
        for program in [GENERATE, client::WEB] {
            // The model does not exist either: the certificate is read first.
            let first = if program == GENERATE { vec!["x", "-m", "missing"] } else { vec!["--port", "0", "-m", "missing"] };
            fails(program, &first.into_iter().chain(signing.iter().map(String::as_str)).collect::<Vec<_>>(), &words);
        }
    }
    fails(GENERATE, &["x", "--c2pa-certificate", &file("es256.pem")], &["--c2pa-key"]);
    let folder = tempfile::tempdir().unwrap();
    let signing = [signed_by("es256.pem", "es256.key"), vec!["--c2pa-algorithm".into(), "ps256".into()]].concat();
    let output = run(GENERATE, folder.path(), &["x"].into_iter().chain(signing.iter().map(String::as_str)).collect::<Vec<_>>());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("does not fit the algorithm ps256") && names(folder.path()).is_empty(), "{error}");
}

#[test]
fn the_server_signs_every_file() {
    let signing = signed_by("chain.pem", "es256.key");
    let server = Server::start(&signing.iter().map(String::as_str).collect::<Vec<_>>());
    let decoded = |data: &Value| STANDARD.decode(data["b64_json"].as_str().unwrap()).unwrap();
    let body = json!({ "prompt": "a parrot", "n": 2, "size": "96x48", "output_format": "webp" });
    let answer = server.post("/v1/images/generations", &body.to_string()).json();
    for data in answer["data"].as_array().unwrap() {
        assert_created(&assert_signed("image/webp", &decoded(data)));
    }
    let answer = server.post("/v1/images/generations", &json!({ "prompt": "a house" }).to_string()).json();
    let first = decoded(&answer["data"][0]);
    let url = format!("data:image/png;base64,{}", STANDARD.encode(&first));
    let body = json!({ "prompt": "a crown", "images": [{ "image_url": url }] });
    let edited = decoded(&server.post("/v1/images/edits", &body.to_string()).json()["data"][0]);
    assert_edited(&assert_signed("image/png", &edited));
    let body = json!({ "prompt": "a crown", "init_images": [STANDARD.encode(&first)], "width": 64, "height": 64 });
    let answer = server.post("/sdapi/v1/img2img", &body.to_string()).json();
    let edited = STANDARD.decode(answer["images"][0].as_str().unwrap()).unwrap();
    assert_edited(&assert_signed("image/png", &edited));
    let id = server.submit(json!({ "prompt": "a parrot" }));
    assert_eq!(server.events(&id).last().unwrap().0, "done");
    assert_created(&assert_signed("image/png", &server.get(&format!("/api/images/{id}/0.png")).body));
}
