//! The raw TCP room.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use sidegate_policies::api::target::TargetProtocol;

use super::{Conn, Room, RoomContext};
use crate::gate::Gate;
use crate::session::Session;

/// Raw TCP.
pub struct Tcp;

impl Room for Tcp {
    fn protocol(&self) -> TargetProtocol {
        TargetProtocol::Tcp
    }

    fn name(&self) -> &'static str {
        "tcp"
    }

    fn serve(&self, conn: Conn, _session: Arc<Session>, _gate: Gate, _ctx: RoomContext) -> BoxFuture<'static, ()> {
        async move { drop(conn) }.boxed()
    }
}
