//! What the guest says without being asked: its hello, and then every event.

use crate::image::AGENT;
use crate::word::{self, Doom};
use protos::Message;
use protos::guest::{Event, Hello, Notice, notice};
use protos::mux::{Link, MAX_NOTICE, Stream};
use std::io;
use std::rc::Rc;
use tokio::io::AsyncReadExt;

/// The version of what both sides speak.
const PROTOCOL: u32 = 1;

/// The first that the guest says.
///
/// # Errors
/// If it is not heard, or is no agent that this shim can speak with.
pub async fn hello(notices: &mut Stream) -> Result<Hello, String> {
    match next(notices).await {
        Ok(notice::Notice::Hello(hello)) if hello.version == PROTOCOL => {
            let ours = format!("{} {}", AGENT.0, AGENT.1);
            if hello.agent != ours {
                let theirs = word::line(&hello.agent);
                log::warn!("the agent in the VM is {theirs}, not {ours}");
            }
            Ok(hello)
        }
        Ok(notice::Notice::Hello(hello)) => Err(format!(
            "its agent {} speaks version {}, not {PROTOCOL}: make guest anew",
            word::line(&hello.agent),
            hello.version
        )),
        Ok(_) => Err("its agent did not say hello first".into()),
        Err(e) => Err(format!("its agent is not heard: {e}")),
    }
}

async fn next(notices: &mut Stream) -> io::Result<notice::Notice> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut length = 0_usize;
    for shift in (0..28).step_by(7) {
        let byte = notices.read_u8().await?;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    if length > MAX_NOTICE {
        return Err(bad("a notice that is too long"));
    }
    let mut message = vec![0; length];
    notices.read_exact(&mut message).await?;
    let notice = Notice::decode(message.as_slice()).map_err(|e| bad(&e.to_string()))?;
    notice.notice.ok_or_else(|| bad("a notice of nothing"))
}

/// Tells every event of the guest's, in order, for as long as there is a guest. What is no event, or
/// what `tell` finds wrong, ends the VM, and nothing is told any more.
pub async fn listen(
    mut notices: Stream,
    link: Rc<Link>,
    doom: Doom,
    mut tell: impl FnMut(Event) -> Result<(), String>,
) {
    loop {
        let told = match next(&mut notices).await {
            Ok(notice::Notice::Event(event)) => tell(event),
            Ok(notice::Notice::Hello(_)) => Err("a second hello".into()),
            Err(e) if link.is_closed() => return log::debug!("no more events: {e}"),
            Err(e) => Err(format!("its notices: {e}")),
        };
        if let Err(how) = told {
            return doom.broke_word(&how);
        }
    }
}
