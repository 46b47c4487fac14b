//! The fence around agents: one nftables table by which only the sidecar's user has a way out of the pod.
//!
//! Owns the command `fence`, which runs in an init container before every agent: it writes the table, becomes somebody
//! who may not leave, and tries to. Refuses, by failing the pod, a kernel that does not take the table and a table that
//! lets anybody out. The invariant: the pod's agents begin only behind a fence that was just seen to hold.

pub mod canary;
mod table;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{setgroups, setresgid, setresuid, Gid, Uid};

pub use table::Table;

/// Where nobody is (RFC 5737): the table answers for it, to everybody.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 90);
/// Its two ports are refused in two ways, which no network would do by chance.
const RESET: u16 = 15_391;
const UNREACHABLE: u16 = 15_392;
const AGREED: [(u16, Errno); 2] = [(RESET, Errno::ECONNREFUSED), (UNREACHABLE, Errno::EHOSTUNREACH)];
/// The table answers at once, and without asking the network.
const AT_ONCE: Duration = Duration::from_millis(500);
/// Who tries to get out: nobody in the pod is this user.
const STRANGER: u32 = 65_533;

/// Why the fence does not stand.
#[derive(Debug, thiserror::Error)]
pub enum Unfenced {
    /// The variable that names those who may leave is missing or wrong.
    #[error("SIDEGATE_FENCE_UIDS: {0}")]
    Users(String),
    /// The kernel does not take the table.
    #[error("the kernel does not take the table: {0}; the node needs nf_tables, and the container NET_ADMIN")]
    Table(io::Error),
    /// It cannot become somebody else.
    #[error("it cannot become user {STRANGER}: {0}; the container needs SETUID and SETGID")]
    Stranger(Errno),
    /// Somebody got out.
    #[error("user {STRANGER} was not stopped on its way to {0}: {1}")]
    Open(String, String),
}

/// What the environment says: users that may leave, separated by commas.
///
/// # Errors
/// None is named, or a word is no user number. User 0 is never let out.
pub fn users(said: Option<&str>) -> Result<Vec<u32>, Unfenced> {
    let wrong = |word: &str| Unfenced::Users(format!("`{word}` is not the number of a user other than 0"));
    let words = said.unwrap_or_default().split(',').map(str::trim);
    let words = words.filter(|word| !word.is_empty());
    let read: Result<Vec<u32>, Unfenced> = words
        .map(|word| word.parse().ok().filter(|uid| *uid > 0).ok_or_else(|| wrong(word)))
        .collect();
    match read?.as_slice() {
        [] => Err(Unfenced::Users("no user is named".to_owned())),
        uids if uids.contains(&STRANGER) => Err(wrong(&STRANGER.to_string())),
        uids => Ok(uids.to_vec()),
    }
}

/// Puts the fence up around the network namespace of this process, gives up every right, and tries to get out.
///
/// # Errors
/// It does not stand, or does not hold.
pub fn raise(users: &[u32]) -> Result<(), Unfenced> {
    Table { users }.write().map_err(Unfenced::Table)?;
    become_stranger().map_err(Unfenced::Stranger)?;
    hold()
}

/// From root to a user without any right; there is no way back.
fn become_stranger() -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(STRANGER), Gid::from_raw(STRANGER));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    // Capabilities go with the user number.
    setresuid(uid, uid, uid)
}

/// Whether every way out is shut: TCP, UDP and DNS, IPv4 and IPv6, the clouds' metadata and identities.
///
/// # Errors
/// The first that is open.
pub fn hold() -> Result<(), Unfenced> {
    if !stands() {
        let what = format!("{NOWHERE}, where the table itself should have answered");
        return Err(Unfenced::Open(what, "it did not".to_owned()));
    }
    let outside: [IpAddr; 4] = [
        Ipv4Addr::new(1, 1, 1, 1).into(),
        Ipv4Addr::new(169, 254, 169, 254).into(),
        Ipv4Addr::new(169, 254, 170, 23).into(),
        Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111).into(),
    ];
    for address in outside {
        for port in [53, 80, 443] {
            let to = SocketAddr::new(address, port);
            shut("TCP", to, TcpStream::connect_timeout(&to, AT_ONCE).map(drop))?;
            shut("UDP", to, sent(to))?;
        }
    }
    Ok(())
}

fn sent(to: SocketAddr) -> io::Result<()> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.send(b"x").map(drop)
}

/// A way is shut if the table refuses it, or there is none; silence could be a packet on its way.
fn shut(how: &str, to: SocketAddr, tried: io::Result<()>) -> Result<(), Unfenced> {
    let why = match tried {
        Err(error) if is_refusal(&error) => return Ok(()),
        Err(error) => error.to_string(),
        Ok(()) => "it went out".to_owned(),
    };
    Err(Unfenced::Open(format!("{to} by {how}"), why))
}

fn is_refusal(error: &io::Error) -> bool {
    let known = [
        Errno::EPERM,
        Errno::EACCES,
        Errno::ECONNREFUSED,
        Errno::EHOSTUNREACH,
        // No route, no such family: there is no way that could be open.
        Errno::ENETUNREACH,
        Errno::EADDRNOTAVAIL,
        Errno::EAFNOSUPPORT,
    ];
    error
        .raw_os_error()
        .is_some_and(|raw| known.contains(&Errno::from_raw(raw)))
}

/// Whether the table stands: it answers for a place where nobody is, in two ways that were agreed on. Whoever asks needs
/// no right, and reads no rule.
pub fn stands() -> bool {
    AGREED.iter().all(|(port, agreed)| {
        let tried = TcpStream::connect_timeout(&SocketAddr::from((NOWHERE, *port)), AT_ONCE);
        let answer = tried.err().and_then(|error| error.raw_os_error());
        answer.map(Errno::from_raw) == Some(*agreed)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_users_that_can_be_told_from_agents_are_let_out() {
        assert_eq!(users(Some("61937, 7")).unwrap(), [61_937, 7]);
        for wrong in [
            None,
            Some(""),
            Some(","),
            Some("root"),
            Some("0"),
            Some("61937,-1"),
            Some("65533"),
        ] {
            assert!(users(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn silence_is_no_refusal() {
        let to: SocketAddr = "1.1.1.1:443".parse().unwrap();
        assert!(shut("TCP", to, Err(io::ErrorKind::TimedOut.into())).is_err());
        assert!(shut("TCP", to, Ok(())).is_err());
        let refused = io::Error::from_raw_os_error(Errno::EPERM as i32);
        assert!(shut("UDP", to, Err(refused)).is_ok());
    }
}
