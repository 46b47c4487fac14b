//! One file per verb. A verb gets its parsed arguments and answers an exit code; what it prints goes through
//! [`crate::out::Out`]. [`Usage`] marks errors of usage or configuration, which exit with 2.

use std::fmt;

use clap::Args;

pub mod audit;
pub mod cases;
pub mod check;
pub mod decide;
pub mod explain;
pub mod inject;
pub mod lock;
pub mod policy;
pub mod replay;
pub mod requests;
pub mod sessions;
pub mod status;
pub mod unprotected;
pub mod up;
pub mod verify;

mod certificate;
mod explain_pod;
mod offline;
mod overview;
pub mod seen;
mod source;

/// Where Sidegate itself is installed.
#[derive(Debug, Clone, Args)]
pub struct HomeArg {
    /// The namespace that Sidegate itself is installed in.
    #[arg(long, value_name = "NAME", default_value = seen::HOME)]
    pub sidegate_namespace: String,
}

/// Wrong usage or configuration: nothing was started.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}
