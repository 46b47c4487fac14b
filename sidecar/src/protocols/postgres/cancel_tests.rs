//! A cancel hits the statement it was received for, however the moments fall: the next one is never hit in its place.

#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::io;
use std::pin::{pin, Pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, Bytes, BytesMut};
use sidegate_policies::engine::ConnectFacts;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::cancel::Keys;
use super::codec::write;
use super::fuzzing::answers::Polite;
use super::fuzzing::pipe::Pipe;
use super::fuzzing::world::{world, DATABASE};
use super::relay::Relay;

const FIRST: &str = "SELECT id FROM app.orders";
const SECOND: &str = "SELECT note FROM app.orders";

/// An agent beside whose next message something else happens.
struct Agent {
    pipe: Pipe,
    beside: Option<Box<dyn FnOnce() + Send>>,
}

impl AsyncRead for Agent {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.pipe).poll_read(cx, buf);
        if read.is_ready() {
            if let Some(beside) = self.beside.take() {
                beside();
            }
        }
        read
    }
}

impl AsyncWrite for Agent {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// A session whose first statement is at work, and a way to cancel it.
struct Scene {
    relay: Relay<Agent, Pipe>,
    agent: Pipe,
    server: Pipe,
    ring: Box<dyn Fn() + Send>,
}

impl Scene {
    fn new() -> Scene {
        let mut scene = Scene::quiet(false);
        scene.say(FIRST);
        scene.settle();
        assert!(scene.heard(FIRST));
        scene
    }

    /// Nothing is at work yet. `capped`: answers have a limit.
    fn quiet(capped: bool) -> Scene {
        let world = world();
        let mut gate = world.gate(capped);
        let database = Some(DATABASE.to_owned());
        gate.connect(&ConnectFacts { database }).unwrap();
        let (agent, server) = (Pipe::default(), Pipe::default());
        server.with(|side| (side.polite, side.late) = (Some(Polite::default()), true));
        let stream = Agent {
            pipe: agent.clone(),
            beside: None,
        };
        let mut relay = world.relay((stream, BytesMut::new(), server.clone()), gate, 15, &Arc::default());
        let keys = Arc::new(Keys::default());
        let held = keys.issue(0).unwrap();
        let (id, key) = held.parts();
        relay.key = Some(held);
        relay.server_key = Some((1, Bytes::from_static(b"its own")));
        let ring = Box::new(move || assert!(keys.cancel(id, &key, Instant::now())));
        Scene {
            relay,
            agent,
            server,
            ring,
        }
    }

    fn say(&self, text: &str) {
        self.send(write::query(text).bytes());
    }

    /// Says the text as an extended query with its Sync.
    fn extended(&self, text: &str) {
        let bind = write::one(b'B', |out| out.put_slice(&[0; 8]));
        let execute = write::one(b'E', |out| out.put_slice(&[0; 5]));
        for frame in [write::parse("", text), bind, execute, write::sync()] {
            self.send(frame.bytes());
        }
    }

    fn send(&self, bytes: &Bytes) {
        self.agent.with(|side| side.say.push_back(bytes.clone()));
    }

    /// Lets the session do what it can until it waits for a peer.
    fn settle(&mut self) {
        let _inside = world().runtime.enter();
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            let mut turn = pin!(tokio::task::unconstrained(self.relay.turn()));
            // A turn may yield once before it waits.
            let first = turn.as_mut().poll(&mut cx);
            let polled = if first.is_pending() { turn.poll(&mut cx) } else { first };
            match polled {
                Poll::Ready(done) => done.unwrap(),
                Poll::Pending => return,
            }
        }
    }

    fn heard(&self, text: &str) -> bool {
        let heard = self.server.heard();
        heard.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

#[test]
fn a_request_that_comes_as_the_next_statement_is_read_hits_neither() {
    let Scene {
        mut relay,
        agent,
        server,
        ring,
    } = Scene::new();
    // The server answers the first; the agent sends the second; a request for the first comes between the two.
    relay.agent.beside = Some(ring);
    let ring = Box::new(|| ());
    let mut scene = Scene {
        relay,
        agent,
        server,
        ring,
    };
    assert!(scene.server.answer());
    scene.say(SECOND);
    scene.settle();
    assert!(scene.heard(SECOND));
    assert!(scene.relay.cancelling.is_none(), "the second statement is cancelled");
}

#[test]
fn nothing_follows_while_a_cancel_is_on_its_way() {
    let mut scene = Scene::new();
    (scene.ring)();
    scene.settle();
    assert!(scene.relay.cancelling.is_some());
    let (done, waiting) = tokio::sync::oneshot::channel();
    scene.relay.cancelling = Some(waiting);
    // The first ends by itself: what is on its way could hit whatever comes next.
    assert!(scene.server.answer());
    scene.say(SECOND);
    scene.settle();
    assert!(!scene.heard(SECOND), "the next statement runs into the cancel");
    done.send(()).unwrap();
    scene.settle();
    assert!(scene.heard(SECOND));
}

#[test]
fn what_stands_behind_a_capped_statement_waits_for_its_end() {
    // A limit is kept by a cancel, which hits whatever runs when the server hears of it.
    for say in [Scene::say, Scene::extended] {
        for (capped, waits) in [(true, true), (false, false)] {
            let mut scene = Scene::quiet(capped);
            say(&scene, FIRST);
            say(&scene, SECOND);
            scene.settle();
            assert!(scene.heard(FIRST));
            assert_eq!(scene.heard(SECOND), !waits, "capped: {capped}");
            assert!(scene.server.answer());
            scene.settle();
            // What cancels it, where its answer was too long, ends in its own time.
            scene.relay.cancelling = None;
            scene.settle();
            assert!(scene.heard(SECOND));
        }
    }
}
