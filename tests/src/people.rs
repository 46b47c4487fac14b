//! People who decide: the control socket of a running instance, as the command line uses it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};

/// Whoever may reach the control socket.
#[derive(Debug, Clone)]
pub struct People {
    socket: PathBuf,
}

impl People {
    /// At this control socket.
    pub fn at(socket: &Path) -> People {
        People {
            socket: socket.to_owned(),
        }
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut stream = UnixStream::connect(&self.socket)?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: control\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(serde_json::from_str(body)?)
    }

    /// Approves a request.
    pub fn approve(&self, name: &str) -> Result<()> {
        self.decide(name, "Approve")
    }

    /// Denies a request.
    pub fn deny(&self, name: &str) -> Result<()> {
        self.decide(name, "Deny")
    }

    fn decide(&self, name: &str, verdict: &str) -> Result<()> {
        let body = json!({"verdict": verdict, "reason": "a test says so"});
        self.call("POST", &format!("/requests/{name}/decide"), &body).map(drop)
    }

    /// The only request there is.
    pub fn only(&self) -> Result<Value> {
        let all = self.call("GET", "/requests?all=true", &Value::Null)?;
        match all.as_array().context("a list")?.as_slice() {
            [only] => Ok(only.clone()),
            _ => anyhow::bail!("not one request: {all}"),
        }
    }

    /// The state of a request, as `sidegate requests --all` shows it.
    pub fn state(&self, name: &str) -> Result<String> {
        let all = self.call("GET", "/requests?all=true", &Value::Null)?;
        let mut requests = all.as_array().context("a list")?.iter();
        let request = requests.find(|request| request["metadata"]["name"] == name);
        let request = request.with_context(|| format!("no request {name}: {all}"))?;
        Ok(request["status"]["state"].as_str().unwrap_or("Pending").to_owned())
    }
}
