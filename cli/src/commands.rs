//! One file per verb. A verb gets its parsed arguments and answers an exit code; what it prints goes through
//! [`crate::out::Out`]. [`Usage`] marks errors of usage or configuration, which exit with 2.

use std::fmt;

pub mod audit;
pub mod cases;
pub mod decide;
pub mod explain;
pub mod inject;
pub mod lock;
pub mod policy;
pub mod replay;
pub mod requests;
pub mod sessions;
pub mod status;
pub mod up;
pub mod verify;

mod offline;
mod source;

/// Wrong usage or configuration: nothing was started.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}
