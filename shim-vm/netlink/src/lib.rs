// SPDX-License-Identifier: Apache-2.0
//! A blocking rtnetlink socket: changes with their acknowledgement, and dumps (rtnetlink(7)).

pub use netlink_packet_core as core;
pub use netlink_packet_route as route;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkHeader, LinkInfo, LinkMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;

/// A socket into one network namespace: that of the thread that opened it, for as long as it lives.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// "52:54:00:12:34:56"; empty for a device without one.
    pub mac: String,
    pub mtu: u32,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Loopback,
    /// One end of a pair of devices, the other of which is elsewhere.
    Veth,
    /// It has what comes to a device of another namespace for a MAC address of its own.
    MacVlan,
    /// It has what comes to a device of another namespace for its IP addresses.
    IpVlan,
    Other,
}

impl Netlink {
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Makes a change, with the flags that its kind takes (`NLM_F_CREATE` and the like).
    ///
    /// # Errors
    /// The kernel's.
    pub fn change(&mut self, message: Message, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_ACK | flags)?;
        self.receive(|_| ())
    }

    /// Everything of a kind that there is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn dump(&mut self, message: Message) -> io::Result<Vec<Message>> {
        self.send(message, NLM_F_DUMP)?;
        let mut found = Vec::new();
        self.receive(|message| found.push(message))?;
        Ok(found)
    }

    /// Every network device, in the order they were made.
    ///
    /// # Errors
    /// The kernel's.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let all = self.dump(Message::GetLink(LinkMessage::default()))?;
        let mut links: Vec<Link> = all
            .into_iter()
            .filter_map(|message| match message {
                Message::NewLink(link) => Some(Link::read(&link)),
                _ => None,
            })
            .collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Changes a device: its flags that are in `mask`, and attributes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_link(
        &mut self,
        index: u32,
        flags: LinkFlags,
        mask: LinkFlags,
        attributes: Vec<LinkAttribute>,
    ) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header = LinkHeader {
            index,
            flags,
            change_mask: mask,
            ..LinkHeader::default()
        };
        message.attributes = attributes;
        self.change(Message::SetLink(message), 0)
    }

    fn send(&mut self, message: Message, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Reads the answers to the last request, to their end.
    fn receive(&mut self, mut each: impl FnMut(Message)) -> io::Result<()> {
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while rest.len() >= HEADER {
                let packet = NetlinkMessage::<Message>::deserialize(rest)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                let length = packet.header.length as usize;
                // Messages start at multiples of four (netlink(7)).
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if packet.header.sequence_number != self.sequence {
                    continue;
                }
                match packet.payload {
                    NetlinkPayload::InnerMessage(message) => each(message),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(answer) => {
                        return match answer.code {
                            None => Ok(()),
                            Some(_) => Err(answer.to_io()),
                        };
                    }
                    _ => {}
                }
            }
        }
    }
}

/// sizeof(struct nlmsghdr)
const HEADER: usize = 16;

impl Link {
    fn read(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: String::new(),
            mtu: 0,
            kind: match message.header.flags.contains(LinkFlags::Loopback) {
                true => Kind::Loopback,
                false => Kind::Other,
            },
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(address) => link.mac = mac(address),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::LinkInfo(info) => {
                    for (theirs, ours) in [
                        (InfoKind::Veth, Kind::Veth),
                        (InfoKind::MacVlan, Kind::MacVlan),
                        (InfoKind::IpVlan, Kind::IpVlan),
                    ] {
                        if info.contains(&LinkInfo::Kind(theirs)) {
                            link.kind = ours;
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

/// A hardware address as it is written: "52:54:00:12:34:56".
pub fn mac(address: &[u8]) -> String {
    let bytes: Vec<String> = address.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

/// The bytes of a hardware address.
///
/// # Errors
/// If it is not written as [`mac`] writes it.
pub fn mac_bytes(text: &str) -> io::Result<Vec<u8>> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| {
            let digits = byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
            digits.then(|| u8::from_str_radix(byte, 16).ok()).flatten()
        })
        .collect();
    bytes.ok_or_else(|| {
        let why = format!("\"{text}\" is not a hardware address");
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_written_and_read() {
        assert_eq!(mac(&[0x52, 0x54, 0, 0x12, 0xab, 6]), "52:54:00:12:ab:06");
        assert_eq!(
            mac_bytes("52:54:00:12:ab:06").unwrap(),
            [0x52, 0x54, 0, 0x12, 0xab, 6]
        );
        for wrong in ["", "52:54:0", "52:54:00:12:ab:0g", "+2:54:00:12:ab:06"] {
            assert!(mac_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_namespace_has_a_loopback_device() {
        let links = Netlink::open().unwrap().links().unwrap();
        let lo = links.iter().find(|link| link.kind == Kind::Loopback);
        assert_eq!(lo.unwrap().name, "lo");
    }

    #[test]
    fn a_refused_change_is_an_error() {
        let mut netlink = Netlink::open().unwrap();
        let none = LinkFlags::empty();
        let error = netlink.set_link(0x7fff_fff0, none, none, Vec::new());
        assert_eq!(
            error.unwrap_err().raw_os_error(),
            Some(19),
            "ENODEV, netdevice(7)"
        );
        // The socket is good for more.
        assert!(!netlink.links().unwrap().is_empty());
    }
}
