//! Hashes of ids and requests.

use sha2::{Digest, Sha256};

/// Returns the first 8 bytes of the SHA-256 as a big-endian number. Two of a million texts have the same one with a probability of 3 in
/// a hundred million.
pub fn hash(bytes: &[u8]) -> u64 {
    Sha256::digest(bytes).iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}
