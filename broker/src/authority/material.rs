//! Certificates and their keys: an authority, the leaf under it, and the certificates that lead older authorities to it.
//!
//! Pure: what should be at a moment follows from what is. Refuses a set in which key and certificate do not match. The
//! invariants: who pinned one of the last authorities can still build a chain to the leaf; nothing is forgotten before
//! its end.

use std::net::IpAddr;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
pub use sidegate_cluster::certificate::CertificateError as MaterialError;
use sidegate_cluster::certificate::{authority_params, der, validity, Pair, DAY};
use sidegate_policies::seal::USAGE;
use zeroize::Zeroizing;

/// Life of a leaf, seconds.
const LEAF: i64 = 30 * DAY;
/// Life of an authority, seconds.
const AUTHORITY: i64 = 10 * 365 * DAY;
/// So many older authorities lead to the present one; it is also how many certificates may stand between them.
const CROSSED: u8 = 3;
/// A new authority is published so long after it was made, seconds: by then every replica serves under it, or has
/// stopped signing.
const PUBLISH_AFTER: i64 = 120;
/// Authorities on files were all made under this name.
const FILE_NAME: &str = "Sidegate broker CA";

/// An authority that was replaced, as seen from those who pinned it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Older {
    /// Its own certificate, PEM.
    certificate: String,
    /// Its successor's name and key, signed by it, PEM.
    cross: String,
    /// Its end, seconds since 1970.
    until: i64,
}

/// All of it. No Debug: it holds private keys.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Material {
    version: u32,
    authority: Pair,
    leaf: Pair,
    /// What the leaf is for.
    names: Vec<String>,
    /// Newest first.
    older: Vec<Older>,
}

/// What a key for seals is certified with. No Debug: it holds the authority's key.
pub struct Sealing {
    /// When it counts.
    pub params: CertificateParams,
    /// Who signs.
    pub authority: Issuer<'static, KeyPair>,
    /// The certificates between the authority and those that sidecars have pinned.
    pub above: Vec<CertificateDer<'static>>,
}

/// A fresh P-256 key, PKCS #8.
pub fn new_key() -> Result<Zeroizing<Vec<u8>>, MaterialError> {
    Ok(Zeroizing::new(KeyPair::generate()?.serialize_der()))
}

/// The certificate of an authority that lies in files, PEM.
pub fn file_authority(key: &[u8], now: i64) -> Result<String, MaterialError> {
    let mut params = authority_params(FILE_NAME, CROSSED);
    validity(&mut params, now, now.saturating_add(AUTHORITY));
    Ok(params.self_signed(&KeyPair::try_from(key)?)?.pem())
}

impl Material {
    /// A new authority and a leaf for these names. `now` in seconds.
    pub fn first(names: &[String], now: i64) -> Result<Self, MaterialError> {
        let authority = authority(now)?;
        let leaf = leaf(&authority, names, now)?;
        Ok(Material {
            version: 1,
            authority,
            leaf,
            names: wanted(names),
            older: Vec::new(),
        })
    }

    /// A leaf under an authority in files.
    pub fn under(
        key: Zeroizing<Vec<u8>>,
        certificate: String,
        names: &[String],
        now: i64,
    ) -> Result<Self, MaterialError> {
        let authority = Pair::given(FILE_NAME, &key, certificate, now, i64::MAX);
        let leaf = leaf(&authority, names, now)?;
        Ok(Material {
            version: 1,
            authority,
            leaf,
            names: wanted(names),
            older: Vec::new(),
        })
    }

    /// Reads what [`Material::print`] wrote.
    pub fn parse(bytes: &[u8]) -> Result<Self, MaterialError> {
        let read: Self = serde_json::from_slice(bytes).map_err(|_| MaterialError::Damaged("not its JSON"))?;
        if read.version != 1 {
            return Err(MaterialError::Damaged("another version"));
        }
        Ok(read)
    }

    /// The whole set as JSON.
    pub fn print(&self) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
        let text = serde_json::to_vec(self).map_err(|_| MaterialError::Damaged("it cannot be written"))?;
        Ok(Zeroizing::new(text))
    }

    /// What should be at `now`: a leaf renewed after two thirds of its life or for other names, an authority
    /// replaced after two thirds of its own where it may be. `None`: as it is.
    pub fn due(&self, names: &[String], may_roll: bool, now: i64) -> Result<Option<Self>, MaterialError> {
        if may_roll && self.authority.is_due(now) {
            return self.rolled(names, now).map(Some);
        }
        if !self.leaf.is_due(now) && self.names == wanted(names) {
            return Ok(None);
        }
        Ok(Some(Material {
            leaf: leaf(&self.authority, names, now)?,
            names: wanted(names),
            ..self.clone()
        }))
    }

    /// A new authority, signed by itself and by the one before, with a leaf of its own.
    pub fn rolled(&self, names: &[String], now: i64) -> Result<Self, MaterialError> {
        let next = authority(now)?;
        let mut params = authority_params(&next.name, CROSSED);
        validity(&mut params, now, next.until.min(self.authority.until));
        // What a verifier demands of the end of a chain, some demand of its middle too: handshakes and seals (test
        // `a_seal_leads_to_every_older_authority`).
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::Other(USAGE.to_vec()),
        ];
        let key = next.key_pair()?;
        let cross = params.signed_by(&key, &self.authority.issuer()?)?.pem();
        let mut older = vec![Older {
            certificate: self.authority.certificate.clone(),
            cross,
            until: self.authority.until,
        }];
        older.extend(self.older.iter().filter(|older| older.until > now).cloned());
        older.truncate(CROSSED.into());
        Ok(Material {
            version: 1,
            leaf: leaf(&next, names, now)?,
            authority: next,
            names: wanted(names),
            older,
        })
    }

    /// What a handshake needs: the leaf, then what leads older authorities to it.
    pub fn certified(&self) -> Result<CertifiedKey, MaterialError> {
        let crossed: Result<Vec<_>, _> = self.older.iter().map(|older| der(&older.cross)).collect();
        der(&self.authority.certificate)?;
        self.authority.key_pair()?;
        self.leaf.certified(crossed?)
    }

    /// What a key for seals is certified with: for as long as the leaf, by the authority, and below these.
    pub fn sealing(&self) -> Result<Sealing, MaterialError> {
        let above: Vec<_> = self
            .older
            .iter()
            .map(|older| der(&older.cross))
            .collect::<Result<_, _>>()?;
        let mut params = CertificateParams::default();
        validity(&mut params, self.leaf.made, self.leaf.until);
        Ok(Sealing {
            params,
            authority: self.authority.issuer()?,
            above,
        })
    }

    /// The authority's certificate, PEM.
    pub fn authority_pem(&self) -> &str {
        &self.authority.certificate
    }

    /// What a pod made now should pin: a new authority only once every replica serves under it.
    pub fn published_pem(&self, now: i64) -> &str {
        match self.older.first() {
            Some(older) if now < self.authority.made.saturating_add(PUBLISH_AFTER) => &older.certificate,
            _ => &self.authority.certificate,
        }
    }

    /// Name and end of the authority.
    pub fn authority(&self) -> (String, i64) {
        (self.authority.name.clone(), self.authority.until)
    }

    /// When the leaf ends, seconds since 1970.
    pub fn leaf_until(&self) -> i64 {
        self.leaf.until
    }
}

/// A new authority; its successors stand below it.
fn authority(now: i64) -> Result<Pair, MaterialError> {
    Pair::authority(FILE_NAME, CROSSED, now, AUTHORITY)
}

fn leaf(authority: &Pair, names: &[String], now: i64) -> Result<Pair, MaterialError> {
    authority.leaf("Sidegate broker", wanted(names), now, LEAF)
}

fn wanted(names: &[String]) -> Vec<String> {
    let mut all = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let specified = |name: &&String| name.parse::<IpAddr>().map_or(true, |address| !address.is_unspecified());
    all.extend(names.iter().filter(specified).cloned());
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
#[path = "material_tests.rs"]
mod tests;
