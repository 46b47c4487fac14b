//! Bulk rows: how many bytes per second of a large answer reach the client, without a mask and with one of eight
//! columns masked, beside HAProxy and the direct line. The server's rows come out of memory (see `interposer`).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};

use crate::contender::{self, Contender, DATABASE, USER};
use crate::report::{Report, Sample};
use crate::{cpu, interposer, Plan};

const BYTES: u64 = 1 << 30;
const TABLE: &str = "CREATE TABLE bulk_rows (id int, a text, b text, c text, d text, e text, f text, secret text);
    INSERT INTO bulk_rows SELECT g, md5(g::text), md5((g+1)::text), md5((g+2)::text), md5((g+3)::text), md5((g+4)::text),
    md5((g+5)::text), 'plain-' || md5(g::text) FROM generate_series(1, 200) g";

/// Measures the rows `bulk-plain`, `bulk-masked` and, for comparison, `bulk-full` (answers recorded too).
pub fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let server = contender::server()?;
    server.sql(DATABASE, TABLE)?;
    let upstream = interposer::start(server.port, BYTES)?;
    for (row, content, masked) in [
        ("bulk-plain", "Statements", None),
        ("bulk-masked", "Statements", Some("public.bulk_rows.secret")),
        ("bulk-full", "Full", None),
    ] {
        if !plan.wants(row) {
            continue;
        }
        let folder = tempfile::Builder::new().prefix("sidegate-bulk-").tempdir()?;
        let gate = sidegate_tests::ports::free()?;
        contender::configuration(folder.path(), upstream, gate, content, masked)?;
        let running = contender::up(folder.path())?;
        let contenders = [
            Contender {
                name: "direct",
                port: upstream,
                pids: vec![],
            },
            Contender {
                name: "sidegate",
                port: gate,
                pids: vec![running.pid()],
            },
        ];
        for round in 0..plan.rounds {
            for at in 0..contenders.len() {
                let contender = &contenders[(at + round) % contenders.len()];
                let hidden = masked.is_some() && contender.name == "sidegate";
                report.add(row, contender.name, round, slice(contender, hidden)?);
            }
            println!("{row}: round {}/{}", round + 1, plan.rounds);
        }
        report.print_row(row);
    }
    Ok(())
}

/// One query's worth: rate is bytes per second, CPU is microseconds per MB.
fn slice(contender: &Contender, hidden: bool) -> Result<Sample> {
    let mut stream = login(contender.port)?;
    let before = cpu::nanoseconds(&contender.pids)?;
    let start = Instant::now();
    let text = b"SELECT * FROM bulk_rows\0";
    stream.write_all(&[b"Q", &u32::to_be_bytes(text.len() as u32 + 4)[..], text].concat())?;
    let (bytes, first) = drain(&mut stream)?;
    let took = start.elapsed().as_secs_f64();
    let after = cpu::nanoseconds(&contender.pids)?;
    let plain = first.windows(6).any(|window| window == b"plain-");
    ensure!(
        plain != hidden,
        "{}: the secret column is {}masked",
        contender.name,
        if plain { "not " } else { "" }
    );
    ensure!(bytes >= BYTES, "{}: {bytes} bytes are too few", contender.name);
    let megabytes = bytes as f64 / 1e6;
    Ok(Sample {
        rate: bytes as f64 / took,
        cpu_micros: (after - before) as f64 / 1_000.0 / megabytes,
        steal: 0.0,
    })
}

/// A plain login without a password.
fn login(port: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    let mut body = 196_608u32.to_be_bytes().to_vec();
    for word in ["user", USER, "database", DATABASE] {
        body.extend_from_slice(word.as_bytes());
        body.push(0);
    }
    body.push(0);
    stream.write_all(&u32::to_be_bytes(body.len() as u32 + 4))?;
    stream.write_all(&body)?;
    loop {
        let (kind, body) = frame(&mut stream)?;
        match kind {
            b'Z' => return Ok(stream),
            b'E' => bail!("login: {}", String::from_utf8_lossy(&body)),
            _ => {}
        }
    }
}

fn frame(stream: &mut TcpStream) -> Result<(u8, Vec<u8>)> {
    let mut header = [0; 5];
    stream.read_exact(&mut header)?;
    let mut body = vec![0; u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize - 4];
    stream.read_exact(&mut body)?;
    Ok((header[0], body))
}

/// Reads to ReadyForQuery by headers alone; answers all bytes and the first of them.
fn drain(stream: &mut TcpStream) -> Result<(u64, Vec<u8>)> {
    let mut buffer = vec![0; 1 << 20];
    let (mut total, mut filled, mut at) = (0u64, 0usize, 0usize);
    let mut first = Vec::new();
    loop {
        let read = stream.read(&mut buffer[filled..]).context("reading rows")?;
        ensure!(read > 0, "the connection ended within the answer");
        total += read as u64;
        filled += read;
        if first.len() < 4096 {
            first.extend_from_slice(&buffer[..filled.min(4096)]);
        }
        while filled - at >= 5 {
            let header = &buffer[at..at + 5];
            let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize + 1;
            if filled - at < length {
                break;
            }
            match header[0] {
                b'Z' => return Ok((total, first)),
                b'E' => bail!("{}", String::from_utf8_lossy(&buffer[at..at + length])),
                _ => at += length,
            }
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        at = 0;
    }
}
