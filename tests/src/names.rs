//! A DNS double: answers every A question with the addresses a test gave for that name, NXDOMAIN for others.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};

use anyhow::Result;

/// A running name server, for as long as the process lives.
pub struct NameServer {
    /// Where it listens.
    pub address: SocketAddr,
    names: Arc<Mutex<HashMap<String, Vec<Ipv4Addr>>>>,
}

impl NameServer {
    /// Starts it on 127.0.0.1.
    pub fn start() -> Result<NameServer> {
        NameServer::at((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Starts it on an address.
    pub fn at(address: SocketAddr) -> Result<NameServer> {
        let socket = UdpSocket::bind(address)?;
        let address = socket.local_addr()?;
        let names: Arc<Mutex<HashMap<String, Vec<Ipv4Addr>>>> = Arc::default();
        let table = names.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if let Some(answer) = answer(&buffer[..length], &table.lock().expect("names")) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Ok(NameServer { address, names })
    }

    /// Sets a name's addresses.
    pub fn set(&self, name: &str, addresses: &[Ipv4Addr]) {
        self.names
            .lock()
            .expect("names")
            .insert(name.to_ascii_lowercase(), addresses.to_vec());
    }
}

fn answer(question: &[u8], names: &HashMap<String, Vec<Ipv4Addr>>) -> Option<Vec<u8>> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let wants_a = question.get(at..at + 2)? == [0, 1];
    let addresses = names.get(&labels.join("."));
    let found = addresses.filter(|_| wants_a).map(Vec::as_slice).unwrap_or_default();
    let mut reply = question.get(..2)?.to_vec();
    reply.extend_from_slice(&[
        0x81,
        if addresses.is_some() { 0x80 } else { 0x83 },
        0,
        1,
        0,
        found.len() as u8,
        0,
        0,
        0,
        0,
    ]);
    reply.extend_from_slice(question.get(12..at + 4)?);
    for address in found {
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        reply.extend_from_slice(&address.octets());
    }
    Some(reply)
}
