//! SSH certificates that a Vault or OpenBao signs over a key of the sidecar: the private key never travels.
//!
//! Refuses a certificate that says anything but what was asked for: another key, other or no users, another address, an
//! extension more, a longer life. Invariant: what is leased opens the named users for [`LIFE`] at most, from the pod's own
//! addresses where these are known, without forwarding of any kind.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use serde::Deserialize;
use serde_json::json;
use sidegate_policies::api::target::{SshCertificateCredential, TokenCredential};
use sidegate_policies::api::TokenIssuer;
use sidegate_policies::presets::{url, Class};

use super::vault::{broken, encoded, Server};
use super::{Exchanges, Failure, Wanted};
use crate::issuer::Workload;

/// Seconds a certificate is good for.
pub const LIFE: u64 = 5 * 60;
/// Seconds that a Vault's clock, and its habit of dating back, may make of it.
const SLACK: u64 = 90;
/// The one sort of key that is certified.
const KEY: &str = "ssh-ed25519";
/// What a certificate over such a key calls itself.
const CERTIFICATE: &str = "ssh-ed25519-cert-v01@openssh.com";
/// A terminal: all that a certificate may allow beside the login.
const TERMINAL: &str = "permit-pty";
/// Where connections may come from.
const SOURCE: &str = "source-address";

/// What is wanted.
pub struct Signing {
    /// For whom.
    pub who: Workload,
    /// Thumbprint of the caller's key.
    pub thumbprint: String,
    /// Version of the caller's bundle.
    pub bundle: String,
    /// What the Target says.
    pub ssh: SshCertificateCredential,
    /// The sidecar's public key, in OpenSSH's form.
    pub public_key: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Whose login opens the Vault.
    pub issuer: TokenIssuer,
    /// The last certificate was refused by the Target: log in anew.
    pub anew: bool,
}

/// A certificate, as it was asked for.
pub struct Signed {
    /// In OpenSSH's form.
    pub certificate: String,
    /// Its end, seconds since 1970.
    pub until: u64,
}

#[derive(Deserialize)]
struct Answered {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    signed_key: String,
}

impl Exchanges {
    /// Has the caller's key certified.
    pub async fn sign(self: &Arc<Self>, signing: &Signing) -> Result<Signed, Failure> {
        let key = public_key(&signing.public_key)?;
        match self.signed(signing, &key, signing.anew).await {
            // A login that was kept may have been revoked there meanwhile: a new one, once.
            Err(failure) if failure.class == Class::Final && !signing.anew => self.signed(signing, &key, true).await,
            signed => signed,
        }
    }

    async fn signed(self: &Arc<Self>, signing: &Signing, key: &[u8], anew: bool) -> Result<Signed, Failure> {
        let ssh = &signing.ssh;
        // Shared by the leases of one Target and pod; the audience is a name here, and is not sent.
        let token = TokenCredential {
            issuer: ssh.issuer.clone(),
            audience: format!("{}/sign/{}", ssh.mount, ssh.role),
            scopes: Vec::new(),
            username: None,
        };
        let login = self.token(Wanted {
            who: &signing.who,
            thumbprint: &signing.thumbprint,
            bundle: &signing.bundle,
            token: &token,
            issuer: &signing.issuer,
            anew,
        });
        let login = login.await?;
        let sources = sources(&signing.addresses);
        let mut wanted = json!({
            "public_key": signing.public_key, "cert_type": "user", "ttl": format!("{LIFE}s"),
            "valid_principals": ssh.principals.join(","), "extensions": {TERMINAL: ""},
        });
        if let (false, Some(wanted)) = (sources.is_empty(), wanted.as_object_mut()) {
            wanted.insert("critical_options".to_owned(), json!({SOURCE: sources}));
        }
        let path = format!("{}/sign/{}", encoded(&ssh.mount), url::encoded(&ssh.role));
        let server = Server::of(&signing.issuer)?;
        let answered: Answered = self.read(&server, &login.token, &path, wanted).await?;
        let asked = Asked {
            key,
            principals: &ssh.principals,
            sources: &sources,
            now: u64::try_from(self.clock.now()).unwrap_or(0),
        };
        asked.judge(answered.data.signed_key.trim())
    }
}

/// A pod that has no address yet: a certificate for it could be used from anywhere.
pub fn nowhere() -> Failure {
    Failure::new(Class::Retry, "the pod has no address yet")
}

/// Addresses as OpenSSH lists them.
fn sources(addresses: &[IpAddr]) -> String {
    let addresses = addresses.iter().map(|address| match address {
        IpAddr::V4(v4) => format!("{v4}/32"),
        IpAddr::V6(v6) => format!("{v6}/128"),
    });
    addresses.collect::<Vec<_>>().join(",")
}

/// The 32 bytes of an Ed25519 key in OpenSSH's form.
fn public_key(text: &str) -> Result<Vec<u8>, Failure> {
    let wrong = || Failure::new(Class::Final, "the caller sent no ssh-ed25519 key");
    let blob = blob(text, KEY).ok_or_else(wrong)?;
    let mut wire = Wire(&blob);
    let (kind, key) = (wire.bytes(), wire.bytes());
    match (kind, key) {
        (Some(kind), Some(key)) if kind == KEY.as_bytes() && key.len() == 32 && wire.0.is_empty() => Ok(key.to_vec()),
        _ => Err(wrong()),
    }
}

/// What stands behind the name of its form; a comment may follow.
fn blob(text: &str, form: &str) -> Option<Vec<u8>> {
    let mut words = text.split(' ');
    let named = words.next() == Some(form);
    let blob = words.next().filter(|blob| blob.len() <= 8192)?;
    STANDARD.decode(blob).ok().filter(|_| named)
}

/// What a certificate must say.
struct Asked<'a> {
    key: &'a [u8],
    principals: &'a [String],
    sources: &'a str,
    now: u64,
}

/// What a certificate says (OpenSSH's PROTOCOL.certkeys).
struct Certificate {
    key: Vec<u8>,
    kind: u32,
    principals: Vec<String>,
    after: u64,
    before: u64,
    critical: BTreeMap<String, String>,
    extensions: BTreeMap<String, String>,
}

impl Asked<'_> {
    fn judge(&self, text: &str) -> Result<Signed, Failure> {
        let unreadable = || broken("no certificate over an ssh-ed25519 key");
        let blob = blob(text, CERTIFICATE).ok_or_else(unreadable)?;
        let said = Certificate::read(&blob).ok_or_else(unreadable)?;
        let mut named = said.principals.clone();
        let mut asked = self.principals.to_vec();
        named.sort();
        asked.sort();
        asked.dedup();
        let source = said.critical.get(SOURCE).map_or("", String::as_str);
        let wrong = if said.kind != 1 {
            Some("a certificate of a host")
        } else if said.key != self.key {
            Some("a certificate over another key")
        } else if named.is_empty() || named != asked {
            Some("a certificate for other users")
        } else if source != self.sources || said.critical.len() > usize::from(!self.sources.is_empty()) {
            Some("a certificate with other critical options")
        } else if said
            .extensions
            .iter()
            .any(|(name, value)| name != TERMINAL || !value.is_empty())
        {
            Some("a certificate that allows more than a terminal")
        } else if said.after > self.now.saturating_add(SLACK) || said.before <= self.now {
            Some("a certificate that is not good now")
        } else if said.before > self.now.saturating_add(LIFE).saturating_add(SLACK) {
            Some("a certificate that lives too long")
        } else {
            None
        };
        match wrong {
            Some(wrong) => Err(broken(wrong)),
            None => Ok(Signed {
                certificate: text.to_owned(),
                until: said.before.min(self.now.saturating_add(LIFE)),
            }),
        }
    }
}

impl Certificate {
    fn read(blob: &[u8]) -> Option<Certificate> {
        let mut wire = Wire(blob);
        if wire.bytes()? != CERTIFICATE.as_bytes() {
            return None;
        }
        let _nonce = wire.bytes()?;
        let key = wire.bytes()?.to_vec();
        let (_serial, kind, _id) = (wire.u64()?, wire.u32()?, wire.bytes()?);
        let mut names = Wire(wire.bytes()?);
        let mut principals = Vec::new();
        while !names.0.is_empty() {
            principals.push(names.text()?);
        }
        let (after, before) = (wire.u64()?, wire.u64()?);
        let (critical, extensions) = (options(wire.bytes()?, false)?, options(wire.bytes()?, true)?);
        let (_reserved, _authority, _signature) = (wire.bytes()?, wire.bytes()?, wire.bytes()?);
        wire.0.is_empty().then_some(Certificate {
            key,
            kind,
            principals,
            after,
            before,
            critical,
            extensions,
        })
    }
}

/// Names with data, each once: of a critical option, and of most extensions, the data is a text within it.
fn options(bytes: &[u8], flags: bool) -> Option<BTreeMap<String, String>> {
    let (mut wire, mut options) = (Wire(bytes), BTreeMap::new());
    while !wire.0.is_empty() {
        let name = wire.text()?;
        let mut data = Wire(wire.bytes()?);
        let value = match flags && data.0.is_empty() {
            true => String::new(),
            false => data.text()?,
        };
        if !data.0.is_empty() || options.insert(name, value).is_some() {
            return None;
        }
    }
    Some(options)
}

/// SSH's own way to write things down (RFC 4251, section 5).
struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.take(length)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }
}

#[cfg(test)]
#[path = "ssh_tests.rs"]
mod tests;
