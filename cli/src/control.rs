//! Talks to a running instance: an instance that is not there is an error that says how to start one.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use hyper::Method;
use serde::de::DeserializeOwned;
use serde::Serialize;
use sidegate_broker::control::client::Client;

const DEADLINE: Duration = Duration::from_secs(15);
const LARGEST_ANSWER: usize = 64 << 20;

/// Calls the instance whose state is in this folder.
pub fn call<A: DeserializeOwned>(state: &Path, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<A> {
    let absent = format!(
        "no Sidegate is running with state {} (start one with `sidegate up`, or name it with --state)",
        state.display()
    );
    let client = Client {
        state,
        deadline: DEADLINE,
        largest: LARGEST_ANSWER,
        absent: &absent,
    };
    client.call(method, path, body)
}

/// A GET without a body.
pub fn get<A: DeserializeOwned>(state: &Path, path: &str) -> Result<A> {
    call(state, Method::GET, path, None::<&()>)
}
