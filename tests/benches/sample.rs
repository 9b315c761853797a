// SPDX-License-Identifier: Apache-2.0
//! Repeated measurements of one thing: their median and spread, and all of them for the record.

use serde_json::{Value, json};
use std::time::Duration;

/// Values in one unit, in the order they were measured.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// In milliseconds.
    pub fn time(&mut self, duration: Duration) {
        self.push(duration.as_secs_f64() * 1e3);
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Nearest rank; NaN if there is nothing.
    pub fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        let at = (q * last as f64).round() as usize;
        sorted.get(at).copied().unwrap_or(f64::NAN)
    }

    pub fn max(&self) -> f64 {
        self.quantile(1.0)
    }

    /// `{median, low, high, n, values}`: low and high are the quartiles.
    pub fn json(&self) -> Value {
        json!({
            "median": self.median(),
            "low": self.quantile(0.25),
            "high": self.quantile(0.75),
            "n": self.0.len(),
            "values": self.0,
        })
    }
}
