//! What containerd, CNI, kubelet and kube-proxy are told, so that they keep to one folder and one network.
//!
//! Each line is there because without it something leaves the namespaces, calls iptables, or does not start without
//! systemd or CAP_SYS_RESOURCE.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::house::plain;
use super::{ADDRESS, NAME, PODS};
use crate::authority::Leaf;

/// The image of the process that holds a pod's namespaces.
pub(super) const PAUSE: &str = "local.test/pause:1";
/// The cluster's domain.
pub(super) const DOMAIN: &str = "cluster.local";

/// How containerd keeps images: by layers over each other, or, where the folder lies on such a file system already and the
/// kernel takes no second one upon it, by copies.
pub(super) fn snapshotter(run: &Path) -> Result<&'static str> {
    let tried = run.join("overlay");
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| tried.join(name));
    for folder in [&lower, &upper, &work, &merged] {
        fs::create_dir_all(folder)?;
    }
    let [lower, upper, work, merged] = [lower, upper, work, merged].map(|folder| folder.display().to_string());
    let layers = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    if plain("mount", &["-t", "overlay", "overlay", "-o", &layers, &merged]).is_err() {
        return Ok("native");
    }
    plain("umount", &[&merged])?;
    Ok("overlayfs")
}

/// Writes containerd's configuration and CNI's; answers the path of the first.
pub(super) fn containerd(parts: &Path, run: &Path, snapshotter: &str) -> Result<PathBuf> {
    let (root, at) = (parts.join("root"), run.display());
    let networks = run.join("cni/net.d");
    fs::create_dir_all(&networks)?;
    let bridge = json!({
        "cniVersion": "0.4.0", "name": "pods", "plugins": [
            {
                // No ipMasq: that one calls iptables.
                "type": "bridge", "bridge": "sg0", "isDefaultGateway": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "ranges": [[{"subnet": PODS}]], "dataDir": run.join("cni/addresses"),
                },
            },
        ],
    });
    fs::write(networks.join("10-pods.conflist"), bridge.to_string())?;
    let file = run.join("containerd.toml");
    let text = format!(
        r#"version = 2
root = "{at}/containerd/root"
state = "{at}/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "{at}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{at}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "{at}/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
"#,
        cni = root.join("usr/lib/cni").display(),
        runc = root.join("usr/sbin/runc").display(),
    );
    fs::write(&file, text)?;
    Ok(file)
}

/// Writes the kubelet's configuration; answers its flags.
pub(super) fn kubelet(folder: &Path, run: &Path, leaf: &Leaf) -> Result<Vec<String>> {
    let at = run.join("kubelet");
    fs::create_dir_all(&at)?;
    fs::write(at.join("server.pem"), &leaf.certificate)?;
    fs::write(at.join("server.key"), &leaf.key)?;
    fs::write(at.join("resolv.conf"), format!("nameserver {ADDRESS}\n"))?;
    let group = run.file_name().context("a folder with a name")?.to_string_lossy();
    // The disk is shared with others: its state is not this node's.
    let never = [
        "memory.available",
        "nodefs.available",
        "nodefs.inodesFree",
        "imagefs.available",
        "imagefs.inodesFree",
    ];
    let never: serde_json::Map<_, _> = never.iter().map(|what| ((*what).to_owned(), json!("0%"))).collect();
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}/containerd.sock", run.display()),
        "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{group}"),
        "failCgroupV1": false, "failSwapOn": false, "enforceNodeAllocatable": [],
        "evictionHard": never, "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "makeIPTablesUtilChains": false, "oomScoreAdj": 0,
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": true},
            "x509": {"clientCAFile": folder.join("ca.pem")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": at.join("server.pem"), "tlsPrivateKeyFile": at.join("server.key"),
        "address": ADDRESS, "healthzBindAddress": "127.0.0.1",
        "resolvConf": at.join("resolv.conf"), "clusterDNS": [ADDRESS], "clusterDomain": DOMAIN,
        "podLogsDir": run.join("logs"), "volumePluginDir": at.join("plugins"),
        "containerLogMaxSize": "1Mi", "registryPullQPS": 0, "eventRecordQPS": 0, "kubeAPIQPS": 200, "kubeAPIBurst": 400,
    });
    let file = at.join("config.json");
    fs::write(&file, config.to_string())?;
    Ok(vec![
        format!("--config={}", file.display()),
        format!("--kubeconfig={}", folder.join("node.json").display()),
        format!("--root-dir={}", at.join("root").display()),
        format!("--cert-dir={}", at.join("certs").display()),
        format!("--hostname-override={NAME}"),
        format!("--node-ip={ADDRESS}"),
    ])
}

/// Writes kube-proxy's configuration; answers its flags.
pub(super) fn proxy(folder: &Path) -> Result<Vec<String>> {
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": "nftables", "clusterCIDR": PODS, "hostnameOverride": NAME,
        "clientConnection": {"kubeconfig": folder.join("proxy.json")},
        "conntrack": {"maxPerCore": 0, "min": 0},
        "bindAddress": ADDRESS, "healthzBindAddress": "127.0.0.1:10256", "metricsBindAddress": "127.0.0.1:10249",
        "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
    });
    let file = folder.join("proxy-config.json");
    fs::write(&file, config.to_string())?;
    Ok(vec![format!("--config={}", file.display())])
}
