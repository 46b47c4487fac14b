//! A stock OpenID provider (npm `oidc-provider`) as a program, for this crate and for the broker's own suite.
//!
//! It speaks TLS on a port of 127.0.0.1 and ends with the value. Where its package is missing, starting it panics and says
//! what to run.

#![allow(clippy::unwrap_used, clippy::panic, clippy::missing_panics_doc)]

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{json, Value};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// The provider's program; it ends with its input.
pub struct Stock {
    /// Its public keys.
    pub keys: Value,
    _child: Child,
    _input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Stock {
    /// Starts it at `https://127.0.0.1:<port>`. `more`: the broker's keys (`jwks`), the audience it issues for (`resource`),
    /// and what else `tests/clients/oidc/provider.mjs` reads.
    pub async fn start(port: u16, cert: &str, key: &str, more: Value) -> Self {
        let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/clients/oidc/provider.mjs");
        let cache = std::env::var_os("SIDEGATE_CACHE").map(PathBuf::from);
        let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/sidegate"));
        let modules = cache.join("clients/oidc/node_modules");
        assert!(
            modules.exists(),
            "oidc-provider is missing: run `bash tests/setup/need.sh oidc`"
        );
        let mut child = Command::new("node")
            .arg(here)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut settings = json!({
            "modules": modules, "issuer": format!("https://127.0.0.1:{port}"), "port": port, "cert": cert, "key": key,
        });
        settings
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        input.write_all(format!("{settings}\n").as_bytes()).await.unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut stock = Stock {
            keys: Value::Null,
            _child: child,
            _input: input,
            lines,
        };
        let keys = stock.says("keys ").await;
        stock.keys = serde_json::from_str(keys.trim_start_matches("keys ")).unwrap();
        stock.says("ready").await;
        stock
    }

    /// Waits for a line that begins so, and gives it.
    pub async fn says(&mut self, begins: &str) -> String {
        let find = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if line.starts_with(begins) {
                    return line;
                }
            }
            panic!("the provider ended");
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), find).await;
        waited.unwrap_or_else(|_| panic!("the provider never says {begins}"))
    }
}
