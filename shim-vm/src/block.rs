// SPDX-License-Identifier: Apache-2.0
//! What a config.json says of the host's block devices. It is QEMU's and the file server's, who read
//! and write for the guest; the guest, which has no such devices, is not told.

use crate::limits::{Setting, number};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// `blockIO.weight` (config-linux.md, "Block IO").
const WEIGHTS: std::ops::RangeInclusive<i64> = 10..=1000;
/// What the kernel's numbers of devices have room for (include/linux/kdev_t.h).
const MAJORS: std::ops::RangeInclusive<i64> = 0..=(1 << 12) - 1;
const MINORS: std::ops::RangeInclusive<i64> = 0..=(1 << 20) - 1;

/// Of each kind of throttle the name in config.json, the file of version 1, and the key of version 2.
const THROTTLES: [(&str, &str, &str); 4] = [
    (
        "throttleReadBpsDevice",
        "blkio.throttle.read_bps_device",
        "rbps",
    ),
    (
        "throttleWriteBpsDevice",
        "blkio.throttle.write_bps_device",
        "wbps",
    ),
    (
        "throttleReadIOPSDevice",
        "blkio.throttle.read_iops_device",
        "riops",
    ),
    (
        "throttleWriteIOPSDevice",
        "blkio.throttle.write_iops_device",
        "wiops",
    ),
];

/// A kind, by its place in [`THROTTLES`], and a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Throttle {
    kind: usize,
    major: i64,
    minor: i64,
}

/// What a container says of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Block {
    pub weight: Option<i64>,
    /// Bytes or operations in a second; negative: no limit any more.
    #[serde(with = "pairs")]
    pub throttles: BTreeMap<Throttle, i64>,
}

impl Block {
    /// Reads `blockIO`.
    ///
    /// # Errors
    /// If something in it can't be: it names the field and its value.
    pub fn of(block: &Value) -> Result<Self, String> {
        let mut throttles = BTreeMap::new();
        for (kind, (name, _, _)) in THROTTLES.iter().enumerate() {
            for device in block[name].as_array().into_iter().flatten() {
                let part = |part: &str, range| {
                    number(&device[part], &format!("blockIO.{name}.{part}"), range)
                };
                let throttle = Throttle {
                    kind,
                    major: part("major", MAJORS)?.unwrap_or(0),
                    minor: part("minor", MINORS)?.unwrap_or(0),
                };
                throttles.insert(throttle, part("rate", 0..=i64::MAX)?.unwrap_or(-1));
            }
        }
        let weight = number(&block["weight"], "blockIO.weight", WEIGHTS)?;
        Ok(Self { weight, throttles })
    }

    /// With what an Update sets.
    pub fn updated(&self, update: &Self) -> Self {
        let mut updated = self.clone();
        updated.weight = update.weight.or(self.weight);
        updated.throttles.extend(&update.throttles);
        updated
    }
}

impl Throttle {
    /// With version 1 a rate of 0 is none.
    pub fn setting(&self, rate: Option<u64>) -> Setting {
        let (_, v1, v2) = THROTTLES[self.kind];
        let device = format!("{}:{}", self.major, self.minor);
        let text = |none: &str| rate.map_or_else(|| none.to_owned(), |rate| rate.to_string());
        Setting {
            files: vec![
                (v1, format!("{device} {}", text("0"))),
                ("io.max", format!("{device} {v2}={}", text("max"))),
            ],
            needed: rate.is_some(),
        }
    }
}

/// The files of runc's order: BFQ's own have the weight as it is, io.weight has another range.
pub fn weight(weight: u64) -> Setting {
    let (least, most) = (WEIGHTS.start().unsigned_abs(), WEIGHTS.end().unsigned_abs());
    let weight = weight.clamp(least, most);
    let of_io = 1 + (weight - least) * 9999 / (most - least);
    let same = ["blkio.weight", "blkio.bfq.weight", "io.bfq.weight"];
    let mut files: Vec<_> = same.map(|file| (file, weight.to_string())).into();
    files.push(("io.weight", of_io.to_string()));
    Setting {
        files,
        needed: true,
    }
}

/// The throttles as a list: what is no text is no key of JSON's.
mod pairs {
    use super::Throttle;
    use serde::{Deserialize, Deserializer, Serializer};
    use std::collections::BTreeMap;

    pub fn serialize<S: Serializer>(
        throttles: &BTreeMap<Throttle, i64>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(throttles)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<Throttle, i64>, D::Error> {
        Ok(Vec::deserialize(from)?.into_iter().collect())
    }
}
