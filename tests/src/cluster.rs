//! A real Kubernetes control plane for the tests: etcd, API server, controller manager and scheduler, each a process of
//! its own on loopback, in a temporary folder, gone with the value that owns them.
//!
//! The programs are built once by `make cluster-binaries`, outside git. Where they are missing, that is
//! [`Unavailable`] with the words to print, never a silent skip. No pod runs here: there is no node, unless
//! [`Cluster::kwok`] plays one.
//! Invariant: a server lives as long as the pipe to its standard input, so that a killed test leaves none behind.

pub mod node;
mod process;
mod settings;

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;
use uuid::Uuid;

use self::process::Server;
use crate::authority::Authority;
use crate::ports;

/// The audience that API tokens have when nobody asks for another.
pub const API_AUDIENCE: &str = "https://kubernetes.default.svc";
/// How long the control plane may take to answer; it needs some 5 s on two cores.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(50);

/// Why there is no cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable(
    /// What is missing and what to do about it.
    pub String,
);

/// The programs of a cluster, as `tests/cluster/build.sh` left them.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

impl Programs {
    /// `SIDEGATE_TEST_CLUSTER`, or the build that this checkout wants, in the cache.
    pub fn find() -> Result<Programs, Unavailable> {
        let folder = match std::env::var_os("SIDEGATE_TEST_CLUSTER") {
            Some(folder) => PathBuf::from(folder),
            None => wanted().map_err(|error| Unavailable(format!("{error:#}")))?,
        };
        if folder.join("BUILT.json").exists() {
            return Ok(Programs(folder));
        }
        Err(Unavailable(format!(
            "no binaries in {}: run `make cluster-binaries` (about 15 min) or set SIDEGATE_TEST_CLUSTER",
            folder.display()
        )))
    }

    /// A program by its name, such as `etcd`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The version of a program as it was built, such as `v1.36.3` of `kube`.
    pub fn version(&self, name: &str) -> Result<String> {
        let built: Value = serde_json::from_slice(&std::fs::read(self.0.join("BUILT.json"))?)?;
        let programs = built["programs"].as_array().context("BUILT.json lists no programs")?;
        let program = programs.iter().find(|program| program["program"] == name);
        let version = program.and_then(|program| program["version"].as_str());
        Ok(version.with_context(|| format!("BUILT.json has no {name}"))?.to_owned())
    }
}

/// The folder that build.sh would fill for this checkout.
fn wanted() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/build.sh");
    let output = Command::new("bash").arg(script).arg("--folder").output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "tests/cluster/build.sh --folder: {}",
        said.trim()
    );
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// Who speaks to the API server: users of its token file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Group `system:masters`: may everything.
    Admin,
    /// May nothing that nobody granted.
    Dev,
    /// The same, in group `leads`.
    Ann,
    /// The same, in group `leads`.
    Bob,
    /// The same, in group `others`.
    Eve,
}

/// A running control plane.
pub struct Cluster {
    programs: Programs,
    folder: Folder,
    /// Where the API server listens.
    pub server: String,
    /// Who certifies the API server, and people with certificates.
    pub authority: Authority,
    /// Where a port-forward of brokers' pods ends that [`Cluster::kwok`] plays the kubelet of.
    pub forwarded: u16,
    place: settings::Place,
    /// In the order they were started; stopped the other way round.
    servers: Vec<Server>,
}

/// A temporary folder; `SIDEGATE_TEST_KEEP=1` leaves it behind, and says where.
struct Folder(Option<tempfile::TempDir>);

impl Folder {
    fn path(&self) -> &Path {
        self.0.as_ref().map(tempfile::TempDir::path).unwrap_or(Path::new("/"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::env::var_os("SIDEGATE_TEST_KEEP").is_some_and(|keep| keep == "1") {
            if let Some(kept) = self.0.take().map(tempfile::TempDir::keep) {
                eprintln!("cluster: kept {} (kubeconfig: admin.json)", kept.display());
            }
        }
    }
}

impl Cluster {
    /// Which Kubernetes it was built of, such as `v1.36.3`.
    pub fn version(&self) -> Result<String> {
        self.programs.version("kube")
    }

    /// Starts a control plane and waits until it serves: the `default` service account is the last thing to come.
    pub fn start(programs: &Programs) -> Result<Cluster> {
        Cluster::at(programs, Ipv4Addr::LOCALHOST, ports::free()?)
    }

    /// The same at an address: one that is not on loopback is served to pods, too.
    fn at(programs: &Programs, address: Ipv4Addr, port: u16) -> Result<Cluster> {
        let folder = Folder(Some(tempfile::Builder::new().prefix("sidegate-cluster-").tempdir()?));
        let place = settings::Place {
            address,
            port,
            store: [ports::free()?, ports::free()?],
            accounts: vec![settings::FIRST.to_owned()],
        };
        let mut cluster = Cluster {
            programs: programs.clone(),
            server: format!("https://{address}:{port}"),
            folder,
            authority: Authority::new()?,
            forwarded: ports::free()?,
            place,
            servers: Vec::new(),
        };
        settings::write(cluster.folder.path(), &cluster.server, &cluster.authority)?;
        cluster.plane()?;
        Ok(cluster)
    }

    /// Starts the servers on what the folder holds.
    fn plane(&mut self) -> Result<()> {
        let [client, _] = self.place.store;
        self.run("etcd", &[], settings::etcd(self.folder.path(), &self.place))?;
        self.until("etcd answers", || {
            Ok(std::net::TcpStream::connect(("127.0.0.1", client)).is_ok())
        })?;
        let arguments = settings::api_server(self.folder.path(), &self.server, &self.place);
        self.run("kube", &["kube-apiserver"], arguments)?;
        self.until("the API server is ready", || {
            Ok(self
                .ask(User::Admin, &["get", "--raw", "/readyz"], "")?
                .status
                .success())
        })?;
        let arguments = settings::controllers(self.folder.path(), ports::free()?);
        self.run("kube", &["kube-controller-manager"], arguments)?;
        let arguments = settings::scheduler(self.folder.path(), ports::free()?);
        self.run("kube", &["kube-scheduler"], arguments)?;
        self.until("namespace default has its service account", || {
            let account = ["get", "serviceaccount", "default", "--namespace", "default"];
            Ok(self.ask(User::Admin, &account, "")?.status.success())
        })
    }

    /// A copy of etcd's data, as it is in one moment: what a machine would find on its disk that lost power then.
    pub fn store_copied(&self) -> Result<tempfile::TempDir> {
        let copy = tempfile::Builder::new().prefix("sidegate-etcd-").tempdir()?;
        let _still = self.freeze("etcd")?;
        copied(
            &self.folder.path().join(settings::STORE),
            &copy.path().join(settings::STORE),
        )?;
        Ok(copy)
    }

    /// Stops every server, puts such a copy in the place of etcd's data, and starts them again where they were: versions
    /// of objects count on from where the copy was made.
    pub fn restore(&mut self, copy: &Path) -> Result<()> {
        self.stop();
        let store = self.folder.path().join(settings::STORE);
        std::fs::remove_dir_all(&store)?;
        copied(&copy.join(settings::STORE), &store)?;
        self.plane()
    }

    /// Starts every server again with one more key of service-account tokens: it signs, and tokens of those before it are
    /// believed as they were.
    pub fn another_account_key(&mut self) -> Result<()> {
        let name = format!("{}-{}", settings::FIRST, Uuid::new_v4().simple());
        settings::write_accounts(self.folder.path(), &name)?;
        self.place.accounts.push(name);
        self.again()
    }

    /// Starts every server again with the key that signs alone: tokens of any other are nobody's from now on.
    pub fn newest_account_key_alone(&mut self) -> Result<()> {
        let before = self.place.accounts.len().saturating_sub(1);
        self.place.accounts.drain(..before);
        self.again()
    }

    fn again(&mut self) -> Result<()> {
        self.stop();
        self.plane()
    }

    /// Stops every server, etcd last: an API server without it takes far longer to end.
    fn stop(&mut self) {
        while self.servers.pop().is_some() {}
    }

    /// Plays the kubelet for nodes annotated `kwok.x-k8s.io/node: fake`; a port-forward to the people's face of a broker's
    /// pod there ends at [`Cluster::forwarded`].
    pub fn kwok(&mut self) -> Result<()> {
        settings::write_kubelet(self.folder.path(), &self.authority, self.forwarded)?;
        let stages = self.programs.path("stages.yaml");
        let arguments = settings::kwok(self.folder.path(), &stages, ports::free()?);
        self.run("kwok", &[], arguments)
    }

    /// Makes a node whose kubelet is [`Cluster::kwok`].
    pub fn node(&self, name: &str) -> Result<()> {
        let most = serde_json::json!({"cpu": "32", "memory": "256Gi", "pods": "110"});
        let node = serde_json::json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": name, "annotations": {"kwok.x-k8s.io/node": "fake"}, "labels": {"kubernetes.io/hostname": name},
            },
            "status": {"allocatable": most, "capacity": most},
        });
        self.create(&node).map(|_| ())
    }

    fn run(&mut self, program: &str, first: &[&str], arguments: Vec<String>) -> Result<()> {
        let path = self.programs.path(program);
        let name = first.first().copied().unwrap_or(program);
        let first = first.iter().map(|word| (*word).to_owned());
        self.serve(name, &path, first.chain(arguments), &[])
    }

    /// Starts a server, with these variables beside the few that all have.
    fn serve(
        &mut self,
        name: &str,
        path: &Path,
        arguments: impl Iterator<Item = String>,
        variables: &[(&str, String)],
    ) -> Result<()> {
        let server = Server::start(name, path, arguments, variables, self.folder.path())?;
        self.servers.push(server);
        Ok(())
    }

    /// Waits for a condition; ends early, with its log, when a server ended.
    pub fn until(&self, what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds()? {
            for server in &self.servers {
                ensure!(server.lives(), "{} ended:\n{}", server.name, server.log());
            }
            if Instant::now() >= deadline {
                let logs: Vec<String> = self.servers.iter().map(Server::log).collect();
                bail!("not within {} s: {what}\n{}", PATIENCE.as_secs(), logs.join("\n"));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Stops a server in its tracks, as if its machine hung: it holds its connections and answers nothing, until the
    /// answer is dropped.
    pub fn freeze(&self, name: &str) -> Result<Frozen> {
        let server = self.servers.iter().find(|server| server.name == name);
        let pid = Pid::from_raw(server.context("no such server")?.pid().cast_signed());
        kill(pid, Signal::SIGSTOP)?;
        Ok(Frozen(pid))
    }

    /// Process numbers of the servers.
    pub fn pids(&self) -> Vec<u32> {
        self.servers.iter().map(Server::pid).collect()
    }

    /// Runs kubectl as a user, with this on its standard input.
    pub fn ask(&self, user: User, arguments: &[&str], input: &str) -> Result<Output> {
        let mut command = self.client(user);
        command.args(arguments);
        self.command(command, user, input)
    }

    /// Runs helm as the administrator.
    pub fn helm(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(self.programs.path("helm"));
        command.args(arguments);
        self.command(command, User::Admin, "")
    }

    /// kubectl as a user, for whoever follows what it says.
    pub fn client(&self, user: User) -> Command {
        let mut command = Command::new(self.programs.path("kube"));
        command.arg("kubectl");
        self.dressed(&mut command, user);
        command
    }

    fn dressed(&self, command: &mut Command, user: User) {
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.folder.path())
            .env("KUBECONFIG", self.kubeconfig(user));
    }

    fn command(&self, mut command: Command, user: User, input: &str) -> Result<Output> {
        self.dressed(&mut command, user);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting a client")?;
        // What does not read its input may be gone already.
        let _ = child.stdin.take().context("its input")?.write_all(input.as_bytes());
        Ok(child.wait_with_output()?)
    }

    /// What kubectl says to the administrator, or an error with what it complains of.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.ask(User::Admin, arguments, input)?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "kubectl {}: {}",
            arguments.join(" "),
            complaint.trim()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Creates an object as the administrator and answers it as the server stored it.
    pub fn create(&self, object: &Value) -> Result<Value> {
        let said = self.kubectl(&["create", "-f", "-", "-o", "json"], &object.to_string())?;
        Ok(serde_json::from_str(&said)?)
    }

    /// What a client of the administrator's needs: the authority of the API server's certificate as PEM, and a token.
    pub fn admin(&self) -> Result<(String, String)> {
        Ok((self.authority.pem().to_owned(), self.token(User::Admin)?))
    }

    /// The token of a user.
    pub fn token(&self, user: User) -> Result<String> {
        let config: Value = serde_json::from_str(&std::fs::read_to_string(self.kubeconfig(user))?)?;
        let token = config["users"][0]["user"]["token"].as_str().context("no token")?;
        Ok(token.to_owned())
    }

    /// The kubeconfig of a user.
    pub fn kubeconfig(&self, user: User) -> PathBuf {
        self.folder.path().join(settings::kubeconfig(user))
    }

    /// A folder for `PATH` in which `kubectl` is, made within this one.
    pub fn kubectl_on_path(&self, within: &Path) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = within.join("bin");
        std::fs::create_dir_all(&folder)?;
        let script = folder.join("kubectl");
        let text = format!(
            "#!/bin/sh\nexec {} kubectl \"$@\"\n",
            self.programs.path("kube").display()
        );
        std::fs::write(&script, text)?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        Ok(folder)
    }

    /// A kubeconfig with this bearer token.
    pub fn kubeconfig_of(&self, token: &str) -> String {
        settings::kubeconfig_of(self.folder.path(), &self.server, token)
    }

    /// A token of a service account for an audience, bound to a pod as a kubelet would ask for it; it lives 10 minutes.
    pub fn bound_token(&self, namespace: &str, account: &str, audience: &str, pod: &str) -> Result<String> {
        self.bound_token_for(namespace, account, audience, (pod, "10m"))
    }

    /// The same for so long.
    pub fn bound_token_for(
        &self,
        namespace: &str,
        account: &str,
        audience: &str,
        (pod, duration): (&str, &str),
    ) -> Result<String> {
        let said = self.kubectl(
            &[
                "create",
                "token",
                account,
                "--namespace",
                namespace,
                "--audience",
                audience,
                "--duration",
                duration,
                "--bound-object-kind",
                "Pod",
                "--bound-object-name",
                pod,
            ],
            "",
        )?;
        Ok(said.trim().to_owned())
    }

    /// Makes a namespace of a name nobody else has, and waits for its service account.
    pub fn namespace(&self) -> Result<String> {
        let name = format!("t-{}", Uuid::now_v7().simple());
        self.kubectl(&["create", "namespace", &name], "")?;
        self.until("the namespace has its service account", || {
            let account = ["get", "serviceaccount", "default", "--namespace", &name];
            Ok(self.ask(User::Admin, &account, "")?.status.success())
        })?;
        Ok(name)
    }
}

/// Whether the absence of a part is a failure: `SIDEGATE_TEST_REQUIRE` names it.
pub fn is_required(part: &str) -> bool {
    let required = std::env::var("SIDEGATE_TEST_REQUIRE").unwrap_or_default();
    required.split(',').any(|word| word == part)
}

/// What helm says.
///
/// # Errors
/// It refuses: its complaint.
pub fn helm(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let output = cluster.helm(arguments)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm {}: {complaint}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

fn copied(from: &Path, to: &Path) -> Result<()> {
    let done = Command::new("cp").arg("-a").args([from, to]).status()?;
    ensure!(done.success(), "cp -a {} {}", from.display(), to.display());
    Ok(())
}

/// A server that answers nothing.
pub struct Frozen(Pid);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}
