//! The agent's side: its bytes through start-up and relay, against a polite server.
//!
//! Invariants: the session ends when both peers are gone; what reaches the server is whole messages of kinds that are
//! ever forwarded, each one the agent's own bytes or one of ours; no text that leaves holds a command that no rule
//! allows; the lease's secret never reaches the agent; and a stream cut into small parts goes the same way.

use std::sync::Arc;

use bytes::BytesMut;
use memchr::memmem;
use sidegate_policies::api::access_policy::SqlCommand;
use sidegate_policies::engine::ConnectFacts;
use sidegate_policies::sql::postgres::{analyse, Options};

use super::super::codec::{parse, AgentScanner, Frame, Scan};
use super::super::conversation::Conversation;
use super::super::params;
use super::super::plans::PlanCache;
use super::super::startup::{self, Opened};
use super::super::stream::AgentStream;
use super::answers::{Polite, POISON};
use super::pipe::{drive, Pipe};
use super::world::{world, World, DATABASE};
use super::PASSWORD;

/// Commands that no rule of the bundle allows.
const NEVER: [SqlCommand; 9] = [
    SqlCommand::Drop,
    SqlCommand::Alter,
    SqlCommand::Truncate,
    SqlCommand::Grant,
    SqlCommand::Revoke,
    SqlCommand::Copy,
    SqlCommand::Do,
    SqlCommand::Call,
    SqlCommand::Comment,
];

/// Rows above this are passed on in parts.
const STREAMED: usize = 64 * 1024;

/// How a session is played.
#[derive(Clone, Copy)]
struct Play {
    capped: bool,
    logged_in: bool,
    late: bool,
    major: u32,
    /// Bytes the agent says at once; 0: everything.
    part: usize,
}

/// What both sides heard.
struct Heard {
    agent: Vec<u8>,
    server: Vec<u8>,
    /// Everything the agent said was answered before it hung up. Whoever says goodbye, or breaks the protocol, behind a
    /// question may or may not hear its answer.
    answered: bool,
}

pub fn run(bytes: &[u8]) {
    let Some((&[bits, part], said)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let play = Play {
        capped: bits & 1 != 0,
        logged_in: bits & 2 != 0,
        major: if bits & 4 != 0 { 18 } else { 15 },
        late: bits & 8 != 0,
        part: 0,
    };
    let plans = Arc::default();
    let Some(whole) = session(play, said, &plans) else {
        return;
    };
    checked(&whole, said, play.major);
    if bits & 16 != 0 {
        let part = usize::from(part).max(1);
        let parts = session(Play { part, ..play }, said, &plans);
        let parts = parts.expect("a session of the same bytes in parts");
        outline(&parts.agent);
        if !parts.answered || !whole.answered {
            return;
        }
        assert_eq!(
            texts(&parts.server),
            texts(&whole.server),
            "the server hears something else when the agent's bytes come in parts"
        );
        // Refusals carry an id of their own, so the words differ, and their lengths do not.
        assert_eq!(
            outline(&parts.agent),
            outline(&whole.agent),
            "the agent is answered otherwise in parts"
        );
    }
}

/// Plays a session; None: it ended before its login.
fn session(play: Play, said: &[u8], plans: &Arc<PlanCache>) -> Option<Heard> {
    let world = world();
    let agent = Pipe::saying(said, play.part);
    let mut gate = world.gate(play.capped);
    let (stream, rest, database) = if play.logged_in {
        (agent.clone(), BytesMut::new(), DATABASE.to_owned())
    } else {
        log_in(world, &agent)?
    };
    gate.connect(&ConnectFacts {
        database: Some(database),
    })
    .ok()?;
    let server = Pipe::default();
    server.with(|side| {
        side.polite = Some(Polite::default());
        side.late = play.late;
    });
    let relay = world.relay((stream, rest, server.clone()), gate, play.major, plans);
    let more = || server.answer() || agent.close() || server.close();
    assert!(drive(world, relay.run(), more).is_some(), "the session hangs");
    Some(Heard {
        agent: agent.heard(),
        server: server.heard(),
        answered: agent.with(|side| side.closed),
    })
}

/// Start-up up to where a lease would be asked for.
fn log_in(world: &World, agent: &Pipe) -> Option<(Pipe, BytesMut, String)> {
    let acceptor = world.ctx.tls.acceptor(Some(b"postgresql"));
    let opened = drive(world, startup::open(agent.clone(), &acceptor), || agent.close());
    let Ok(Opened::Session { stream, startup, rest }) = opened.expect("the start-up hangs") else {
        return None;
    };
    let AgentStream::Plain(stream) = stream else {
        return None;
    };
    let requested = params::judge(&startup, &[DATABASE.to_owned()]).ok()?;
    let _ = startup::negotiate(&startup, &requested.unknown_options);
    for (name, value) in params::upstream(&requested, "agent", "sg:agents/support:0") {
        assert!(!name.contains('\0') && !value.contains('\0'), "a parameter ends early");
    }
    agent.with(|side| side.heard.clear());
    Some((stream, rest, requested.database))
}

fn checked(heard: &Heard, said: &[u8], major: u32) {
    assert!(
        memmem::find(&heard.agent, PASSWORD.as_bytes()).is_none(),
        "the agent was told the lease's secret"
    );
    outline(&heard.agent);
    let mut scanner = AgentScanner::default();
    scanner.buffer().extend_from_slice(&heard.server);
    loop {
        match scanner.next().expect("what leaves is messages") {
            Scan::Frame(frame) => forwarded(&frame, said, major),
            Scan::More => break,
            Scan::TooLong { .. } => panic!("a message above its limit left"),
        }
    }
    assert_eq!(scanner.waiting(), 0, "half a message left");
}

fn forwarded(frame: &Frame, said: &[u8], major: u32) {
    let tag = frame.tag();
    assert!(b"QPBEDCHSdcfX".contains(&tag), "{:?} left", char::from(tag));
    let text = match tag {
        b'Q' => parse::decode_query(frame).expect("a query leaves whole").to_vec(),
        b'P' => parse::decode(frame).expect("a Parse leaves whole").text.to_vec(),
        _ => Vec::new(),
    };
    let text = std::str::from_utf8(&text).expect("what leaves is UTF-8");
    let ours = text.starts_with(POISON)
        || text == "SHOW search_path"
        || text.contains("application_name TO 'sg:")
        || b"HDX".contains(&tag);
    assert!(
        ours || memmem::find(said, frame.bytes()).is_some(),
        "{:?} left, which the agent did not say: {text}",
        char::from(tag)
    );
    let options = Options {
        server_major: major,
        standard_conforming_strings: true,
    };
    let view = Conversation::new(DATABASE, "agent", "app", b'I');
    let facts = analyse(text, &options, &world().catalog, &view).facts;
    let never = NEVER.into_iter().find(|command| facts.commands.contains(*command));
    assert!(never.is_none(), "{never:?} left: {text}");
}

/// The statements a server heard. Ours are left out: whether they are needed depends on what is in flight.
fn texts(heard: &[u8]) -> Vec<Frame> {
    let mut scanner = AgentScanner::default();
    scanner.buffer().extend_from_slice(heard);
    let mut texts = Vec::new();
    while let Ok(Scan::Frame(frame)) = scanner.next() {
        let ours = [POISON, "SHOW search_path"].map(|text| memmem::find(frame.payload(), text.as_bytes()).is_some());
        if b"QP".contains(&frame.tag()) && ours == [false, false] {
            texts.push(frame);
        }
    }
    texts
}

/// Tags and lengths of the messages an agent heard; they must be whole, but for a long row in whose middle the server
/// went away.
pub fn outline(heard: &[u8]) -> Vec<(u8, usize)> {
    let (mut outline, mut rest) = (Vec::new(), heard);
    while let Some((&[tag, a, b, c, d], _)) = rest.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([a, b, c, d]) as usize + 1;
        let streamed = matches!(tag, b'D' | b'd') && length > STREAMED;
        assert!(
            length >= 5 && (length <= rest.len() || streamed),
            "the agent hears half a message"
        );
        outline.push((tag, length));
        rest = rest.get(length..).unwrap_or_default();
    }
    assert!(rest.is_empty(), "the agent hears half a message");
    outline
}
