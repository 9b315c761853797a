// SPDX-License-Identifier: Apache-2.0
//! A machine of which others are made, and what such another finds that the first did not have: its
//! own random numbers, and devices.
//!
//! The kernel knows where those devices will be from its boot on, and has found nothing there. A
//! driver looks again when it is told to (sysfs, `bind`).

use crate::{boot, entropy};
use std::fs;
use std::io;
use std::path::Path;

/// Of the kernel's command line: this machine will be saved when it has said hello. Until then nobody
/// may ask for random numbers that a container could see, for all that are made of it would have them:
/// the kernel makes those of its network, and its boot id, when they are first wanted.
const WORD: &str = "dunnage.template";
const DEVICES: &str = "/sys/bus/platform/devices";
const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";
/// What places of devices are called, by the command line and by ACPI.
const NAMES: [&str; 2] = ["virtio-mmio.", "LNRO0005:"];
/// What containers, or the devices that come, will want.
const DRIVERS: [&str; 4] = ["virtiofs", "virtio_net", "overlay", "virtio_balloon"];

/// Whether this machine is one of which others are made.
pub fn is_template() -> bool {
    let line = task::proc::text("/proc/cmdline").unwrap_or_default();
    line.split_whitespace().any(|word| word == WORD)
}

/// Does what all that are made of this machine need not do then.
///
/// # Errors
/// What could not be done.
pub fn prepare() -> Result<(), String> {
    boot::finish()?;
    DRIVERS.into_iter().try_for_each(boot::load)
}

/// Makes a machine that was made of another one of its own: the kernel has had a new seed, and all its
/// generators begin with it; and its devices are looked for.
///
/// # Errors
/// What could not be done; the text names it.
pub fn begin_anew() -> Result<(), String> {
    entropy::reseed().map_err(|e| format!("random numbers: {e}"))?;
    find_devices(Path::new(DEVICES), Path::new(DRIVER)).map_err(|e| format!("devices: {e}"))
}

fn find_devices(devices: &Path, driver: &Path) -> io::Result<()> {
    for device in fs::read_dir(devices)?.flatten() {
        let name = device.file_name();
        let name = name.to_string_lossy();
        let is_place = NAMES.iter().any(|prefix| name.starts_with(prefix));
        if !is_place || device.path().join("driver").exists() {
            continue;
        }
        match fs::write(driver.join("bind"), &*name) {
            // Nothing has come to this place.
            Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => {}
            bound => bound.map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}")))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_places_without_a_driver_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let (devices, driver) = (dir.path().join("devices"), dir.path().join("driver"));
        for name in [
            "virtio-mmio.7/driver",
            "virtio-mmio.6",
            "LNRO0005:01",
            "serial8250",
        ] {
            fs::create_dir_all(devices.join(name)).unwrap();
        }
        // What is written there is appended to what was.
        fs::create_dir(&driver).unwrap();
        let why = find_devices(&devices, &driver.join("gone")).unwrap_err();
        assert!(
            why.to_string().starts_with("virtio-mmio.6: ")
                || why.to_string().starts_with("LNRO0005:01: "),
            "{why}"
        );
        find_devices(&devices, &driver).unwrap();
        let last = fs::read_to_string(driver.join("bind")).unwrap();
        assert!(["virtio-mmio.6", "LNRO0005:01"].contains(&&*last), "{last}");
    }
}
