//! The PostgreSQL room: every statement is parsed with the server's own grammar, resolved, decided, and only then sent;
//! every value that comes back passes a mask plan.
//!
//! One agent connection is one server connection until it closes. It refuses what it cannot judge.
//! Invariant: after login nothing leaves for the server but what the gate admitted.

mod agent;
mod auth;
mod cancel;
#[cfg(test)]
mod cancel_tests;
mod catalog;
mod codec;
mod conversation;
mod copy;
mod facts;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod hold;
mod login;
mod mask;
mod params;
mod planner;
mod plans;
mod queue;
mod refuse;
mod relay;
mod reply;
mod rows;
mod serve;
mod server;
mod startup;
mod stream;
mod values;
mod work;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use sidegate_policies::api::target::TargetProtocol;

use super::{Conn, Room, RoomContext};
use crate::gate::Gate;
use crate::session::Session;

use serve::send_cancel;

/// PostgreSQL.
pub struct Postgres;

impl Room for Postgres {
    fn protocol(&self) -> TargetProtocol {
        TargetProtocol::Postgres
    }

    fn name(&self) -> &'static str {
        "postgres"
    }

    fn serve(&self, conn: Conn, session: Arc<Session>, gate: Gate, ctx: RoomContext) -> BoxFuture<'static, ()> {
        serve::serve(conn, session, gate, ctx).boxed()
    }
}

/// What connections of one running sidecar share.
#[derive(Default)]
struct Shared {
    keys: Arc<cancel::Keys>,
    snapshots: catalog::Snapshots,
    plans: Arc<plans::PlanCache>,
}
