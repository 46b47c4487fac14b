//! Logins: the agent's side is finished locally, the target's side with the lease, and the two never meet.
//!
//! It refuses a mechanism the lease and the Target do not call for, and a login that succeeds without its exchange.

pub mod md5;
pub mod oauth;
pub mod scram;
pub mod upstream;

pub use upstream::{login, Binding, LoggedIn, LoginError, LoginPlan};
