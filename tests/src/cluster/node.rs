//! One real node: containerd, kubelet and kube-proxy beside a control plane, all of it in namespaces of its own.
//!
//! Owns the namespaces' insides and what runs there; [`house`] makes the namespaces and clears up behind them. Refuses,
//! with the reason, where the machine cannot. Invariants: nothing leaves loopback and the node's own bridge, the
//! machine's settings, mounts and rules stay as they are, and everything ends with the namespaces' first process.

pub mod house;
pub mod images;
pub mod keeper;
mod settings;
pub mod site;
pub mod traces;

use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};
use serde_json::Value;

use super::{Cluster, Programs, Unavailable, User};
use crate::authority::Authority;
use crate::names::NameServer;

/// The node's address: an extra one of loopback, the same in every run, because the network is its own.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 251, 0, 1);
/// Where its pods' addresses are from.
pub const PODS: &str = "10.252.0.0/24";
/// Its name.
pub const NAME: &str = "node";
/// Where the API server listens.
pub const PORT: u16 = 6443;

/// What a node is made of, as `tests/node/setup.sh` left it.
#[derive(Debug, Clone)]
pub struct Parts(PathBuf);

impl Parts {
    /// The parts of this checkout.
    ///
    /// # Errors
    /// Why there can be no node here.
    pub fn find() -> Result<Parts, Unavailable> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("node/setup.sh");
        let said = Command::new("bash").arg(script).arg("--folder").output();
        let said = said.map_err(|error| Unavailable(format!("tests/node/setup.sh: {error}")))?;
        let folder = PathBuf::from(String::from_utf8_lossy(&said.stdout).trim());
        match folder.join("ready").exists() {
            true => Ok(Parts(folder)),
            false => Err(Unavailable(format!(
                "no containerd in {}: run `bash tests/node/setup.sh` (half a minute)",
                folder.display()
            ))),
        }
    }

    /// The file system of an agent.
    pub fn agent(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A program of the node's own.
    fn program(&self, name: &str) -> PathBuf {
        let places = ["usr/bin", "usr/sbin", "bin", "sbin"].map(|place| self.0.join("root").join(place).join(name));
        places.into_iter().find(|path| path.exists()).unwrap_or_default()
    }

    /// Variables with which its programs find each other and their libraries.
    fn variables(&self) -> [(&'static str, String); 2] {
        let root = self.0.join("root");
        let own = ["usr/bin", "usr/sbin", "sbin", "bin"].map(|place| root.join(place).display().to_string());
        [
            ("PATH", format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", own.join(":"))),
            (
                "LD_LIBRARY_PATH",
                root.join("usr/lib/x86_64-linux-gnu").display().to_string(),
            ),
        ]
    }

    /// Runs one of its programs to its end.
    ///
    /// # Errors
    /// It cannot be started, or ends badly.
    pub fn run(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let output = Command::new(self.program(name))
            .args(arguments)
            .env_clear()
            .envs(self.variables())
            .output()
            .with_context(|| format!("starting {name}"))?;
        ensure!(
            output.status.success(),
            "{name} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A running node with its control plane.
pub struct Node {
    /// The control plane, with the node's own servers.
    pub cluster: Cluster,
    /// Answers the names of pods and of sidecars, on port 53 of the node's address.
    pub names: NameServer,
    parts: Parts,
    run: PathBuf,
    /// What containerd keeps images by.
    snapshotter: &'static str,
}

impl Node {
    /// Starts everything, within the namespaces of [`house`], and waits until the node is ready.
    pub fn start(programs: &Programs, parts: &Parts, run: &Path) -> Result<Node> {
        let names = NameServer::at((ADDRESS, 53).into())?;
        let cluster = Cluster::at(programs, ADDRESS, PORT)?;
        let mut node = Node {
            cluster,
            names,
            parts: parts.clone(),
            run: run.to_owned(),
            snapshotter: settings::snapshotter(run)?,
        };
        if node.snapshotter != "overlayfs" {
            eprintln!(
                "node: images are copies ({}): no overlay goes upon this folder",
                node.snapshotter
            );
        }
        node.containerd()?;
        node.kubelet()?;
        let ready = [
            "get",
            "node",
            NAME,
            "-o",
            "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}",
        ];
        node.cluster.until("the node is ready", || {
            let said = node.cluster.ask(User::Admin, &ready, "")?;
            Ok(said.status.success() && said.stdout == b"True")
        })?;
        Ok(node)
    }

    fn containerd(&mut self) -> Result<()> {
        let config = settings::containerd(&self.parts.0, &self.run, self.snapshotter)?;
        let arguments = ["--config".to_owned(), config.display().to_string()];
        let program = self.parts.program("containerd");
        let variables = self.parts.variables();
        self.cluster
            .serve("containerd", &program, arguments.into_iter(), &variables)?;
        let socket = self.socket();
        self.cluster
            .until("containerd answers", || Ok(UnixStream::connect(&socket).is_ok()))?;
        let pause = images::Image {
            name: settings::PAUSE.to_owned(),
            files: vec![(self.parts.0.join("pause/pause"), "/pause".to_owned())],
            user: "65535:65535".to_owned(),
            entrypoint: "/pause".to_owned(),
            ..images::Image::default()
        };
        self.import(&pause.build(&self.run)?)
    }

    fn kubelet(&mut self) -> Result<()> {
        let authority = Authority::new()?;
        let leaf = authority.leaf(&[NAME, &ADDRESS.to_string()])?;
        let folder = self.cluster.folder.path().to_owned();
        let variables = self.parts.variables();
        let kube = self.cluster.programs.path("kube");
        let arguments = settings::kubelet(&folder, &self.run, &leaf)?;
        let first = ["kubelet".to_owned()];
        self.cluster
            .serve("kubelet", &kube, first.into_iter().chain(arguments), &variables)?;
        let arguments = settings::proxy(&folder)?;
        let first = ["kube-proxy".to_owned()];
        self.cluster
            .serve("kube-proxy", &kube, first.into_iter().chain(arguments), &variables)
    }

    fn socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    /// Gives the node an image: pods may name it by its tag and by its digest.
    pub fn import(&self, image: &images::Built) -> Result<()> {
        let (socket, archive) = (self.socket(), image.archive.display().to_string());
        let base = image.name.split(':').next().unwrap_or_default();
        let socket = socket.to_string_lossy();
        let import = ["--address", &socket, "--namespace", "k8s.io", "images", "import"];
        let which = [
            "--snapshotter",
            self.snapshotter,
            "--digests",
            "--base-name",
            base,
            &archive,
        ];
        self.parts.run("ctr", &[&import[..], &which].concat()).map(|_| ())
    }

    /// Gives every Service that there is its name.
    pub fn name_services(&self) -> Result<()> {
        let services = self.cluster.kubectl(&["get", "services", "-A", "-o", "json"], "")?;
        let services: Value = serde_json::from_str(&services)?;
        for service in services["items"].as_array().into_iter().flatten() {
            let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
            let name = &service["metadata"];
            if let (Ok(address), Some(namespace), Some(name)) =
                (address.parse(), name["namespace"].as_str(), name["name"].as_str())
            {
                self.names
                    .set(&format!("{name}.{namespace}.svc.{}", settings::DOMAIN), &[address]);
            }
        }
        Ok(())
    }

    /// The folder of this run.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The parts it is made of.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }
}
