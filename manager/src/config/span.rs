// SPDX-License-Identifier: Apache-2.0
//! Times in the configuration.

use serde::{Deserialize, Deserializer};
use std::time::Duration;

/// Milliseconds: a hundred years, which can be added to any time; what is longer is this.
const LONGEST: u64 = 100 * 366 * 24 * 3_600_000;

/// A time such as "100ms", "10s", "5m" or "168h".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim_end_matches(char::is_alphabetic);
        let unit = match &text[number.len()..] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => 0,
        };
        match number.parse::<u64>() {
            Ok(n) if unit > 0 => Ok(Self(Duration::from_millis(
                n.saturating_mul(unit).min(LONGEST),
            ))),
            _ => Err(format!(
                "{text:?} is no time such as 100ms, 10s, 5m or 168h"
            )),
        }
    }
}
