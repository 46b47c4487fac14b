//! The store's keys: the key-encryption key with the wrapped session keys, and the key that signs checkpoints.
//!
//! Private halves lie in `private/`, 0600, outside the store proper: a copied store holds public keys only, and
//! deleting one wrapped key shreds one session. Refused: key files others may read.
//! Invariant: a session's key is stored wrapped, once, before its `open` frame is acknowledged.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM, NONCE_LEN};
use aws_lc_rs::signature::Ed25519KeyPair;
use sidegate_policies::record::footer::public_key;
use sidegate_policies::record::frame::{hex, sha256};
use sidegate_policies::record::tlog::{origin, Checkpoint, VerifierKey};
use sidegate_policies::record::SessionKey;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::objects::Objects;
use super::RecordsError;

const KEK: &str = "private/kek";
const CHECKPOINT: &str = "private/checkpoint.key";
const SESSIONS: &str = "private/session-keys";

/// Both keys of the store.
pub(super) struct Keys {
    kek: LessSafeKey,
    checkpoint: Ed25519KeyPair,
    origin: String,
}

impl Keys {
    pub fn open(objects: &Objects, cluster: &str) -> Result<Keys, RecordsError> {
        let kek = secret(objects, KEK)?;
        let seed = secret(objects, CHECKPOINT)?;
        let checkpoint =
            Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).map_err(|_| RecordsError::Key("checkpoint key"))?;
        let origin = origin(cluster);
        let verifier = VerifierKey::new(&origin, public_key(&checkpoint));
        let name = format!("v1/{cluster}/keys/checkpoint-{}.vkey", hex(&verifier.id));
        objects.create(&name, format!("{verifier}\n").as_bytes())?;
        Ok(Keys {
            kek: aead(kek.as_ref())?,
            checkpoint,
            origin,
        })
    }

    /// Keeps a public key of the record ring.
    pub fn publish(&self, objects: &Objects, jwk: &serde_json::Value) -> Result<(), RecordsError> {
        let bytes = serde_json::to_vec(jwk).map_err(|_| RecordsError::Key("a JWK cannot be written"))?;
        let id = hex(sha256(&bytes).split_at(8).0);
        let name = format!("v1/{}/keys/record-{id}.jwk", objects.cluster());
        objects.create(&name, &bytes).map(drop)
    }

    pub fn sign(&self, mut checkpoint: Checkpoint) -> Result<String, RecordsError> {
        checkpoint.origin.clone_from(&self.origin);
        checkpoint
            .sign(&self.checkpoint)
            .ok_or(RecordsError::Key("the checkpoint could not be signed"))
    }

    /// Stores a session's key, wrapped. A second key for the same session is not taken.
    pub fn keep(&self, objects: &Objects, session: Uuid, key: &[u8; 32]) -> Result<(), RecordsError> {
        let name = format!("{SESSIONS}/{session}");
        if objects.path(&name).exists() {
            return Ok(());
        }
        let mut nonce = [0u8; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| RecordsError::Key("no random bytes"))?;
        let mut wrapped = key.to_vec();
        self.kek
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(*session.as_bytes()),
                &mut wrapped,
            )
            .map_err(|_| RecordsError::Key("a session key could not be wrapped"))?;
        match objects.create(&name, &[&nonce[..], &wrapped].concat()) {
            // Another replica was handed it in the same moment.
            Err(RecordsError::Differs(_)) => Ok(()),
            made => made.map(drop),
        }
    }
}

/// Reads wrapped session keys: for replay by whoever may read the private folder.
pub struct SessionKeys {
    root: PathBuf,
    kek: Option<LessSafeKey>,
}

impl SessionKeys {
    /// The keys beside the store at `root` (`<state>/records`). Without a private folder there are none.
    pub fn open(root: &Path) -> Result<SessionKeys, RecordsError> {
        let kek = match std::fs::read(root.join(KEK)) {
            Ok(bytes) => Some(aead(&Zeroizing::new(bytes))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(super::objects::failed(&root.join(KEK), error)),
        };
        Ok(SessionKeys {
            root: root.to_owned(),
            kek,
        })
    }

    /// The key of a session; `None` if it was shredded or never handed over.
    pub fn get(&self, session: Uuid) -> Option<SessionKey> {
        let bytes = std::fs::read(self.root.join(SESSIONS).join(session.to_string())).ok()?;
        let (nonce, wrapped) = bytes.split_first_chunk::<NONCE_LEN>()?;
        let mut buffer = Zeroizing::new(wrapped.to_vec());
        let plain = self
            .kek
            .as_ref()?
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(*session.as_bytes()),
                &mut buffer,
            )
            .ok()?;
        let key: [u8; 32] = (&*plain).try_into().ok()?;
        SessionKey::from_bytes(Zeroizing::new(key)).ok()
    }
}

fn aead(key: &[u8]) -> Result<LessSafeKey, RecordsError> {
    UnboundKey::new(&AES_256_GCM, key)
        .map(LessSafeKey::new)
        .map_err(|_| RecordsError::Key("the key-encryption key has a wrong length"))
}

/// 32 private bytes, made at first use.
fn secret(objects: &Objects, name: &str) -> Result<Zeroizing<Vec<u8>>, RecordsError> {
    if let Some(bytes) = objects.read(name)? {
        let path = objects.path(name);
        let mode = std::fs::symlink_metadata(&path)
            .map_err(|error| super::objects::failed(&path, error))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            return Err(RecordsError::Key("a private key file is readable by others"));
        }
        return Ok(Zeroizing::new(bytes));
    }
    let mut bytes = Zeroizing::new(vec![0u8; 32]);
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| RecordsError::Key("no random bytes"))?;
    match objects.create(name, &bytes) {
        // Another replica made it in the same moment.
        Err(RecordsError::Differs(_)) => secret(objects, name),
        made => made.map(|_| bytes),
    }
}
