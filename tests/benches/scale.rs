// SPDX-License-Identifier: Apache-2.0
//! What the slopes from 10 to 300 pods mean for a thousand, in words for docs/bench.md.

use crate::contender::{OURS, RIVAL};
use serde_json::Value;

const PODS: f64 = 1000.0;

/// A straight line through measured points (least squares).
struct Line {
    slope: f64,
    at_zero: f64,
}

impl Line {
    /// `None` for fewer than two points.
    fn through(points: &[(f64, f64)]) -> Option<Self> {
        if points.len() < 2 {
            return None;
        }
        let count = points.len() as f64;
        let mean = |value: fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / count;
        let (x, y) = (mean(|p| p.0), mean(|p| p.1));
        let across: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
        let wide: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
        let slope = across / wide;
        Some(Self {
            slope,
            at_zero: y - slope * x,
        })
    }

    fn at(&self, x: f64) -> f64 {
        self.at_zero + self.slope * x
    }
}

/// A figure of every point of one contender, by the number of shims there.
fn line(results: &Value, key: &str, pointer: &str) -> Option<Line> {
    let points = results["memory"][key]["points"].as_array()?;
    let points: Vec<(f64, f64)> = points
        .iter()
        .filter_map(|point| Some((point["shims"].as_f64()?, point.pointer(pointer)?.as_f64()?)))
        .collect();
    Line::through(&points)
}

/// One paragraph; nothing where the memory was not measured.
pub fn paragraph(results: &Value) -> String {
    let both = |key| {
        let memory = line(results, key, "/each/all")?;
        Some((memory, line(results, key, "/start/median")?))
    };
    let (Some(ours), Some(theirs)) = (both(OURS), both(RIVAL)) else {
        return String::new();
    };
    let of = |(memory, start): &(Line, Line), name: &str| {
        format!(
            "{name} {:+.2} KiB and {:+.3} ms with every further pod, so that the shims of {PODS} \
             take {:.0} MiB and the last of them {:.0} ms",
            memory.slope,
            start.slope,
            memory.at(PODS) * PODS / 1024.0,
            start.at(PODS),
        )
    };
    format!(
        "\nFrom 10 to 300 pods ([plot](scaling.svg)) memory per shim, and the time from `start` \
         to the running container, change in a straight line: {}; {}.\n",
        of(&ours, "dunnage's by"),
        of(&theirs, "Go 2.1's by"),
    )
}
