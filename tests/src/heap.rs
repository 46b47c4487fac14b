//! What another process holds in its memory: searched as root reads it, for pieces of a secret in every form in which
//! one is likely to stand there.
//!
//! Refuses nothing. Searched is what the process can have written: writable mappings and those of no file. The invariant:
//! a piece is as short as whatever may be left of a copy of which a part was overwritten.

use std::collections::BTreeSet;
use std::fs::{read_to_string, File};
use std::io;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context, Result};
use aws_lc_rs::{hmac, pbkdf2};
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use base64::Engine as _;
use serde_json::Value;
use sidegate_policies::record::frame::hex;

use crate::postgres::Postgres;

/// Two passwords, each longer than a piece, and like nothing else.
pub const OLD: &str = "kq7Zx1Vw9TtB3mNe5RyU8cLp0sGd4HfJ6aQiWoXzEvCbMnKr";
/// The one that follows it.
pub const NEW: &str = "Pw3nYb8SxKe6Vm1JqRz5Tf0LhGd9UcAi7OoWtNsQyEuBkMjX";
/// Bytes of a piece.
const PIECE: usize = 16;
/// What stands around a piece says whose it is: so many bytes of it are shown.
const AROUND: usize = 100;
/// Read at once.
const CHUNK: usize = 1 << 20;

/// Something that must not be there, as it would stand there.
struct Needle {
    what: String,
    bytes: Vec<u8>,
}

/// Secrets to look for.
#[derive(Default)]
pub struct Needles(Vec<Needle>);

impl Needles {
    /// Adds a secret: its pieces as they are, in hex, and in both alphabets of base64 wherever they stand in a text.
    #[must_use]
    pub fn secret(mut self, name: &str, secret: &[u8]) -> Needles {
        for (number, piece) in secret.chunks(PIECE).filter(|piece| piece.len() == PIECE).enumerate() {
            let mut add = |form: &str, bytes: Vec<u8>| {
                let what = format!("{name}, piece {number}, {form}");
                self.0.push(Needle { what, bytes });
            };
            add("as it is", piece.to_vec());
            add("hex", hex(piece).into_bytes());
            for before in 0..3 {
                let shifted = [&vec![0; before][..], piece].concat();
                for (form, engine) in [("base64", &STANDARD_NO_PAD), ("base64url", &URL_SAFE_NO_PAD)] {
                    // Without the characters that depend on what stands before and after.
                    let text = engine.encode(&shifted).into_bytes();
                    let (first, last) = ((before * 8).div_ceil(6), shifted.len() * 8 / 6);
                    add(&format!("{form} at {before}"), text[first..last].to_vec());
                }
            }
        }
        self
    }

    /// A role's password, and what SCRAM (RFC 5802) makes of it: who has any of it logs in.
    ///
    /// # Errors
    /// The server keeps no verifier of SCRAM for the role.
    pub fn password(server: &Postgres, role: &str, password: &str) -> Result<Needles> {
        let stored = server.sql(
            "postgres",
            &format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'"),
        )?;
        // SCRAM-SHA-256$iterations:salt$keys
        let middle = stored.split('$').nth(1).and_then(|middle| middle.split_once(':'));
        let (count, salt) = middle.with_context(|| format!("no verifier of SCRAM: {stored}"))?;
        let (count, salt) = (count.parse()?, STANDARD.decode(salt)?);
        let mut salted = [0; 32];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            count,
            &salt,
            password.as_bytes(),
            &mut salted,
        );
        let key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &salted), b"Client Key");
        Ok(Needles::default()
            .secret("the password", password.as_bytes())
            .secret("the salted password", &salted)
            .secret("the client key", key.as_ref()))
    }

    /// Those of them that a process holds, with where and how often.
    ///
    /// # Errors
    /// Its memory cannot be read.
    pub fn held_by(&self, pid: u32) -> Result<Vec<String>> {
        let longest = self.0.iter().map(|needle| needle.bytes.len()).max().unwrap_or(1);
        let mut found = Vec::new();
        walk(pid, longest, |bytes, at, place| {
            self.search(bytes, at, place, &mut found)
        })?;
        Ok(found)
    }

    fn search(&self, bytes: &[u8], base: u64, place: &str, found: &mut Vec<String>) {
        let mut begins = [false; 256];
        for needle in &self.0 {
            begins[usize::from(needle.bytes[0])] = true;
        }
        let within = bytes.len().min(CHUNK);
        for (at, byte) in bytes[..within].iter().enumerate() {
            if !begins[usize::from(*byte)] {
                continue;
            }
            for needle in self.0.iter().filter(|needle| bytes[at..].starts_with(&needle.bytes)) {
                let around = &bytes[at.saturating_sub(AROUND)..(at + AROUND).min(bytes.len())];
                let (address, around) = (base + at as u64, String::from_utf8_lossy(around));
                found.push(format!("{} in {place} at {address:x}: {around:?}", needle.what));
            }
        }
    }
}

/// Shows all of a process's memory of its own, piece by piece: what begins in the first [`CHUNK`] of a piece, and so many bytes
/// more, the address, and what the mapping is called.
fn walk(pid: u32, longest: usize, mut see: impl FnMut(&[u8], u64, &str)) -> Result<()> {
    let maps = read_to_string(format!("/proc/{pid}/maps")).context("its mappings")?;
    let memory = File::open(format!("/proc/{pid}/mem")).context("its memory")?;
    let zeros = vec![0; CHUNK + longest];
    let mut buffer = vec![0; CHUNK + longest];
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else {
            continue;
        };
        let place = words.nth(3).unwrap_or("anonymous");
        let own = rights.contains('w') || !place.starts_with('/');
        if !rights.starts_with('r') || !own || place.starts_with("[v") {
            continue;
        }
        let (from, to) = range.split_once('-').context("a mapping")?;
        let (mut at, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        while at < to {
            let wanted = usize::try_from((to - at).min((CHUNK + longest) as u64))?;
            match memory.read_exact_at(&mut buffer[..wanted], at) {
                Ok(()) if buffer[..wanted] != zeros[..wanted] => see(&buffer[..wanted], at, place),
                Ok(()) => {}
                // Unmapped since, or never backed.
                Err(error) if matches!(error.raw_os_error(), Some(5 | 14)) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => return Err(error).with_context(|| format!("{at:x} {place}")),
            }
            at += CHUNK as u64;
        }
    }
    Ok(())
}

/// Whole signed tokens (RFC 7519) for this audience that stand in a process's memory.
///
/// # Errors
/// Its memory cannot be read.
pub fn bearers(pid: u32, audience: &str) -> Result<BTreeSet<String>> {
    const LONGEST: usize = 16 << 10;
    let mut found = BTreeSet::new();
    let part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    walk(pid, LONGEST, |bytes, _, _| {
        let within = bytes.len().min(CHUNK);
        for at in (0..within).filter(|at| bytes[*at..].starts_with(b"eyJ")) {
            let rest = &bytes[at..(at + LONGEST).min(bytes.len())];
            let length = rest.iter().position(|byte| !part(byte)).unwrap_or(rest.len());
            let text = String::from_utf8_lossy(&rest[..length]);
            let parts: Vec<&str> = text.split('.').collect();
            let [_, payload, signature] = parts[..] else {
                continue;
            };
            let claims = URL_SAFE_NO_PAD.decode(payload).ok();
            let claims: Option<Value> = claims.and_then(|claims| serde_json::from_slice(&claims).ok());
            // Of ES256, and nothing glued to its end.
            if signature.len() == 86 && claims.is_some_and(|claims| claims["aud"].to_string().contains(audience)) {
                found.insert(text.into_owned());
            }
        }
    })?;
    Ok(found)
}
