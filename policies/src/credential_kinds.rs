//! Each kind of credential in one table: the TLS it demands, whether the target looks at it again after the login, how a
//! session that lives by it is ended, and how long one lives where no policy says.
//!
//! The checker, the sidecar and `docs/credentials.md` read this table and hold no copy. Refuses nothing itself. Invariant:
//! every kind a Target can name has exactly one row.

use std::time::Duration;

use crate::api::target::{AwsIamCredential, AwsService, Credential};

/// Eight hours: the longest session of a kind that is looked at when it begins and never again.
const DAY_OF_WORK: Duration = Duration::from_secs(8 * 60 * 60);

/// The TLS a kind demands at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinimumTls {
    /// None by itself: `tls` and `weakLogin` of the Target decide what may be revealed.
    AsTheTargetSays,
    /// Chain and name verified, always: what is sent is the credential itself.
    Verified,
}

/// Whether the target looks at the credential again after the login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rechecked {
    /// It does not.
    AtLoginOnly,
    /// With every request.
    EachRequest,
    /// There is nothing to look at.
    Never,
}

/// How a session that lives by the credential is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The sidecar closes it.
    Closed,
    /// The sidecar closes it, and the broker has the user removed where it was made.
    Removed,
}

/// One kind of credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CredentialKind {
    /// Its key in a Target, and where it has several forms, which.
    pub name: &'static str,
    /// What the broker does for a lease, in a few words.
    pub source: &'static str,
    /// What the lease carries.
    pub carries: &'static str,
    /// The TLS it demands.
    pub tls: MinimumTls,
    /// Whether it is looked at again.
    pub rechecked: Rechecked,
    /// How a session is ended.
    pub ended: Ended,
    /// The longest session where no policy names a shorter or longer one; absent: no end by itself.
    pub session: Option<Duration>,
}

const SECRET: CredentialKind = CredentialKind {
    name: "secret",
    source: "reads one named Secret, anew for each lease",
    carries: "user and password, 15 min",
    tls: MinimumTls::AsTheTargetSays,
    rechecked: Rechecked::AtLoginOnly,
    ended: Ended::Closed,
    session: Some(DAY_OF_WORK),
};

const TOKEN: CredentialKind = CredentialKind {
    name: "token",
    source: "mints a token, or exchanges one at a TokenIssuer",
    carries: "a token, as long as it lives",
    tls: MinimumTls::Verified,
    rechecked: Rechecked::AtLoginOnly,
    ended: Ended::Closed,
    session: Some(DAY_OF_WORK),
};

const VAULT: CredentialKind = CredentialKind {
    name: "vault",
    source: "logs in to Vault or OpenBao and has a user made, under one child token per lease",
    carries: "user and password, 15 min, renewed up to the lease's `max_ttl`",
    tls: MinimumTls::AsTheTargetSays,
    rechecked: Rechecked::AtLoginOnly,
    ended: Ended::Removed,
    session: Some(DAY_OF_WORK),
};

const AWS_IAM: CredentialKind = CredentialKind {
    name: "awsIam",
    source: "assumes a role at AWS STS, and signs a `connect` request with the keys",
    carries: "that request as password, 15 min",
    tls: MinimumTls::Verified,
    rechecked: Rechecked::AtLoginOnly,
    ended: Ended::Closed,
    session: Some(DAY_OF_WORK),
};

const AWS_KEYS: CredentialKind = CredentialKind {
    name: "awsIam SigV4",
    source: "assumes a role at AWS STS",
    carries: "the keys of the role, to sign requests with, as long as STS gives them",
    tls: MinimumTls::Verified,
    rechecked: Rechecked::EachRequest,
    ended: Ended::Closed,
    session: Some(DAY_OF_WORK),
};

const SSH_CERTIFICATE: CredentialKind = CredentialKind {
    name: "sshCertificate",
    source: "logs in to Vault or OpenBao and has a key of the sidecar certified",
    carries: "a certificate for named users, 5 min; the key never leaves the sidecar",
    tls: MinimumTls::AsTheTargetSays,
    rechecked: Rechecked::AtLoginOnly,
    ended: Ended::Closed,
    session: Some(DAY_OF_WORK),
};

const NONE: CredentialKind = CredentialKind {
    name: "none",
    source: "nothing",
    carries: "at most a user's name",
    tls: MinimumTls::AsTheTargetSays,
    rechecked: Rechecked::Never,
    ended: Ended::Closed,
    session: None,
};

/// Every kind.
pub const KINDS: &[CredentialKind] = &[SECRET, TOKEN, VAULT, AWS_IAM, AWS_KEYS, SSH_CERTIFICATE, NONE];

/// The row of a credential.
pub fn kind(credential: &Credential) -> &'static CredentialKind {
    match credential {
        Credential::Secret(_) => &SECRET,
        Credential::Token(_) => &TOKEN,
        Credential::Vault(_) => &VAULT,
        Credential::AwsIam(AwsIamCredential { service, .. }) => match service {
            AwsService::Rds => &AWS_IAM,
            AwsService::SigV4 => &AWS_KEYS,
        },
        Credential::SshCertificate(_) => &SSH_CERTIFICATE,
        Credential::None(_) => &NONE,
    }
}

/// The table as part of the documentation, `docs/credentials.md`.
pub fn markdown() -> String {
    let mut table = String::from(
        "| credential | the broker | the lease carries | TLS | looked at after the login | a session is ended by | longest \
         session by default |\n|---|---|---|---|---|---|---|\n",
    );
    for kind in KINDS {
        let tls = match kind.tls {
            MinimumTls::AsTheTargetSays => "as `tls` and `weakLogin` say",
            MinimumTls::Verified => "verified, always",
        };
        let rechecked = match kind.rechecked {
            Rechecked::AtLoginOnly => "no",
            Rechecked::EachRequest => "with every request",
            Rechecked::Never => "there is nothing to look at",
        };
        let ended = match kind.ended {
            Ended::Closed => "closing it",
            Ended::Removed => "closing it, and removing the user",
        };
        let session = match kind.session {
            Some(longest) => format!("{} h", longest.as_secs().div_euclid(3600)),
            None => "none".to_owned(),
        };
        table.push_str(&format!(
            "| `{}` | {} | {} | {tls} | {rechecked} | {ended} | {session} |\n",
            kind.name, kind.source, kind.carries
        ));
    }
    table
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_of_credential_has_a_row() {
        let all = [
            json!({"secret": {"name": "s"}}),
            json!({"token": {"audience": "a"}}),
            json!({"vault": {"issuer": "v", "mount": "database", "role": "r"}}),
            json!({"awsIam": {"issuer": "aws", "roleArn": "a", "region": "r", "service": "Rds"}}),
            json!({"awsIam": {"issuer": "aws", "roleArn": "a", "region": "r", "service": "SigV4"}}),
            json!({"sshCertificate": {"issuer": "v", "mount": "ssh", "role": "r", "principals": ["deploy"]}}),
            json!({"none": {}}),
        ];
        let named: Vec<&str> = all
            .into_iter()
            .map(|value| kind(&serde_json::from_value(value).unwrap()).name)
            .collect();
        assert_eq!(named, KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>());
    }

    #[test]
    fn the_documentation_prints_this_table() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/credentials.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let (head, rest) = page.split_once("| credential |").unwrap();
        let tail = rest.split_once("\n\n").unwrap().1;
        let right = format!("{head}{}\n{tail}", markdown());
        if std::env::var_os("SIDEGATE_WRITE_DOCS").is_some() {
            std::fs::write(&path, &right).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            right,
            "SIDEGATE_WRITE_DOCS=1 writes it anew"
        );
    }
}
