//! A Target as this sidecar serves it: swapped in whole with each bundle.
//!
//! Owns the compiled form (TLS configuration, listening port) and the words for explicit weakenings. It is immutable;
//! a session keeps the one it started with and is cut when a newer bundle no longer allows it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use sidegate_policies::api::target::{
    Address, Credential, Listen, NoCredential, Place, Recording, TargetProtocol, Tls, TlsMode, WeakLogin,
};
use sidegate_policies::api::TargetSpec;
use sidegate_policies::bundle::BundledTarget;
use sidegate_policies::compile::understood::Withheld;
use sidegate_policies::engine::TargetId;

use crate::tls::client::ClientTls;

/// One target.
pub struct TargetState {
    /// Its name.
    pub id: TargetId,
    /// What the object says.
    pub spec: TargetSpec,
    /// Its UID: approvals bind to it.
    pub uid: String,
    /// Labels of the object.
    pub labels: BTreeMap<String, String>,
    /// PEM of the authorities to trust; absent: the system's roots.
    pub ca_pem: Option<String>,
    /// The Target states a loopback literal, and the broker (local mode) lets it be dialled there.
    pub loopback: bool,
    /// Whether a bundle brought it. Listeners named by the environment exist before the first bundle; their sessions
    /// are refused as unavailable until it comes.
    pub known: bool,
    /// What of it, or of a policy about it, this release does not understand: everything on it is denied.
    pub not_understood: Option<String>,
    pub(crate) client_tls: OnceLock<ClientTls>,
}

impl TargetState {
    /// A target as the bundle brings it. A Target without a namespace cannot come from a broker and is skipped.
    pub fn bundled(bundled: &BundledTarget) -> Option<Self> {
        let metadata = &bundled.target.metadata;
        Some(TargetState {
            id: TargetId::new(metadata.namespace.as_deref()?, &metadata.name),
            spec: bundled.target.spec.clone(),
            uid: metadata.uid.clone().unwrap_or_default(),
            labels: metadata.labels.clone(),
            ca_pem: bundled.ca_pem.clone(),
            loopback: bundled.loopback,
            known: true,
            not_understood: None,
            client_tls: OnceLock::new(),
        })
    }

    /// A target of which something is not understood. One that is not understood itself does not listen.
    pub fn withheld(withheld: &Withheld) -> Option<Self> {
        let mut target = TargetState::bundled(withheld.target.as_ref()?)?;
        target.not_understood = Some(withheld.why.clone());
        Some(target)
    }

    /// A listener that the environment announced before any bundle came.
    pub fn announced(id: TargetId, protocol: TargetProtocol, port: u16) -> Self {
        TargetState {
            id,
            spec: TargetSpec {
                protocol,
                address: Address {
                    host: String::new(),
                    port: 0,
                },
                tls: Tls::default(),
                weak_login: WeakLogin::Refuse,
                databases: Vec::new(),
                credential: Credential::None(NoCredential::default()),
                listen: Listen {
                    port: i32::from(port),
                    hostnames: Vec::new(),
                },
                env: Vec::new(),
                allowed_namespaces: None,
                recording: Recording::default(),
                carries: Vec::new(),
            },
            uid: String::new(),
            labels: BTreeMap::new(),
            ca_pem: None,
            loopback: false,
            known: false,
            not_understood: None,
            client_tls: OnceLock::new(),
        }
    }

    /// The port it listens on.
    pub fn listen_port(&self) -> Option<u16> {
        u16::try_from(self.spec.listen.port).ok().filter(|port| *port != 0)
    }

    /// `host:port` as people wrote it.
    pub fn address(&self) -> String {
        format!("{}:{}", self.spec.address.host, self.spec.address.port)
    }

    /// Whether both lead to the same place with the same credential. Another object, address, credential or TLS setting
    /// under the same name is another target.
    pub fn same_place(&self, other: &TargetState) -> bool {
        self.place() == other.place()
    }

    /// Where it leads, and with what credential.
    pub fn place(&self) -> Place<'_> {
        self.spec.place(&self.uid)
    }

    /// The name the target's certificate must carry.
    pub fn server_name(&self) -> &str {
        self.spec.tls.server_name.as_deref().unwrap_or(&self.spec.address.host)
    }

    /// Explicit weakenings in force, as status and every record of a session print them.
    pub fn insecure(&self) -> Vec<String> {
        let mut words = Vec::new();
        match self.spec.weak_login {
            WeakLogin::Refuse => {}
            WeakLogin::InsideTls => words.push("weakLogin: InsideTLS".to_owned()),
            WeakLogin::Anywhere => words.push("weakLogin: Anywhere".to_owned()),
        }
        if self.spec.tls.mode == TlsMode::Disabled {
            words.push("tls: Disabled".to_owned());
        }
        words
    }
}

impl std::fmt::Debug for TargetState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TargetState")
            .field("id", &self.id)
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}
