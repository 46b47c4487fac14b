//! The server's side: its bytes through the login, and through queue, mask plan, rows and COPY to an agent that works.
//!
//! Invariants: the session ends when both peers are gone; what the agent hears is whole messages; the lease's secret
//! never reaches it, nor the server where the Target's rule forbids it; a value that stands in a masked column, or in
//! an error about it, never reaches it; and a stream cut into small parts goes the same way.

use bytes::{BufMut, Bytes, BytesMut};
use memchr::memmem;
use sidegate_policies::api::target::WeakLogin;
use sidegate_policies::engine::ConnectFacts;
use sidegate_policies::sql::postgres::catalog::{CatalogBuilder, QUERIES};
use sidegate_policies::wire;
use zeroize::Zeroizing;

use super::super::auth::scram::Salted;
use super::super::auth::upstream::Off;
use super::super::auth::{self, Binding, LoginPlan};
use super::super::codec::{write, ServerScanner};
use super::super::mask::echo::Echo;
use super::super::{login, params};
use super::agent::outline;
use super::answers::{complete, field};
use super::pipe::{drive, Pipe};
use super::world::{world, DATABASE};
use super::{CANARY, PASSWORD};
use crate::credentials::LeaseHandle;

/// Where these 32 bytes stand in what the server says, the nonce of our first SCRAM message comes.
const NONCE: &[u8; 32] = b"client-nonce-client-nonce-client";
/// What the masked statements ask for.
const COLUMNS: &str = "id, email, ssn, note";
/// The first scripts of [`script`] ask for masked columns and nothing else.
const MASKED: u8 = 8;

pub fn run(bytes: &[u8]) {
    let Some((&[mode, bits, asked], said)) = bytes.split_first_chunk::<3>() else {
        return;
    };
    match mode % 3 {
        0 => log_in(bits, usize::from(asked), said),
        1 => {
            let chunks = cut(said, |tag| tag == b'Z');
            play(bits, &script(asked), &chunks);
        }
        // Who is told the canary can say it: that is no leak.
        _ if memmem::find(said, CANARY.as_bytes()).is_some() => {}
        _ => {
            let asked = asked % MASKED;
            let heard = play(bits, &script(asked), &written(said, asked));
            assert!(
                memmem::find(&heard, CANARY.as_bytes()).is_none(),
                "the agent was told a masked value: {}",
                heard.escape_ascii()
            );
        }
    }
}

/// Plays a session, in parts too where the bits say so, and answers what the agent heard.
fn play(bits: u8, batches: &[Vec<u8>], chunks: &[Vec<u8>]) -> Vec<u8> {
    let whole = session(bits, batches, chunks, 0);
    // What waits beside the secret is dropped with it, and how much that is depends on the parts.
    let secret = Echo::new(&[PASSWORD.as_bytes()]).found(&chunks.concat());
    if bits & 16 != 0 && !secret {
        let parts = session(bits, batches, chunks, 1 + usize::from(bits >> 5));
        assert_eq!(
            outline(&parts),
            outline(&whole),
            "the agent is answered otherwise in parts"
        );
    }
    whole
}

fn session(bits: u8, batches: &[Vec<u8>], chunks: &[Vec<u8>], part: usize) -> Vec<u8> {
    let world = world();
    let mut gate = world.gate(bits & 1 != 0);
    let facts = ConnectFacts {
        database: Some(DATABASE.to_owned()),
    };
    gate.connect(&facts).expect("the policy lets the session begin");
    let (agent, server) = (Pipe::default(), Pipe::default());
    let major = if bits & 4 != 0 { 18 } else { 15 };
    let streams = (agent.clone(), BytesMut::new(), server.clone());
    let relay = world.relay(streams, gate, major, &world.plans);
    let (mut batches, mut chunks, mut asked) = (batches.iter(), chunks.iter(), 0);
    let mut more = || {
        let heard = server.with(|side| side.heard.len());
        if heard == asked {
            if let Some(batch) = batches.next() {
                agent.with(|side| side.say.push_back(Bytes::copy_from_slice(batch)));
                return true;
            }
        }
        asked = heard;
        if let Some(chunk) = chunks.next() {
            let part = if part == 0 { chunk.len().max(1) } else { part };
            server.with(|side| side.say.extend(chunk.chunks(part).map(Bytes::copy_from_slice)));
            return true;
        }
        if bits & 8 != 0 {
            return agent.close() || server.close();
        }
        server.close() || agent.close()
    };
    assert!(drive(world, relay.run(), &mut more).is_some(), "the session hangs");
    let heard = agent.heard();
    assert!(
        memmem::find(&heard, PASSWORD.as_bytes()).is_none(),
        "the agent was told the lease's secret"
    );
    outline(&heard);
    heard
}

/// A server's first SCRAM message must go on with the client's nonce, which is random.
fn with_nonce(chunk: &[u8], heard: &[u8]) -> Vec<u8> {
    let mut chunk = chunk.to_vec();
    let sent = memmem::find(heard, b"n=,r=").and_then(|at| heard.get(at + 5..at + 5 + NONCE.len()));
    if let (Some(at), Some(nonce)) = (memmem::find(&chunk, NONCE), sent) {
        chunk[at..at + NONCE.len()].copy_from_slice(nonce);
    }
    chunk
}

/// Bytes of a server, cut behind messages with such a tag; what is no message stays in one piece.
fn cut(said: &[u8], behind: impl Fn(u8) -> bool) -> Vec<Vec<u8>> {
    let (mut chunks, mut from, mut at) = (Vec::new(), 0, 0);
    while let Some((&[tag, a, b, c, d], _)) = said[at..].split_first_chunk::<5>() {
        let next = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_add(at + 1);
        if next > said.len() || next <= at {
            break;
        }
        at = next;
        if behind(tag) {
            chunks.push(said[from..at].to_vec());
            from = at;
        }
    }
    chunks.push(said[from..].to_vec());
    chunks
}

/// What the agent does, a batch of messages after the other.
fn script(asked: u8) -> Vec<Vec<u8>> {
    let masked = format!("select {COLUMNS} from people");
    let query = |text: &str| write::query(text).bytes().to_vec();
    let sync = || write::one(b'S', |_| {}).bytes().to_vec();
    let parse = |text: &str| write::parse("s", text).bytes().to_vec();
    let run = |format: u16, describe: bool, rows: u32| {
        let mut out = BytesMut::new();
        write::frame(&mut out, b'B', |out| {
            out.put_slice(b"\0s\0");
            out.put_slice(&[0, 0, 0, 0]);
            out.put_u16(1);
            out.put_u16(format);
        });
        if describe {
            write::frame(&mut out, b'D', |out| out.put_slice(b"P\0"));
        }
        write::frame(&mut out, b'E', |out| {
            out.put_u8(0);
            out.put_u32(rows);
        });
        out.to_vec()
    };
    let copy = |rest: &str| query(&format!("copy people ({COLUMNS}) to stdout {rest}"));
    match asked % 16 {
        0 => vec![query(&masked)],
        1 => vec![[parse(&masked), run(0, true, 0), sync()].concat()],
        2 => vec![[parse(&masked), sync()].concat(), [run(1, false, 0), sync()].concat()],
        3 => vec![copy("")],
        4 => vec![copy("(format csv, header)")],
        5 => vec![copy("(format binary)")],
        6 => vec![query(&format!("{masked}; {masked}"))],
        7 => vec![[parse(&masked), run(0, false, 2), run(0, false, 2), sync()].concat()],
        8 => vec![
            query("begin"),
            query(&format!("declare c cursor for {masked}")),
            query("fetch 5 from c"),
        ],
        9 => vec![
            query("update orders set note = 'x' where id = 1 returning id, note"),
            query("select 1"),
        ],
        10 => {
            let data = |bytes: &[u8]| write::one(b'd', |out| out.put_slice(bytes)).bytes().to_vec();
            let done = write::one(b'c', |_| {}).bytes().to_vec();
            vec![
                query("copy orders (id, note) from stdin"),
                [data(b"1\ta\n"), done].concat(),
                query("select 2"),
            ]
        }
        11 => vec![
            query("set search_path to app"),
            query("select note from orders"),
            query("reset search_path"),
        ],
        12 => vec![
            query("select note from orders"),
            [parse("select note from orders"), run(0, true, 0), sync()].concat(),
        ],
        13 => vec![
            query(&format!("prepare p as {masked}")),
            query("execute p"),
            query("deallocate p"),
        ],
        14 => vec![
            query("explain select id from people"),
            query("create temp table t (a int)"),
            query("select a from t"),
        ],
        _ => vec![
            [parse("select note from orders where id = $1"), sync()].concat(),
            query("listen c"),
            sync(),
        ],
    }
}

/// The server's messages by a script: each byte chooses one, the bytes behind it fill it in. A chunk ends with every
/// ReadyForQuery. Rows and errors hold the canary.
fn written(said: &[u8], asked: u8) -> Vec<Vec<u8>> {
    let (mut chunks, mut out, mut left) = (Vec::new(), BytesMut::new(), said.iter().copied());
    let binary = asked == 2;
    while let Some(op) = left.next() {
        let mut byte = || left.next().unwrap_or(0);
        match op % 12 {
            0 => description(&mut out, i16::from(binary && byte() & 1 == 0)),
            1 => row(&mut out, usize::from(byte() % 16), &mut byte),
            2 => complete(&mut out, "SELECT 1"),
            3 => {
                let status = [b'I', b'T', b'E', byte()][usize::from(byte() % 4)];
                write::frame(&mut out, b'Z', |out| out.put_u8(status));
                chunks.push(std::mem::take(&mut out).to_vec());
            }
            4 | 5 => {
                let severity = ["ERROR", "FATAL", "NOTICE"][usize::from(byte() % 3)];
                words(&mut out, if op % 12 == 4 { b'E' } else { b'N' }, severity, byte());
            }
            6 | 7 => {
                // Rows and COPY data are for the messages above: here they could say the canary at another place.
                let (tag, length) = (byte(), usize::from(byte() % 64));
                let tag = if matches!(tag, b'D' | b'd') { b'N' } else { tag };
                let payload: Vec<u8> = (0..length).map(|_| byte()).collect();
                write::frame(&mut out, tag, |out| out.put_slice(&payload));
            }
            8 => {
                let tag = b"123nsIt"[usize::from(byte() % 7)];
                write::frame(&mut out, tag, |out| {
                    if tag == b't' {
                        out.put_u16(0)
                    }
                });
            }
            9 => copy_begins(&mut out, asked),
            10 => copied(&mut out, asked, byte(), usize::from(byte())),
            _ => write::frame(&mut out, b'c', |_| {}),
        }
    }
    chunks.push(out.to_vec());
    chunks
}

fn description(out: &mut BytesMut, format: i16) {
    write::frame(out, b'T', |out| {
        out.put_u16(4);
        for (at, (name, kind)) in [("id", 23), ("email", 25), ("ssn", 25), ("note", 25)]
            .into_iter()
            .enumerate()
        {
            field(out, name, (20_000, at as i16 + 1, kind), format);
        }
    });
}

fn cell(out: &mut BytesMut, value: &[u8]) {
    out.put_u32(value.len() as u32);
    out.put_slice(value);
}

fn row(out: &mut BytesMut, length: usize, byte: &mut impl FnMut() -> u8) {
    let note: Vec<u8> = (0..length).map(|_| byte()).collect();
    write::frame(out, b'D', |out| {
        out.put_u16(4);
        for value in [b"\0\0\0\x01".as_slice(), CANARY.as_bytes(), CANARY.as_bytes(), &note] {
            cell(out, value);
        }
    });
}

/// An error or notice that quotes the canary in one of its fields.
fn words(out: &mut BytesMut, tag: u8, severity: &str, place: u8) {
    let fields = b"MDHWqstcdn";
    write::frame(out, tag, |out| {
        for (field, value) in [(b'S', severity), (b'V', severity), (b'C', "23505"), (b'M', "it failed")] {
            out.put_u8(field);
            write::cstr(out, value.as_bytes());
        }
        out.put_u8(fields[usize::from(place) % fields.len()]);
        write::cstr(out, format!("Key (email)=({CANARY}) exists").as_bytes());
        out.put_u8(0);
    });
}

/// CopyOutResponse; where a header was asked for, every server begins with it.
fn copy_begins(out: &mut BytesMut, asked: u8) {
    let format = u8::from(asked == 5);
    write::frame(out, b'H', |out| {
        out.put_slice(&[format, 0, 4, 0, format, 0, format, 0, format, 0, format]);
    });
    if asked == 4 {
        write::frame(out, b'd', |out| out.put_slice(b"id,email,ssn,note\n"));
    }
}

/// One row of COPY data, cut in two.
fn copied(out: &mut BytesMut, asked: u8, kind: u8, cut: usize) {
    let data = match asked {
        5 => {
            let mut data = BytesMut::new();
            if kind & 1 == 0 {
                data.put_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
            }
            if kind & 2 == 0 {
                data.put_u16(4);
                for value in [b"\0\0\0\x01".as_slice(), CANARY.as_bytes(), CANARY.as_bytes(), b"note"] {
                    cell(&mut data, value);
                }
            } else {
                data.put_i16(-1);
            }
            data.to_vec()
        }
        4 if kind & 2 == 0 => format!("1,\"{CANARY}\",{CANARY},\"a\"\"b\"\n").into_bytes(),
        4 => format!("1,{CANARY},,\n").into_bytes(),
        _ if kind & 1 == 0 => format!("1\t{CANARY}\t{CANARY}\tnote\\n\n").into_bytes(),
        _ => format!("\\N\t{CANARY}\\t{CANARY}\t{CANARY}\t\\N\n").into_bytes(),
    };
    let (first, second) = data.split_at(cut % (data.len() + 1));
    for half in [first, second] {
        if !half.is_empty() {
            write::frame(out, b'd', |out| out.put_slice(half));
        }
    }
}

/// Salted passwords at no cost.
struct Here;

impl Off for Here {
    async fn salted(&self, _: Box<dyn FnOnce() -> Salted + Send>) -> Option<Salted> {
        Some(Zeroizing::new(vec![7; 32]))
    }
}

/// The login, then what is asked right behind it: the echo of the pins, the search_path, a catalog.
fn log_in(bits: u8, part: usize, said: &[u8]) {
    let material = match bits & 3 {
        0 | 1 => wire::LeaseMaterial::Password {
            user: "agent".into(),
            password: PASSWORD.into(),
        },
        2 => wire::LeaseMaterial::Bearer {
            user: None,
            token: PASSWORD.into(),
        },
        _ => wire::LeaseMaterial::None {
            user: Some("agent".into()),
        },
    };
    let lease = wire::Lease {
        id: "lease".into(),
        material,
        expires_in: 600,
    };
    let weak = [WeakLogin::Refuse, WeakLogin::InsideTls, WeakLogin::Anywhere][usize::from(bits >> 2) % 3];
    let tls = bits & 16 != 0;
    let world = world();
    let server = Pipe::default();
    let mut stream = server.clone();
    let session = async {
        let Some(lease) = LeaseHandle::new(lease, tokio::time::Instant::now(), 0) else {
            return;
        };
        let parameters = params::upstream(&params::Requested::default(), "agent", "sg:x");
        let plan = LoginPlan {
            parameters: &parameters,
            minor: 2,
            lease: &lease,
            weak,
            binding: Binding {
                tls,
                end_point: (bits & 32 != 0).then(|| vec![1; 32]),
            },
        };
        let mut scanner = ServerScanner::default();
        let Ok(login) = auth::login(&mut stream, &mut scanner, &plan, &Here).await else {
            return;
        };
        let _ = (login.major(), params::echo_holds(&login.reported));
        let mut builder = CatalogBuilder::new(1);
        for (section, sql) in QUERIES {
            let Ok(rows) = login::ask(&mut stream, &mut scanner, sql).await else {
                return;
            };
            let _ = builder.section(section, rows);
        }
        let _ = builder.finish();
    };
    let chunks = cut(said, |_| true);
    let mut chunks = chunks.iter();
    let more = || match chunks.next() {
        Some(chunk) => {
            let chunk = with_nonce(chunk, &server.heard());
            let part = if part == 0 { chunk.len().max(1) } else { part };
            server.with(|side| side.say.extend(chunk.chunks(part).map(Bytes::copy_from_slice)));
            true
        }
        None => server.close(),
    };
    assert!(drive(world, session, more).is_some(), "the login hangs");
    let bearer = bits & 3 == 2;
    if !tls && (bearer || weak != WeakLogin::Anywhere) || (tls && !bearer && weak == WeakLogin::Refuse) {
        let heard = server.heard();
        assert!(
            memmem::find(&heard, PASSWORD.as_bytes()).is_none(),
            "the secret crossed a line it may not"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_told_of_the_secret_whatever_else_ended_the_session() {
        let seed = include_bytes!("../../../../../fuzz/corpus/server/echo-in-parts");
        let [_, bits, asked, said @ ..] = seed;
        let chunks = cut(said, |tag| tag == b'Z');
        for part in [0, 1] {
            let heard = session(*bits, &script(*asked), &chunks, part);
            let told = memmem::find(&heard, b"the answer held a credential");
            assert!(told.is_some(), "{}", heard.escape_ascii());
        }
    }

    #[test]
    fn copy_data_that_nobody_asked_for_does_not_reach_the_agent() {
        let heard = session(0, &script(12), &[b"d\0\0\0\x08data".to_vec()], 0);
        assert!(memmem::find(&heard, b"data").is_none());
        assert!(memmem::find(&heard, b"the target broke the protocol").is_some());
    }

    #[test]
    fn rows_of_a_masked_query_that_nobody_described_do_not_reach_the_agent() {
        let mut said = BytesMut::new();
        row(&mut said, 0, &mut || 0);
        complete(&mut said, "SELECT 1");
        said.put_slice(write::ready(b'I').bytes());
        let heard = session(0, &script(0), &[said.to_vec()], 0);
        assert!(memmem::find(&heard, CANARY.as_bytes()).is_none());
        assert!(memmem::find(&heard, b"rows came before their description").is_some());
    }
}
