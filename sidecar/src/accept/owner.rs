//! Whose socket is at the other end: the kernel's answer, by exact 4-tuple (socket diagnostics).
//!
//! Works for peers of this network namespace only, which is where agents are. A question the kernel cannot answer is
//! an error; where the owner is checked, an error closes the connection.

use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload, NLM_F_REQUEST};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

/// An answer is far smaller.
const ANSWER: usize = 8192;

/// The user id that owns the socket whose local address is `peer` and whose remote address is `local`.
pub fn owner(peer: SocketAddr, local: SocketAddr) -> io::Result<u32> {
    let socket = netlink_sys::Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    let request = request(peer, local);
    socket.send(&request, 0)?;
    let mut answer = Vec::with_capacity(ANSWER);
    socket.recv(&mut answer, 0)?;
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    let message = NetlinkMessage::<SockDiagMessage>::deserialize(&answer).map_err(invalid)?;
    match message.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => Ok(response.header.uid),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn request(peer: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let family = if peer.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let question = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: peer.port(),
            destination_port: local.port(),
            source_address: peer.ip(),
            destination_address: local.ip(),
            interface_id: 0,
            // No cookie: any socket with these addresses.
            cookie: [0xff; 8],
        },
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(question).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pod_5_the_kernel_names_the_owner_of_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(address) else {
                continue; // no IPv6 here
            };
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, peer) = listener.accept().unwrap();
            let uid = owner(peer, accepted.local_addr().unwrap()).unwrap();
            assert_eq!(uid, nix::unistd::getuid().as_raw());
            drop(client);
        }
    }

    #[test]
    fn pod_5_nobody_owns_what_does_not_exist() {
        let nowhere = "127.0.0.1:1".parse().unwrap();
        assert!(owner(nowhere, nowhere).is_err());
    }
}
