//! From the start of QEMU to a guest that is ready: its hello, what it is told to be, its clock.

use crate::config::{Accel, Config};
use crate::image::Image;
use crate::limits::Place;
use crate::machine::SHARE_TAG;
use crate::network::Where;
use crate::word::{self, Doom};
use crate::{clock, link, notices};
use protos::guest::{ConfigureRequest, Empty, Hello};
use protos::mux::{Link, Stream};
use protos::service;
use protos::ttrpc::{CallError, Client, Context};
use std::io::{self, Read};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What a VM is booted for.
pub struct Purpose<'a> {
    pub context: &'a Context,
    pub name: String,
    pub dir: PathBuf,
    pub config: Config,
    pub image: Image,
    pub accel: Accel,
    pub network: Where,
    /// The host's cgroup.
    pub place: Place,
    pub guest: ConfigureRequest,
}

/// A guest that is ready.
pub struct Ready {
    pub notices: Stream,
    pub client: Client,
    pub hello: Hello,
    /// How long after QEMU's start its hello came.
    pub heard_after: Duration,
}

/// Waits until the guest is ready, as long as it takes; QEMU was started at `started`.
///
/// # Errors
/// Why it will not be.
pub async fn ready(
    link: &Rc<Link>,
    doom: &Doom,
    request: ConfigureRequest,
    started: Instant,
) -> Result<Ready, String> {
    let mut notices = link.first();
    let hello = notices::hello(&mut notices).await?;
    let heard_after = started.elapsed();
    let client = link::client(link, doom).map_err(|e| format!("link: {e}"))?;
    let request = ConfigureRequest {
        share: SHARE_TAG.into(),
        seed: seed().map_err(|e| format!("/dev/urandom: {e}"))?,
        ..request
    };
    let refused =
        |what: &'static str| move |e: CallError| format!("{what}: {}", word::text(&e.to_string()));
    let configured = client.call(service::GUEST, "Configure", &request, None);
    let _: Empty = configured.await.map_err(refused("set up the guest"))?;
    let set = clock::set(&client).await;
    set.map_err(refused("set the guest's clock"))?;
    Ok(Ready {
        notices,
        client,
        hello,
        heard_after,
    })
}

/// Random bytes for a guest, as many as its kernel takes at once.
///
/// # Errors
/// From the kernel.
fn seed() -> io::Result<Vec<u8>> {
    let mut seed = vec![0; 64];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(seed)
}

/// Waits until a boot is of no use any more, and tells why.
pub async fn given_up(context: &Context, doom: &Doom, deadline: Duration) -> String {
    tokio::select! {
        why = context.cancelled() => why.message,
        why = doom.told() => why,
        () = tokio::time::sleep(deadline) => {
            format!("the guest was not ready within {} s", deadline.as_secs())
        }
    }
}
