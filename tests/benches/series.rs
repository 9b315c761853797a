// SPDX-License-Identifier: Apache-2.0
//! The figures of our shim as a series that a page can show over time: in the form that
//! `benchmark-action/github-action-benchmark` reads, and as a plot of all runs that are kept.
//!
//! ```text
//! runs/<date>/series.smaller.json   [{"name", "unit", "value", "range", "extra"}, …]  less is better
//! runs/<date>/series.bigger.json    the same, of what more is better of
//! docs/history.svg                  each figure that has a goal, as a part of the first run's
//! ```

use crate::contender::OURS;
use crate::table::{self, Goal, Row};
use plotters::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What the ends of a figure's name say of its unit.
const UNITS: [&str; 4] = ["KiB", "MiB/s", "ms", "s"];

/// Both lists: of what less, and of what more is better.
pub fn lists(results: &Value) -> [Value; 2] {
    let (mut smaller, mut bigger) = (Vec::new(), Vec::new());
    for (title, rows) in table::sections() {
        let (title, usual) = title.split_once(", ").unwrap_or((title, ""));
        let mut above = "";
        for row in rows {
            let Some(value) = table::figure(results, row, OURS) else {
                continue;
            };
            let (name, unit) = parted(row.name);
            let unit = if unit.is_empty() { usual } else { unit };
            // "… of it" is of the row above.
            let name = match name.strip_prefix("… ") {
                Some(rest) => format!("{above}: {rest}"),
                None => {
                    above = name;
                    name.to_owned()
                }
            };
            let entry = json!({
                "name": format!("{title}: {name}"),
                "unit": unit,
                "value": value,
                "range": spread(results, row),
                "extra": results["machine"]["date"],
            });
            if unit == "MiB/s" {
                bigger.push(entry);
            } else {
                smaller.push(entry);
            }
        }
    }
    [smaller.into(), bigger.into()]
}

/// A figure's name, and its unit if the name ends with it, or has it before what it is for.
fn parted(name: &'static str) -> (&'static str, &'static str) {
    let (plain, _) = name.split_once(" (").unwrap_or((name, ""));
    match plain.rsplit_once(", ") {
        Some((short, unit)) if UNITS.contains(&unit) => {
            (if plain == name { short } else { name }, unit)
        }
        _ => (name, ""),
    }
}

/// Half of the distance between the quartiles, if they were measured.
fn spread(results: &Value, row: &Row) -> Option<String> {
    let sample = row.pointer.strip_suffix("/median")?;
    let sample = results.get(row.part)?.get(OURS)?.pointer(sample)?;
    let (low, high) = (sample["low"].as_f64()?, sample["high"].as_f64()?);
    Some(format!("± {:.2}", (high - low) / 2.0))
}

/// Draws what became of each goal over all runs, oldest first: `runs` are their names and results.
///
/// # Panics
/// If the file cannot be written.
pub fn draw(path: &Path, runs: &[(String, Value)]) {
    history(path, runs).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn history(path: &Path, runs: &[(String, Value)]) -> Result<(), Box<dyn std::error::Error>> {
    let relative = |goal: &Goal| -> Vec<(f64, f64)> {
        let values = runs.iter().enumerate().filter_map(|(at, (_, results))| {
            Some((at as f64, table::figure(results, &goal.figure, OURS)?))
        });
        let values: Vec<_> = values.collect();
        match values.first() {
            Some(&(_, first)) if first > 0.0 => values
                .iter()
                .map(|&(at, value)| (at, value / first))
                .collect(),
            _ => Vec::new(),
        }
    };
    let lines: Vec<_> = table::GOALS
        .iter()
        .map(|goal| (goal.name, relative(goal)))
        .filter(|(_, line)| line.len() > 1)
        .collect();
    let Some(last) = runs.len().checked_sub(1).filter(|&last| last > 0) else {
        return Ok(());
    };
    let values = lines
        .iter()
        .flat_map(|(_, line)| line.iter().map(|&(_, value)| value));
    let top = values.fold(1.5, f64::max) * 1.1;
    let root = SVGBackend::new(path, (720, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            "each goal's figure, as a part of the first run's",
            ("sans-serif", 17),
        )
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(40)
        .build_cartesian_2d(0.0..last as f64, 0.0..top)?;
    let date = |at: &f64| match at.fract() == 0.0 {
        true => runs
            .get(*at as usize)
            .map_or("", |(date, _)| date)
            .to_owned(),
        false => String::new(),
    };
    chart
        .configure_mesh()
        .x_labels(runs.len().min(8))
        .x_label_formatter(&date)
        .draw()?;
    for (at, (name, line)) in lines.iter().enumerate() {
        let stroke = Palette99::pick(at).stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.clone(), stroke).point_size(3))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], stroke));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK.mix(0.2))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    root.present()?;
    Ok(())
}

/// The names and directories of all runs, oldest first.
pub fn runs(dir: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let dirs = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let named = dirs.filter(|path| path.is_dir()).map(|path| {
        let name = path.file_name().unwrap_or_default();
        (name.to_string_lossy().into_owned(), path)
    });
    let mut all: Vec<_> = named.collect();
    all.sort();
    all
}
