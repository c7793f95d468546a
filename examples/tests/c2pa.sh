#!/usr/bin/env bash
# Tests the feature `c2pa`: c2pa.sh [--no-build]. Makes certificates with openssl, signs files with generate, edit and web, and verifies
# them with the crate c2pa. Needs openssl and curl, and python3 for an authority of timestamps.
# Building the feature compiles burn again, with other features of its dependencies: a separate target folder keeps the other builds.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/c2pa}
features=hart-examples/images,hart-examples/web,hart-examples/c2pa
work=$(mktemp -d)
export HART_TEST_CERTIFICATES=$work
server=
trap '[ -z "$server" ] || kill "$server"; rm -r "$work"' EXIT

# A private key in PKCS#8: key FILE ALGORITHM [OPTION].
key() { openssl genpkey -algorithm "$2" ${3:+-pkeyopt "$3"} -out "$work/$1.key" 2>/dev/null; }
# A certificate by the test's root: certificate NAME EXTENSIONS DAYS.
certificate() {
  openssl req -new -key "$work/$1.key" -subj "/O=hart test/CN=$1" -out "$work/request"
  openssl x509 -req -in "$work/request" -CA "$work/root.pem" -CAkey "$work/root.key" -set_serial "0x$(openssl rand -hex 8)" \
    -days "$3" -extfile "$work/extensions" -extensions "$2" -out "$work/$1.pem" 2>/dev/null
}

cat >"$work/extensions" <<'END'
[signer]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = emailProtection
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, keyEncipherment
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[tsa]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
key root EC ec_paramgen_curve:P-256
openssl req -new -x509 -key "$work/root.key" -subj "/O=hart test/CN=root" -days 2 -addext "keyUsage = critical, keyCertSign" -out "$work/root.pem"
key es256 EC ec_paramgen_curve:P-256
key es384 EC ec_paramgen_curve:P-384
key ed25519 ED25519
key ps256 RSA rsa_keygen_bits:2048
key tsa EC ec_paramgen_curve:P-256
for name in es256 es384 ed25519 ps256; do certificate "$name" signer 2; done
certificate tsa tsa 2
cp "$work/es256.key" "$work/expired.key"
certificate expired signer -1
cp "$work/es256.key" "$work/server.key"
certificate server server 2
cat "$work/es256.pem" "$work/root.pem" >"$work/chain.pem"
openssl pkey -in "$work/es256.key" -traditional -out "$work/sec1.key"

cat >"$work/tsa.cnf" <<'END'
[tsa]
default_tsa = own
[own]
serial = serial
crypto_device = builtin
signer_cert = tsa.pem
signer_key = tsa.key
certs = root.pem
default_policy = 1.2.3.4
digests = sha256, sha384, sha512
signer_digest = sha256
ess_cert_id_alg = sha256
END
echo 01 >"$work/serial"
python3 examples/tests/c2pa_timestamp.py "$work" >"$work/port" &
server=$!
for _ in $(seq 50); do
  [ -s "$work/port" ] && break
  sleep 0.1
done
HART_TEST_TIMESTAMP=http://127.0.0.1:$(cat "$work/port")/
export HART_TEST_TIMESTAMP

[ "${1:-}" = --no-build ] || cargo build --release --package hart-examples --features "$features"
cargo test --release --package hart-examples --features "$features" --test c2pa
