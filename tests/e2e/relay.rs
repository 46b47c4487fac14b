//! A port that stands for a Service: each connection goes to the next of the servers behind it that takes one.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, Weak};

use anyhow::Result;
use sidegate_tests::ports;

/// What stands for the Service: a port whose connections go to one of these.
pub struct Service {
    /// Where it listens.
    pub port: u16,
    behind: Arc<Mutex<Behind>>,
}

#[derive(Default)]
struct Behind {
    ports: Vec<u16>,
    turn: usize,
    open: Vec<Weak<TcpStream>>,
}

impl Service {
    /// Starts one with nothing behind it.
    pub fn start() -> Result<Service> {
        let port = ports::free()?;
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let behind = Arc::new(Mutex::new(Behind::default()));
        let inside = Arc::clone(&behind);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Some(server) = connect(&inside) {
                    relay(&inside, client, server);
                }
            }
        });
        Ok(Service { port, behind })
    }

    /// From now on these, for whoever comes; whoever is connected stays.
    pub fn only(&self, ports: &[u16]) {
        self.behind.lock().unwrap().ports = ports.to_vec();
    }

    /// From now on these; whoever is connected must come again.
    pub fn to(&self, ports: &[u16]) {
        let mut behind = self.behind.lock().unwrap();
        behind.ports = ports.to_vec();
        for stream in behind.open.drain(..).filter_map(|stream| stream.upgrade()) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn connect(behind: &Mutex<Behind>) -> Option<TcpStream> {
    let mut behind = behind.lock().unwrap();
    for _ in 0..behind.ports.len() {
        behind.turn += 1;
        let port = behind.ports[behind.turn % behind.ports.len()];
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) {
            return Some(stream);
        }
    }
    None
}

fn relay(behind: &Mutex<Behind>, client: TcpStream, server: TcpStream) {
    let (client, server) = (Arc::new(client), Arc::new(server));
    let open = &mut behind.lock().unwrap().open;
    // A connection that is over holds no descriptor: a load makes thousands.
    open.retain(|stream| stream.strong_count() > 0);
    open.push(Arc::downgrade(&client));
    for (from, to) in [(Arc::clone(&client), Arc::clone(&server)), (server, client)] {
        std::thread::spawn(move || copy(&from, &to));
    }
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
