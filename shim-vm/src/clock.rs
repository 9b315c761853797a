// SPDX-License-Identifier: Apache-2.0
//! The guest's clock: compared with the host's, and stepped where it is off.
//!
//! An answer may take long on a busy machine, and then says little: the guest's time is that of
//! some moment between question and answer. So the guest is asked again, and never stepped by what
//! the way alone may explain.

use protos::guest::{GetTimeRequest, StepTimeRequest};
use protos::ttrpc::{CallError, Client};
use std::time::{Duration, Instant, SystemTime};

/// How often it is compared.
const EVERY: Duration = Duration::from_secs(60);
/// What it may be off by: small steps would only upset programs.
const DRIFT: Duration = Duration::from_millis(10);
/// How often the guest is asked until an answer says enough.
const TRIES: usize = 5;

/// Keeps it for as long as there is a guest.
pub async fn keep(client: Client) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = client.closed() => return,
        }
        if let Err(e) = set(&client).await {
            log::debug!("the guest's clock: {e}");
        }
    }
}

/// Compares it now, and sets it right.
///
/// # Errors
/// If the guest does not answer, or can't step.
pub async fn set(client: &Client) -> Result<(), CallError> {
    for _ in 0..TRIES {
        let (asked, began) = (SystemTime::now(), Instant::now());
        let told = client.call(&GetTimeRequest {}, Some(EVERY)).await?;
        let took = began.elapsed();
        let guest = told.time.and_then(|time| SystemTime::try_from(time).ok());
        let step = step(
            asked + took / 2,
            guest.unwrap_or(SystemTime::UNIX_EPOCH),
            took,
        );
        if step == 0 && took <= DRIFT {
            return Ok(());
        }
        if step != 0 {
            let request = StepTimeRequest { nanos: step };
            client.call(&request, Some(EVERY)).await?;
        }
    }
    Ok(())
}

/// By how many nanoseconds a guest must be stepped that had the time `guest` when the host had
/// `host`, give or take half of what the answer took; 0 if that explains it.
fn step(host: SystemTime, guest: SystemTime, took: Duration) -> i64 {
    let (off, behind) = match host.duration_since(guest) {
        Ok(behind) => (behind, true),
        Err(ahead) => (ahead.duration(), false),
    };
    if off <= took / 2 + DRIFT {
        return 0;
    }
    let nanos = i64::try_from(off.as_nanos()).unwrap_or(i64::MAX);
    if behind { nanos } else { -nanos }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// V9: what the way of the answer may explain is no reason to step.
    #[test]
    fn a_guest_is_stepped_by_what_it_is_off_for_certain() {
        let host = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ms = Duration::from_millis;
        for (guest, took, expected) in [
            (host, ms(0), 0),
            (host - ms(10), ms(0), 0),
            (host - ms(11), ms(0), 11_000_000),
            (host + ms(11), ms(0), -11_000_000),
            (host - ms(2000), ms(4000), 0),
            (host - ms(2011), ms(4000), 2_011_000_000),
            (SystemTime::UNIX_EPOCH, ms(1), 1_000_000_000_000_000),
        ] {
            assert_eq!(step(host, guest, took), expected, "{guest:?} {took:?}");
        }
    }
}
