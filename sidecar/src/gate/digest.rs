//! The digest an approval binds to: HMAC-SHA-256 over length-prefixed fields, under the bundle's key.
//!
//! Every field carries its length, so no two different operations have the same input. A different byte, value,
//! setting, rule or cap is a different digest, and so a new request.

use aws_lc_rs::hmac;
use sidegate_policies::engine::Decision;

use super::Frame;
use crate::session::Session;

/// Says what is hashed, and in which form.
const DOMAIN: &[u8] = b"sidegate approval digest v1";

/// The digest of one operation.
pub fn digest<F: Frame>(key: &[u8], session: &Session, frame: &F, decision: &Decision) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let mut fields = Fields(hmac::Context::with_key(&key));
    let (subject, target) = (&session.subject, &session.target);
    fields.add(DOMAIN);
    fields.add(target.spec.protocol.as_str().as_bytes());
    fields.add(target.uid.as_bytes());
    fields.add(target.id.to_string().as_bytes());
    fields.add(subject.namespace.as_bytes());
    fields.add(subject.service_account.as_bytes());
    fields.add(subject.pod_uid.as_bytes());
    fields.add(&decision.rule_digest);
    fields.add(&decision.limits.rows.unwrap_or(-1).to_be_bytes());
    fields.add(&decision.limits.bytes.map_or(u64::MAX, |size| size.0).to_be_bytes());
    let own = frame.digest_fields();
    fields.add(&(own.len() as u64).to_be_bytes());
    for field in &own {
        fields.add(field);
    }
    let mut digest = [0u8; 32];
    for (to, from) in digest.iter_mut().zip(fields.0.sign().as_ref()) {
        *to = *from;
    }
    digest
}

struct Fields(hmac::Context);

impl Fields {
    fn add(&mut self, field: &[u8]) {
        self.0.update(&(field.len() as u64).to_be_bytes());
        self.0.update(field);
    }
}
