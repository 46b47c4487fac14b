//! The table as netlink messages: the image has no `nft`, and needs none.
//!
//! Refuses nothing by itself: the kernel does, and each message's answer is read. The invariant: the table is written in
//! one transaction that replaces whatever was called so before; half a fence never stands.

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{
    DefaultNla, NetlinkHeader, NetlinkMessage, NetlinkPayload, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook, HookNumber, Immediate,
    InetHookNumber, ListAttribute, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute,
    RuleMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{NOWHERE, RESET, UNREACHABLE};

const TABLE: &str = "sidegate";
const CHAIN: &str = "out";
/// Of the kernel's `nf_tables.h` and `netfilter.h`.
const ACCEPT: u32 = 1;
const DROP: u32 = 0;
const SUBSYSTEM: u16 = 10;
const LOOPBACK: u16 = 772;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;
const CT_DIRECTION: u32 = 1;
const CT_MARK: u32 = 3;
/// What connections of the sidecar's user are marked with: their last packets have no owner any more.
const MARK: u32 = 0x51d;
/// Router and neighbour discovery and group membership, which the kernel itself sends.
const KERNELS: [u8; 7] = [130, 131, 132, 133, 135, 136, 143];

/// The fence.
pub struct Table<'a> {
    /// Who may leave the pod.
    pub users: &'a [u32],
}

type Rule = Vec<Expressions>;

impl Table<'_> {
    /// Writes it, in place of an older one.
    ///
    /// # Errors
    /// What the kernel says to the first message that it does not take.
    pub fn write(&self) -> io::Result<()> {
        let mut socket = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        let messages = self.messages();
        let mut bytes = Vec::new();
        for (at, (message, flags)) in messages.into_iter().enumerate() {
            bytes.extend(serialized(message, flags, u32::try_from(at).unwrap_or(u32::MAX)));
        }
        socket.send(&bytes, 0)?;
        let mut wanted = self.rules().len().saturating_add(4);
        while wanted > 0 {
            let mut answer = Vec::with_capacity(8_192);
            socket.recv(&mut answer, 0)?;
            let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
            let message = NetlinkMessage::<NetfilterMessage>::deserialize(&answer).map_err(invalid)?;
            match message.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) => wanted = wanted.saturating_sub(1),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Ok(())
    }

    fn messages(&self) -> Vec<(NetfilterMessageInner, u16)> {
        let table = || TableMessage {
            attributes: vec![TableAttribute::Name(TABLE.to_owned())],
        };
        let made = NLM_F_ACK | NLM_F_CREATE;
        let mut all: Vec<(NetfilterMessageInner, u16)> = vec![
            (ControlMessage::BatchBegin.into(), 0),
            // Made first, so that there is one to delete: a fence of an earlier start goes in the same transaction.
            (NfTablesMessage::NewTable(table()).into(), made),
            (NfTablesMessage::DeleteTable(table()).into(), NLM_F_ACK),
            (NfTablesMessage::NewTable(table()).into(), made),
            (NfTablesMessage::NewChain(chain()).into(), made),
        ];
        for rule in self.rules() {
            let expressions = rule.into_iter().map(ListAttribute::<ExpressionAttribute>::from);
            let rule = RuleMessage {
                attributes: vec![
                    RuleAttribute::Table(TABLE.to_owned()),
                    RuleAttribute::Chain(CHAIN.to_owned()),
                    RuleAttribute::Expressions(expressions.collect()),
                ],
            };
            all.push((NfTablesMessage::NewRule(rule).into(), made | NLM_F_APPEND));
        }
        all.push((ControlMessage::BatchEnd.into(), 0));
        all
    }

    /// In this order; what none of them takes is refused by the last two.
    fn rules(&self) -> Vec<Rule> {
        let mut rules = vec![
            [meta(MetaKey::Oiftype, &LOOPBACK.to_ne_bytes()), vec![accept()]].concat(),
            canary(RESET, reset()),
            canary(UNREACHABLE, prohibited()),
        ];
        for user in self.users {
            let owner = meta(MetaKey::SocketUserId, &user.to_ne_bytes());
            rules.push([owner, marked(), vec![accept()]].concat());
        }
        // Replies to whoever called the agent.
        rules.push([conntrack(CT_DIRECTION, &[1]), vec![accept()]].concat());
        // Whoever else sends, on the users' own connections too: an agent may take a port that they have left (test
        // `nobody_sends_on_a_connection_that_the_sidecar_made`).
        rules.push([owned(), meta(MetaKey::L4Proto, &[TCP]), vec![reset()]].concat());
        rules.push([owned(), vec![prohibited()]].concat());
        // What the kernel itself ends their connections with.
        rules.push([conntrack(CT_MARK, &MARK.to_ne_bytes()), vec![accept()]].concat());
        for kind in KERNELS {
            let kind = payload(2, 0, &[kind]);
            let icmp = [meta(MetaKey::Nfproto, &[IPV6]), meta(MetaKey::L4Proto, &[ICMPV6])].concat();
            rules.push([icmp, kind, vec![accept()]].concat());
        }
        rules.push([meta(MetaKey::L4Proto, &[TCP]), vec![reset()]].concat());
        rules.push(vec![prohibited()]);
        rules
    }
}

/// On everything that leaves, and what no rule takes is dropped.
fn chain() -> ChainMessage {
    ChainMessage {
        attributes: vec![
            ChainAttribute::Table(TABLE.to_owned()),
            ChainAttribute::Name(CHAIN.to_owned()),
            ChainAttribute::Hook(vec![
                Hook::Number(HookNumber::Inet(InetHookNumber::LocalOut)),
                Hook::Priority(0),
            ]),
            ChainAttribute::Policy(DROP),
            ChainAttribute::Type("filter".to_owned()),
        ],
    }
}

fn serialized(message: NetfilterMessageInner, flags: u16, sequence: u32) -> Vec<u8> {
    let (family, resource) = match &message {
        NetfilterMessageInner::None(_) => (NetfilterProtoFamily::Unspec, SUBSYSTEM),
        _ => (NetfilterProtoFamily::Inet, 0),
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, resource), message);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn equals(bytes: &[u8]) -> Expressions {
    compared(Operator::Equal, bytes)
}

fn compared(how: Operator, bytes: &[u8]) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(how),
        Cmp::Data(DataAttribute::Value(bytes.to_vec())),
    ])
}

fn meta(key: MetaKey, value: &[u8]) -> Rule {
    vec![loaded(key), equals(value)]
}

fn loaded(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![Meta::DestinationRegister(Register::Reg1), Meta::Key(key)])
}

/// Sent by a process, whosever it is: what has no owner is none of these.
fn owned() -> Rule {
    let anybody = compared(Operator::GreatherThanEqual, &0_u32.to_ne_bytes());
    vec![loaded(MetaKey::SocketUserId), anybody]
}

/// Bytes of a packet: base 1 is the network's header, 2 the transport's.
fn payload(base: u32, offset: u32, value: &[u8]) -> Rule {
    let load = Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(u32::try_from(value.len()).unwrap_or(0)),
    ]);
    vec![load, equals(value)]
}

fn other(name: &str, attributes: Vec<(u16, Vec<u8>)>) -> Expressions {
    let attributes = attributes.into_iter().map(|(kind, value)| DefaultNla::new(kind, value));
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes: attributes.collect(),
    }
}

fn conntrack(key: u32, value: &[u8]) -> Rule {
    let load = other("ct", vec![(1, register()), (2, key.to_be_bytes().to_vec())]);
    vec![load, equals(value)]
}

/// Marks the connection.
fn marked() -> Rule {
    let mark = Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Reg1),
        Immediate::Data(DataAttribute::Value(MARK.to_ne_bytes().to_vec())),
    ]);
    let set = other("ct", vec![(2, CT_MARK.to_be_bytes().to_vec()), (4, register())]);
    vec![mark, set]
}

fn register() -> Vec<u8> {
    u32::from(Register::Reg1).to_be_bytes().to_vec()
}

fn accept() -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(Verdict::Other(
            ACCEPT,
        ))])),
    ])
}

fn reset() -> Expressions {
    other("reject", vec![(1, 1_u32.to_be_bytes().to_vec()), (2, vec![0])])
}

/// "Administratively prohibited", in the words of the packet's own family.
fn prohibited() -> Expressions {
    other("reject", vec![(1, 2_u32.to_be_bytes().to_vec()), (2, vec![3])])
}

/// What the table says for the place where nobody is, to the sidecar too.
fn canary(port: u16, answer: Expressions) -> Rule {
    let to: Ipv4Addr = NOWHERE;
    [
        meta(MetaKey::Nfproto, &[IPV4]),
        payload(1, 16, &to.octets()),
        meta(MetaKey::L4Proto, &[TCP]),
        payload(2, 2, &port.to_be_bytes()),
        vec![answer],
    ]
    .concat()
}
