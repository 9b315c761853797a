// SPDX-License-Identifier: Apache-2.0
//! Redirects: every packet that arrives at one device leaves by another (tc-mirred(8)).
//!
//! Each is a u32 filter on the device's ingress qdisc, which every kernel with mirred has, while
//! many lack matchall and flower.

use netlink::Netlink;
use netlink::core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink::route::RouteNetlinkMessage as Message;
use netlink::route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};
use nix::errno::Errno;
use std::io;

/// What our filters are known by: a priority that nobody else has a reason to use.
const PRIORITY: u16 = 0xd0c5;

/// ETH_P_ALL of linux/if_ether.h, as tcm_info has it.
const EVERY_PROTOCOL: u16 = 3_u16.to_be();

/// Makes the device `from` hand every packet that it gets to `to`, to send it.
///
/// # Errors
/// If it has an ingress qdisc already, or this kernel can't redirect.
pub fn add(netlink: &mut Netlink, from: u32, to: u32) -> io::Result<()> {
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let added = netlink.change(Message::NewQueueDiscipline(qdisc(from)), flags);
    added.map_err(|e| match Errno::from_raw(e.raw_os_error().unwrap_or(0)) {
        Errno::EEXIST => io::Error::new(e.kind(), "it has an ingress qdisc of its own"),
        Errno::ENOENT => missing("sch_ingress"),
        _ => e,
    })?;
    let added = netlink.change(Message::NewTrafficFilter(filter(from, to)), flags);
    added.map_err(|e| {
        // The error that counts is the filter's.
        let _ = netlink.change(Message::DelQueueDiscipline(qdisc(from)), 0);
        match Errno::from_raw(e.raw_os_error().unwrap_or(0)) {
            Errno::ENOENT => missing("cls_u32 or act_mirred"),
            _ => e,
        }
    })
}

/// Takes a device's redirect away, and its ingress qdisc with it; what others made stays.
///
/// # Errors
/// The kernel's.
pub fn remove(netlink: &mut Netlink, from: u32) -> io::Result<()> {
    let mut every = TcMessage::with_index(from.cast_signed());
    every.header.parent = INGRESS;
    let filters = netlink.dump(Message::GetTrafficFilter(every));
    let ours = match filters {
        Ok(filters) => filters.iter().any(is_ours),
        // Without an ingress qdisc.
        Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) => false,
        Err(e) => return Err(e),
    };
    if !ours {
        return Ok(());
    }
    match netlink.change(Message::DelQueueDiscipline(qdisc(from)), 0) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// The handle of every ingress qdisc, which is the parent of its filters.
const INGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};

fn is_ours(message: &Message) -> bool {
    match message {
        Message::NewTrafficFilter(filter) => filter.header.info >> 16 == u32::from(PRIORITY),
        _ => false,
    }
}

fn qdisc(device: u32) -> TcMessage {
    let mut message = TcMessage::with_index(device.cast_signed());
    message.header.handle = INGRESS;
    message.header.parent = TcHandle::INGRESS;
    message.attributes = vec![TcAttribute::Kind("ingress".into())];
    message
}

fn filter(from: u32, to: u32) -> TcMessage {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let parameters = TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror));
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".into()),
        TcActionAttribute::Options(vec![parameters]),
    ];

    // One key whose mask is 0: it matches everything.
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];

    let mut message = TcMessage::with_index(from.cast_signed());
    message.header.parent = INGRESS;
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(EVERY_PROTOCOL);
    message.attributes = vec![
        TcAttribute::Kind("u32".into()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    message
}

fn missing(modules: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!("the host's kernel lacks {modules}, without which a VM has no network"),
    )
}
