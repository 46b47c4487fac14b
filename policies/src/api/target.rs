//! `Target`: a thing an agent may reach, how Sidegate logs in there, and where it appears on localhost.

use serde::{Deserialize, Serialize};

use super::meta::{LabelSelector, Object};

/// A Target object.
pub type Target = Object<TargetSpec>;

impl Target {
    /// `namespace/name` of the Secret it logs in with, if that is what it does.
    pub fn secret_name(&self) -> Option<String> {
        let home = self.metadata.namespace.as_deref().unwrap_or_default();
        match &self.spec.credential {
            Credential::Secret(secret) => Some(format!("{home}/{}", secret.name)),
            _ => None,
        }
    }
}

/// What may be reached, how to log in, and where it appears on localhost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(kube::CustomResource, schemars::JsonSchema))]
#[cfg_attr(
    feature = "crd",
    kube(
        group = "sidegate.dev",
        version = "v1alpha1",
        kind = "Target",
        root = "TargetResource",
        namespaced,
        shortname = "tgt",
        category = "sidegate"
    )
)]
pub struct TargetSpec {
    /// The protocol spoken at the address. It decides which matchers, masks and credentials make sense.
    pub protocol: TargetProtocol,
    /// Where the target is, as the sidecar dials it.
    pub address: Address,
    /// How the connection to the target is protected. Default: VerifyFull against the system's roots.
    #[serde(default)]
    pub tls: Tls,
    /// The one field that allows a weaker login. Refuse (default): credentials cross verified TLS or SCRAM only.
    /// InsideTLS: md5 and cleartext passwords within verified TLS. Anywhere: also without TLS. Every record says so.
    #[serde(default)]
    pub weak_login: WeakLogin,
    /// Databases the agent may name at login. Empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<String>,
    /// How Sidegate logs in: exactly one of `secret`, `token`, `vault`, `awsIam`, `sshCertificate`, `none`.
    pub credential: Credential,
    /// Where the target appears in the agent's network.
    pub listen: Listen,
    /// Variables set in agent containers unless they already set them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Whose pods may refer to this Target. Absent: pods of the Target's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_namespaces: Option<AllowedNamespaces>,
    /// How sessions are recorded.
    #[serde(default)]
    pub recording: Recording,
    /// TCP only: protocols Sidegate understands that this raw Target is nevertheless allowed to carry unread.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carries: Vec<CarriedProtocol>,
}

/// Where a Target leads, and what it is logged in to with. What is leased is for one place: another object, address,
/// credential or TLS setting under the same name is another one.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Place<'a> {
    uid: &'a str,
    protocol: TargetProtocol,
    address: &'a Address,
    credential: &'a Credential,
    tls: &'a Tls,
}

impl TargetSpec {
    /// The place that the object of this UID describes.
    pub fn place<'a>(&'a self, uid: &'a str) -> Place<'a> {
        Place {
            uid,
            protocol: self.protocol,
            address: &self.address,
            credential: &self.credential,
            tls: &self.tls,
        }
    }
}

impl Place<'_> {
    /// The word for it between sidecar and broker: SHA-256, hex. Nothing where it cannot be written down, which is no place.
    pub fn digest(&self) -> Option<String> {
        serde_json::to_vec(self).ok().map(|body| crate::bundle::version(&body))
    }
}

/// The protocol of a Target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum TargetProtocol {
    /// PostgreSQL, protocol 3.0 and 3.2, servers 12 to 18.
    Postgres,
    /// A raw TCP stream: connect is allowed or denied, bytes are counted and recorded, nothing is understood.
    #[serde(rename = "TCP")]
    Tcp,
}

impl TargetProtocol {
    /// The value as written in YAML.
    pub fn as_str(self) -> &'static str {
        match self {
            TargetProtocol::Postgres => "Postgres",
            TargetProtocol::Tcp => "TCP",
        }
    }
}

/// Host and port of the target.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Address {
    /// A DNS name, or an IP literal in strict form. Names are resolved by the sidecar's own resolver.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 253)))]
    pub host: String,
    /// TCP port, 1 to 65535.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 65535)))]
    pub port: i32,
}

/// TLS towards the target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Tls {
    /// VerifyFull (default) checks chain and name. Disabled: no TLS, so only logins that reveal nothing (SCRAM).
    pub mode: TlsMode,
    /// The name the certificate must carry, where it differs from `address.host`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// The authorities to trust. Absent: the system's roots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<CaBundle>,
}

/// Whether TLS is used towards the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum TlsMode {
    /// TLS with certificate chain and name verified. Never falls back.
    #[default]
    VerifyFull,
    /// No TLS.
    Disabled,
}

/// Where the trusted authorities come from: exactly one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum CaBundle {
    /// A key of a ConfigMap in the Target's namespace holding PEM certificates.
    ConfigMap(KeyRef),
    /// PEM certificates in place.
    Inline(String),
}

/// A key of a named object in the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct KeyRef {
    /// The object's name.
    pub name: String,
    /// The key within it.
    pub key: String,
}

/// What a login may reveal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum WeakLogin {
    /// SCRAM anywhere, tokens within verified TLS; md5 and cleartext passwords never.
    #[default]
    Refuse,
    /// Also md5 and cleartext passwords within verified TLS.
    #[serde(rename = "InsideTLS")]
    InsideTls,
    /// Whatever the server asks for, on any line.
    Anywhere,
}

/// How Sidegate logs in to the target: exactly one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Credential {
    /// User and password from a Secret of the Target's namespace.
    Secret(SecretCredential),
    /// A short-lived OIDC token, minted for this Target and this agent.
    Token(TokenCredential),
    /// A user that Vault or OpenBao makes for this lease and removes after it.
    Vault(VaultCredential),
    /// A login that AWS IAM vouches for: for minutes, by a role that the agent's service account may assume.
    AwsIam(AwsIamCredential),
    /// A certificate that Vault or OpenBao signs over a key of the sidecar, for minutes.
    SshCertificate(SshCertificateCredential),
    /// No credential: the target does not ask for one (TCP, or PostgreSQL `trust`).
    None(NoCredential),
}

impl Credential {
    /// The TokenIssuer that has a part in it, if one has.
    pub fn issuer(&self) -> Option<&str> {
        match self {
            Credential::Token(token) => Some(&token.issuer),
            Credential::Vault(vault) => Some(&vault.issuer),
            Credential::AwsIam(aws) => Some(&aws.issuer),
            Credential::SshCertificate(ssh) => Some(&ssh.issuer),
            Credential::Secret(_) | Credential::None(_) => None,
        }
    }

    /// Its key in YAML.
    pub fn as_str(&self) -> &'static str {
        match self {
            Credential::Secret(_) => "secret",
            Credential::Token(_) => "token",
            Credential::Vault(_) => "vault",
            Credential::AwsIam(_) => "awsIam",
            Credential::SshCertificate(_) => "sshCertificate",
            Credential::None(_) => "none",
        }
    }
}

/// A Secret with user name and password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct SecretCredential {
    /// The Secret's name, in the Target's namespace.
    pub name: String,
    /// The key that holds the user name. Default: `username`.
    #[serde(default = "username")]
    pub username_key: String,
    /// The key that holds the password. Default: `password`.
    #[serde(default = "password")]
    pub password_key: String,
}

fn username() -> String {
    "username".to_owned()
}

fn password() -> String {
    "password".to_owned()
}

/// A token for the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct TokenCredential {
    /// Who issues it: the name of a TokenIssuer. `sidegate` (default) is the broker itself.
    #[serde(default = "sidegate")]
    pub issuer: String,
    /// The token's audience, as the target expects it.
    pub audience: String,
    /// Scopes asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// The role or user named at login, where the protocol wants one besides the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
}

fn sidegate() -> String {
    "sidegate".to_owned()
}

/// A user of a database secrets engine of Vault or OpenBao: made for each lease, removed with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct VaultCredential {
    /// The TokenIssuer whose login opens the server: one of preset Vault.
    pub issuer: String,
    /// Where the secrets engine is mounted, such as `database`.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 253)))]
    pub mount: String,
    /// The engine's role: `<mount>/creds/<role>` is read.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 253)))]
    pub role: String,
}

/// A login by AWS IAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct AwsIamCredential {
    /// The TokenIssuer that gives keys: one of preset AwsSts.
    pub issuer: String,
    /// The role that is assumed for the agent: `arn:aws:iam::ACCOUNT:role/NAME`.
    #[cfg_attr(feature = "crd", schemars(length(min = 20, max = 2048)))]
    pub role_arn: String,
    /// The region of the target, such as `eu-central-1`.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 32)))]
    pub region: String,
    /// What is logged in to.
    pub service: AwsService,
    /// The user or role named at login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
}

/// What AWS IAM vouches at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum AwsService {
    /// An RDS or Aurora database: a signed `connect` request is the password, for 15 minutes.
    Rds,
    /// AWS's HTTP APIs: keys of the role, with which requests are signed, for as long as STS gives them.
    SigV4,
}

/// A certificate of an SSH secrets engine of Vault or OpenBao. The key it is over never leaves the sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct SshCertificateCredential {
    /// The TokenIssuer whose login opens the server: one of preset Vault.
    pub issuer: String,
    /// Where the secrets engine is mounted, such as `ssh`.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 253)))]
    pub mount: String,
    /// The engine's role: `<mount>/sign/<role>` is asked.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 253)))]
    pub role: String,
    /// The users the certificate is for: these and no others.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 16)))]
    pub principals: Vec<String>,
}

/// No credential. `username` is still sent where the protocol wants a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct NoCredential {
    /// The user name sent at login, where the protocol wants one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
}

/// Where the target appears for the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Listen {
    /// Port on the loopback addresses of the agent's pod, 1 to 65535.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 65535)))]
    pub port: i32,
    /// Names by which agents' clients know the target. In pods whose InjectionProfile says `reach: Hostnames` they lead,
    /// by the pod's hosts file, to the sidecar, on the port of `address`. At most 16; lower case, no IP address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "crd", schemars(length(max = 16), inner(length(min = 1, max = 253))))]
    pub hostnames: Vec<String>,
}

/// One environment variable for agent containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct EnvVar {
    /// The variable's name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Which namespaces' pods may refer to a Target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct AllowedNamespaces {
    /// Labels of the namespaces. An empty selector allows every namespace.
    pub selector: LabelSelector,
}

/// How sessions on a Target are recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Recording {
    /// What an operation waits for before it is forwarded.
    pub durability: Durability,
    /// How much of the answer is kept.
    pub content: RecordContent,
}

/// What must have happened to the record of an operation before the operation is forwarded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Durability {
    /// It is written to the journal: survives a kill of the sidecar.
    #[default]
    Journal,
    /// Nothing: operations pass even when they cannot be recorded, and the record says what it lost.
    BestEffort,
}

/// How much of each answer is recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum RecordContent {
    /// First and last 64 KiB of every answer, after masking, with totals and a digest.
    #[default]
    Full,
    /// Statements, decisions and totals; no bytes of the answer.
    Statements,
}

/// A protocol that a raw TCP Target may carry although Sidegate could read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum CarriedProtocol {
    /// PostgreSQL.
    Postgres,
    /// HTTP/1 and HTTP/2.
    #[serde(rename = "HTTP")]
    Http,
    /// TLS: stays closed, and is labelled so in the record.
    #[serde(rename = "TLS")]
    Tls,
    /// SSH.
    #[serde(rename = "SSH")]
    Ssh,
    /// Redis (RESP).
    Redis,
    /// MongoDB.
    MongoDB,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec(edit: impl FnOnce(&mut serde_json::Value)) -> TargetSpec {
        let mut spec = serde_json::json!({
            "protocol": "Postgres",
            "address": {"host": "db.example", "port": 5432},
            "credential": {"secret": {"name": "shop"}},
            "listen": {"port": 15432},
        });
        edit(&mut spec);
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn another_object_protocol_address_credential_or_tls_setting_is_another_place() {
        let first = spec(|_| {});
        let digest = |spec: &TargetSpec| spec.place("uid-1").digest().unwrap();
        let sent: TargetSpec = serde_json::from_str(&serde_json::to_string(&first).unwrap()).unwrap();
        assert_eq!(digest(&sent), digest(&first), "the same on either side");
        assert_eq!(digest(&spec(|spec| spec["listen"]["port"] = 1.into())), digest(&first));
        assert_ne!(first.place("uid-2").digest(), first.place("uid-1").digest());
        let edits: [fn(&mut serde_json::Value); 5] = [
            |spec| spec["protocol"] = "TCP".into(),
            |spec| spec["address"]["host"] = "db2.example".into(),
            |spec| spec["address"]["port"] = 5433.into(),
            |spec| spec["credential"]["secret"]["name"] = "other".into(),
            |spec| spec["tls"] = serde_json::json!({"serverName": "db.internal"}),
        ];
        for edit in edits {
            assert_ne!(digest(&spec(edit)), digest(&first));
        }
    }
}
