//! MD5 as PostgreSQL's old password exchange needs it, and nothing else in Sidegate uses.
//!
//! The crypto library rightly does not offer it. It runs only where a Target says `weakLogin`.

use sidegate_policies::record::frame::hex;
use zeroize::Zeroizing;

const SHIFTS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];

/// `md5` and hex of md5(hex of md5(password, user), salt).
pub fn password_response(user: &str, password: &str, salt: [u8; 4]) -> Zeroizing<String> {
    let inner = Zeroizing::new([password.as_bytes(), user.as_bytes()].concat());
    let inner = Zeroizing::new(hex(&digest(&inner)));
    let outer = Zeroizing::new([inner.as_bytes(), &salt].concat());
    Zeroizing::new(format!("md5{}", hex(&digest(&outer))))
}

fn digest(message: &[u8]) -> [u8; 16] {
    let mut padded = Zeroizing::new(message.to_vec());
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    let bits = u64::try_from(message.len()).unwrap_or(u64::MAX).wrapping_mul(8);
    padded.extend_from_slice(&bits.to_le_bytes());
    let mut state = [0x6745_2301u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    for block in padded.chunks_exact(64) {
        let mut words = [0u32; 16];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = bytes.try_into().map_or(0, u32::from_le_bytes);
        }
        let before = state;
        for step in 0..64usize {
            state = round(state, &words, step);
        }
        for (new, old) in state.iter_mut().zip(before) {
            *new = new.wrapping_add(old);
        }
    }
    let mut out = [0u8; 16];
    for (slot, word) in out.chunks_exact_mut(4).zip(state) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    out
}

fn round([a, b, c, d]: [u32; 4], words: &[u32; 16], step: usize) -> [u32; 4] {
    let (mixed, word) = match step.wrapping_div(16) {
        0 => ((b & c) | (!b & d), step),
        1 => ((d & b) | (!d & c), step.wrapping_mul(5).wrapping_add(1)),
        2 => (b ^ c ^ d, step.wrapping_mul(3).wrapping_add(5)),
        _ => (c ^ (b | !d), step.wrapping_mul(7)),
    };
    let shift = SHIFTS
        .get(step.wrapping_div(16))
        .and_then(|row| row.get(step & 3))
        .copied()
        .unwrap_or(0);
    let word = words.get(word & 15).copied().unwrap_or(0);
    let sum = a.wrapping_add(mixed).wrapping_add(constant(step)).wrapping_add(word);
    [d, b.wrapping_add(sum.rotate_left(shift)), b, c]
}

/// floor(2^32 * |sin(step + 1)|), the constants of RFC 1321.
fn constant(step: usize) -> u32 {
    let angle = u32::try_from(step).map_or(0.0, |step| f64::from(step) + 1.0);
    let scaled = angle.sin().abs() * 4_294_967_296.0;
    // In range by construction: |sin| < 1.
    scaled as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_match_the_vectors_of_rfc_1321() {
        for (text, expected) in [
            ("", "d41d8cd98f00b204e9800998ecf8427e"),
            ("abc", "900150983cd24fb0d6963f7d28e17f72"),
            ("message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
            (
                "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
                "57edf4a22be3c955ac49da2e2107b67a",
            ),
        ] {
            assert_eq!(hex(&digest(text.as_bytes())), expected);
        }
    }
}
