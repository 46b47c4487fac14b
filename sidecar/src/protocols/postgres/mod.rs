//! The PostgreSQL room.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use sidegate_policies::api::target::TargetProtocol;

use super::{Conn, Room, RoomContext};
use crate::gate::Gate;
use crate::session::Session;

/// PostgreSQL.
pub struct Postgres;

impl Room for Postgres {
    fn protocol(&self) -> TargetProtocol {
        TargetProtocol::Postgres
    }

    fn name(&self) -> &'static str {
        "postgres"
    }

    fn serve(&self, conn: Conn, _session: Arc<Session>, _gate: Gate, _ctx: RoomContext) -> BoxFuture<'static, ()> {
        async move { drop(conn) }.boxed()
    }
}
