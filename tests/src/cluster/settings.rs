//! What the servers of a test cluster are told: flags, certificates, users and kubeconfigs.
//!
//! Feature gates and anonymous access stay at their defaults, so that results match users' clusters.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;
use serde_json::json;
use uuid::Uuid;

use super::{User, API_AUDIENCE};
use crate::authority::Authority;

/// Users of the token file: kubeconfig, name, group.
const USERS: [(&str, &str, &str); 9] = [
    ("admin", "admin", "system:masters"),
    ("dev", "dev", "people"),
    ("ann", "ann", "leads"),
    ("bob", "bob", "leads"),
    ("eve", "eve", "others"),
    ("controllers", "system:kube-controller-manager", "system:authenticated"),
    ("scheduler", "system:kube-scheduler", "system:authenticated"),
    ("node", "system:node:node", "system:nodes"),
    ("proxy", "system:kube-proxy", "system:authenticated"),
];

/// Services get addresses of this range.
pub(super) const SERVICES: &str = "10.96.0.0/16";

/// Where an API server listens.
pub(super) struct Place {
    /// What its clients call it by.
    pub address: Ipv4Addr,
    pub port: u16,
    /// Ports of etcd: for its client and for a peer.
    pub store: [u16; 2],
    /// Keys of service-account tokens that are believed; the last one signs.
    pub accounts: Vec<String>,
}

/// The first key of service-account tokens.
pub(super) const FIRST: &str = "accounts";

/// etcd's data, within the folder.
pub(super) const STORE: &str = "etcd";

/// The kubeconfig of a user.
pub(super) fn kubeconfig(user: User) -> &'static str {
    match user {
        User::Admin => "admin.json",
        User::Dev => "dev.json",
        User::Ann => "ann.json",
        User::Bob => "bob.json",
        User::Eve => "eve.json",
    }
}

/// A kubeconfig for whoever has this token.
pub(super) fn kubeconfig_of(folder: &Path, server: &str, token: &str) -> String {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {
            "server": server, "certificate-authority": folder.join("ca.pem"),
        }}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    config.to_string()
}

/// Writes everything the servers read.
pub(super) fn write(folder: &Path, server: &str, authority: &Authority) -> Result<()> {
    let address = server
        .trim_start_matches("https://")
        .split(':')
        .next()
        .unwrap_or_default();
    // The last is the Service's own, by which pods call it.
    let leaf = authority.leaf(&["127.0.0.1", "localhost", "kubernetes.default.svc", address, "10.96.0.1"])?;
    let client = authority.client("api-server", "system:masters")?;
    private(folder, "ca.pem", authority.pem())?;
    for (name, pair) in [("server", &leaf), ("kubelet-client", &client)] {
        private(folder, &format!("{name}.pem"), &pair.certificate)?;
        private(folder, &format!("{name}.key"), &pair.key)?;
    }
    write_accounts(folder, FIRST)?;
    let mut tokens = String::new();
    for (file, name, group) in USERS {
        let token = Uuid::new_v4().simple().to_string();
        tokens.push_str(&format!("{token},{name},{name},\"{group}\"\n"));
        let config = kubeconfig_of(folder, server, &token);
        private(folder, &format!("{file}.json"), &config)?;
    }
    private(folder, "tokens.csv", &tokens)
}

/// A key of service-account tokens. RS256 is what most clusters sign them with.
pub(super) fn write_accounts(folder: &Path, name: &str) -> Result<()> {
    let accounts = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)?;
    private(folder, &format!("{name}.key"), &accounts.serialize_pem())?;
    private(folder, &format!("{name}.pub"), &accounts.public_key_pem())
}

fn private(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

/// `--name=value` of a file in the folder.
fn file(folder: &Path, flag: &str, name: &str) -> String {
    format!("--{flag}={}", folder.join(name).display())
}

fn owned(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|flag| (*flag).to_owned()).collect()
}

pub(super) fn etcd(folder: &Path, place: &Place) -> Vec<String> {
    let [client, peer] = place.store;
    vec![
        file(folder, "data-dir", STORE),
        format!("--client-url=http://127.0.0.1:{client}"),
        format!("--peer-url=http://127.0.0.1:{peer}"),
    ]
}

pub(super) fn api_server(folder: &Path, server: &str, place: &Place) -> Vec<String> {
    let Place {
        address,
        port,
        store: [etcd, _],
        accounts,
    } = place;
    let (bind, reconciler) = if address.is_loopback() {
        // An address of loopback can be no endpoint: 1.37 does not start with one that it is to make an endpoint of.
        (address, "none")
    } else {
        (&Ipv4Addr::UNSPECIFIED, "lease")
    };
    let mut flags = vec![
        format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        format!("--secure-port={port}"),
        format!("--bind-address={bind}"),
        // Without a default route the server does not start unless it is told.
        format!("--advertise-address={address}"),
        format!("--endpoint-reconciler-type={reconciler}"),
        format!("--service-cluster-ip-range={SERVICES}"),
        // How it reaches a kubelet: without this it looks the node's name up, and those that kwok plays lead nowhere.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        file(folder, "kubelet-client-certificate", "kubelet-client.pem"),
        file(folder, "kubelet-client-key", "kubelet-client.key"),
        file(folder, "tls-cert-file", "server.pem"),
        file(folder, "tls-private-key-file", "server.key"),
        file(folder, "cert-dir", "api-server"),
        file(folder, "client-ca-file", "ca.pem"),
        file(folder, "token-auth-file", "tokens.csv"),
        // The broker fetches its keys there, by the issuer's own discovery.
        format!("--service-account-issuer={server}"),
        format!("--api-audiences={API_AUDIENCE}"),
    ];
    flags.extend(
        accounts
            .iter()
            .map(|name| file(folder, "service-account-key-file", &format!("{name}.pub"))),
    );
    let signing = accounts
        .last()
        .map(|name| file(folder, "service-account-signing-key-file", &format!("{name}.key")));
    flags.extend(signing);
    flags.extend(owned(&[
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        // As clusters have it: what becomes of privileged pods is for admission to say.
        "--allow-privileged=true",
        "--service-account-extend-token-expiration=false",
        "--shutdown-delay-duration=0s",
    ]));
    flags
}

/// What controller manager and scheduler have in common: both are clients of the API server, and serve their health.
fn client(folder: &Path, name: &str, port: u16) -> Vec<String> {
    let mut flags = vec![
        file(folder, "kubeconfig", &format!("{name}.json")),
        file(folder, "cert-dir", name),
        format!("--secure-port={port}"),
    ];
    flags.extend(owned(&[
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        // The default of 20 requests a second throttles tests.
        "--kube-api-qps=1000",
        "--kube-api-burst=2000",
    ]));
    flags
}

pub(super) fn controllers(folder: &Path, port: u16) -> Vec<String> {
    let mut flags = client(folder, "controllers", port);
    flags.extend([
        file(folder, "root-ca-file", "ca.pem"),
        file(folder, "service-account-private-key-file", &format!("{FIRST}.key")),
        // Else root makes a folder under /usr/libexec.
        file(folder, "flex-volume-plugin-dir", "flex"),
        // Without it RBAC refuses the controllers, and no namespace gets its root certificate.
        "--use-service-account-credentials=true".to_owned(),
    ]);
    flags
}

pub(super) fn scheduler(folder: &Path, port: u16) -> Vec<String> {
    client(folder, "scheduler", port)
}

/// What kwok needs to be a kubelet that forwards ports: a certificate, and where the people's face of brokers is.
pub(super) fn write_kubelet(folder: &Path, authority: &Authority, people: u16) -> Result<()> {
    let leaf = authority.leaf(&["127.0.0.1"])?;
    private(folder, "kubelet.pem", &leaf.certificate)?;
    private(folder, "kubelet.key", &leaf.key)?;
    let forward = json!({
        "apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "ClusterPortForward", "metadata": {"name": "people"},
        "spec": {
            "selector": {"matchNamespaces": ["sidegate-system"]},
            "forwards": [{"ports": [8447], "target": {"address": "127.0.0.1", "port": people}}],
        },
    });
    private(folder, "forward.yaml", &forward.to_string())
}

pub(super) fn kwok(folder: &Path, stages: &Path, port: u16) -> Vec<String> {
    let mut flags = vec![
        file(folder, "kubeconfig", "admin.json"),
        format!("--config={}", stages.display()),
        file(folder, "config", "forward.yaml"),
        file(folder, "tls-cert-file", "kubelet.pem"),
        file(folder, "tls-private-key-file", "kubelet.key"),
        "--node-ip=127.0.0.1".to_owned(),
        format!("--node-port={port}"),
        format!("--server-address=127.0.0.1:{port}"),
    ];
    flags.extend(owned(&[
        "--manage-all-nodes=false",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        "--node-lease-duration-seconds=40",
        "--cidr=10.64.0.0/14",
    ]));
    flags
}
