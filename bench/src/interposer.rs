//! A server that never is the bottleneck: it relays to a real PostgreSQL, so that login, catalog and description are
//! real, and multiplies the rows of the bulk query out of memory.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use anyhow::Result;

/// A query that holds this word is answered in bulk.
pub const MARK: &[u8] = b"bulk_rows";

/// Starts the relay; answers its port. It lives as long as the process.
pub fn start(server: u16, bytes: u64) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || relay(client, server, bytes));
        }
    });
    Ok(port)
}

fn relay(client: TcpStream, server: u16, bytes: u64) -> Option<()> {
    let server = TcpStream::connect(("127.0.0.1", server)).ok()?;
    client.set_nodelay(true).ok()?;
    server.set_nodelay(true).ok()?;
    let bulk = Arc::new(AtomicBool::new(false));
    let (mut from_client, mut to_server, seen) = (client.try_clone().ok()?, server.try_clone().ok()?, bulk.clone());
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read) = from_client.read(&mut buffer) {
            let part = &buffer[..read];
            if read == 0 {
                break;
            }
            if part.windows(MARK.len()).any(|window| window == MARK) {
                seen.store(true, Ordering::Release);
            }
            if to_server.write_all(part).is_err() {
                break;
            }
        }
        let _ = to_server.shutdown(std::net::Shutdown::Write);
    });
    answers(server, client, &bulk, bytes)
}

/// Server to client: frames pass; the data rows of a bulk answer are collected and sent many times.
fn answers(mut server: TcpStream, mut client: TcpStream, bulk: &AtomicBool, bytes: u64) -> Option<()> {
    let mut rows = Vec::new();
    let mut frame = Vec::new();
    loop {
        let mut header = [0; 5];
        server.read_exact(&mut header).ok()?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        frame.clear();
        frame.extend_from_slice(&header);
        frame.resize(length + 1, 0);
        server.read_exact(frame.get_mut(5..)?).ok()?;
        match header[0] {
            b'D' if bulk.load(Ordering::Acquire) => rows.extend_from_slice(&frame),
            b'C' if !rows.is_empty() => {
                bulk.store(false, Ordering::Release);
                multiply(&mut client, &rows, bytes)?;
                rows.clear();
                client.write_all(&frame).ok()?;
            }
            _ => client.write_all(&frame).ok()?,
        }
    }
}

fn multiply(client: &mut TcpStream, rows: &[u8], bytes: u64) -> Option<()> {
    let block = rows.repeat((256 << 10) / rows.len() + 1);
    let mut sent = 0;
    while sent < bytes {
        client.write_all(&block).ok()?;
        sent += block.len() as u64;
    }
    Some(())
}
