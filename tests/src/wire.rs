//! A raw PostgreSQL client: sends exactly the messages a test wants, in exactly the pieces it wants, and reads frames
//! as they come. For what no driver would do, and for comparing the gate with the server message by message.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};

/// One message from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type byte.
    pub kind: u8,
    /// Its body.
    pub body: Vec<u8>,
}

impl Frame {
    /// A field of an ErrorResponse or NoticeResponse.
    pub fn field(&self, code: u8) -> Option<String> {
        let mut fields = self.body.split(|byte| *byte == 0);
        fields
            .find(|field| field.first() == Some(&code))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
    }
}

/// A connection after login.
pub struct Wire {
    stream: TcpStream,
    /// Every byte ever received, for canary scans.
    pub received: Vec<u8>,
    /// ParameterStatus values of the login.
    pub parameters: Vec<(String, String)>,
    /// BackendKeyData of the login: process id and key.
    pub key: Option<(u32, Vec<u8>)>,
}

/// A message: type byte, length, body.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn text(value: &str) -> Vec<u8> {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// Query.
pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &text(sql))
}

/// Parse.
pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[text(name), text(sql), vec![0, 0]].concat())
}

/// Bind with text parameters and one result format for all columns.
pub fn bind(portal: &str, statement: &str, values: &[Option<&str>], result_format: u16) -> Vec<u8> {
    let mut body = [text(portal), text(statement), vec![0, 0]].concat();
    body.extend_from_slice(&(values.len() as u16).to_be_bytes());
    for value in values {
        match value {
            Some(value) => {
                body.extend_from_slice(&(value.len() as u32).to_be_bytes());
                body.extend_from_slice(value.as_bytes());
            }
            None => body.extend_from_slice(&(-1i32).to_be_bytes()),
        }
    }
    body.extend_from_slice(&1u16.to_be_bytes());
    body.extend_from_slice(&result_format.to_be_bytes());
    message(b'B', &body)
}

/// Describe a portal (`P`) or statement (`S`).
pub fn describe(what: u8, name: &str) -> Vec<u8> {
    message(b'D', &[vec![what], text(name)].concat())
}

/// Execute; 0 rows means all.
pub fn execute(portal: &str, rows: u32) -> Vec<u8> {
    message(b'E', &[text(portal), rows.to_be_bytes().to_vec()].concat())
}

/// Sync.
pub fn sync() -> Vec<u8> {
    message(b'S', &[])
}

/// A StartupMessage of protocol `minor` of major 3.
pub fn startup(minor: u16, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = (3u32 << 16 | u32::from(minor)).to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend_from_slice(&text(name));
        body.extend_from_slice(&text(value));
    }
    body.push(0);
    [(body.len() as u32 + 4).to_be_bytes().to_vec(), body].concat()
}

/// A CancelRequest for this process id and key.
pub fn cancel_request(id: u32, key: &[u8]) -> Vec<u8> {
    let body = [&80_877_102u32.to_be_bytes()[..], &id.to_be_bytes(), key].concat();
    [&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat()
}

/// Sends a CancelRequest on a connection of its own and waits until the other side closes it.
pub fn cancel(port: u16, id: u32, key: &[u8]) -> Result<()> {
    let mut wire = Wire::dial(port)?;
    wire.send(&cancel_request(id, key))?;
    ensure!(wire.receive()?.is_none(), "a cancel request is answered by closing");
    Ok(())
}

/// The first error in an answer: its SQLSTATE.
pub fn state(frames: &[Frame]) -> Option<String> {
    frames.iter().find(|frame| frame.kind == b'E')?.field(b'C')
}

/// How many messages of this kind an answer has.
pub fn number(frames: &[Frame], kind: u8) -> usize {
    frames.iter().filter(|frame| frame.kind == kind).count()
}

impl Wire {
    /// Connects without a login.
    pub fn dial(port: u16) -> Result<Wire> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Wire {
            stream,
            received: Vec::new(),
            parameters: Vec::new(),
            key: None,
        })
    }

    /// Connects and logs in, without a password.
    pub fn login(port: u16, database: &str) -> Result<Wire> {
        Wire::login_as(port, database, 0)
    }

    /// Connects and logs in with protocol 3.`minor`.
    pub fn login_as(port: u16, database: &str, minor: u16) -> Result<Wire> {
        let mut wire = Wire::dial(port)?;
        wire.send(&startup(minor, &[("user", "whoever"), ("database", database)]))?;
        wire.finish_login()?;
        Ok(wire)
    }

    /// Reads to the first ReadyForQuery. A connection that ends before it, without a word, is no login: a listener that
    /// closes resets what waits in its backlog.
    pub fn finish_login(&mut self) -> Result<()> {
        let frames = self.until_ready()?;
        if frames.last().is_none_or(|last| !matches!(last.kind, b'E' | b'Z')) {
            bail!("the stream ended within the login: {:?}", shape(&frames));
        }
        for frame in frames {
            match frame.kind {
                b'E' => bail!("login refused: {}", frame.field(b'M').unwrap_or_default()),
                b'S' => {
                    let mut parts = frame
                        .body
                        .split(|byte| *byte == 0)
                        .map(|part| String::from_utf8_lossy(part).into_owned());
                    self.parameters
                        .push((parts.next().unwrap_or_default(), parts.next().unwrap_or_default()));
                }
                b'K' => {
                    let (id, key) = frame.body.split_at_checked(4).context("BackendKeyData")?;
                    self.key = Some((u32::from_be_bytes(id.try_into()?), key.to_vec()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Sends bytes one by one.
    pub fn send_split(&mut self, bytes: &[u8]) -> Result<()> {
        bytes.iter().try_for_each(|byte| self.send(&[*byte]))
    }

    /// The next message; None at the end of the stream.
    pub fn receive(&mut self) -> Result<Option<Frame>> {
        let mut header = [0; 5];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error).context("waiting for a message"),
        }
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut body = vec![0; length.checked_sub(4).context("a length below 4")?];
        self.stream.read_exact(&mut body)?;
        self.received.extend_from_slice(&header);
        self.received.extend_from_slice(&body);
        Ok(Some(Frame { kind: header[0], body }))
    }

    /// Messages up to and including ReadyForQuery, or up to the end of the stream.
    pub fn until_ready(&mut self) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.receive()? {
            let last = frame.kind == b'Z';
            frames.push(frame);
            if last {
                break;
            }
        }
        Ok(frames)
    }

    /// Messages up to and including the first of this kind; its absence is an error.
    pub fn until(&mut self, kind: u8) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.receive()? {
            let last = frame.kind == kind;
            frames.push(frame);
            if last {
                return Ok(frames);
            }
        }
        bail!("the stream ended before {:?}: {:?}", char::from(kind), shape(&frames))
    }

    /// Whether the session still works: one statement and its answer.
    pub fn alive(&mut self) -> Result<bool> {
        Ok(shape(&self.ask(&[query("SELECT 1")])?) == ["T", "D", "C SELECT 1", "Z I"])
    }

    /// Sends messages and reads to ReadyForQuery.
    pub fn ask(&mut self, messages: &[Vec<u8>]) -> Result<Vec<Frame>> {
        self.send(&messages.concat())?;
        self.until_ready()
    }
}

/// The shape of an answer: type bytes in order, errors with their SQLSTATE, ReadyForQuery with its status, command
/// tags in full; what a client's state machine sees.
pub fn shape(frames: &[Frame]) -> Vec<String> {
    let describe = |frame: &Frame| match frame.kind {
        b'E' => format!("E {}", frame.field(b'C').unwrap_or_default()),
        b'Z' => format!("Z {}", String::from_utf8_lossy(&frame.body)),
        b'C' => format!("C {}", String::from_utf8_lossy(&frame.body).trim_end_matches('\0')),
        kind => (kind as char).to_string(),
    };
    frames.iter().map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_just_ends_is_no_login() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // In the backlog when the listener goes: the kernel resets it.
        let mut reset = Wire::dial(port).unwrap();
        drop(listener);
        assert!(reset.finish_login().is_err());
    }
}
