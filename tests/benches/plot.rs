// SPDX-License-Identifier: Apache-2.0
//! Results as SVG plots for docs/.

use crate::contender::{OURS, RIVAL, RUNC};
use plotters::prelude::*;
use serde_json::Value;
use std::path::Path;

type Plot = Result<(), Box<dyn std::error::Error>>;

const SIZE: (u32, u32) = (720, 400);
const FONT: &str = "sans-serif";

/// One colour for each contender, the same in all plots.
fn colour(key: &str) -> RGBColor {
    match key {
        OURS => RGBColor(0xd5, 0x5e, 0x00),
        "go-1.6" => RGBColor(0x9e, 0xc9, 0xe2),
        "go-1.7" => RGBColor(0x4a, 0x98, 0xc9),
        RIVAL => RGBColor(0x0b, 0x55, 0x9f),
        RUNC => RGBColor(0x77, 0x77, 0x77),
        _ => RGBColor(0x00, 0x9e, 0x73),
    }
}

fn label(results: &Value, key: &str) -> String {
    let label = &results["machine"]["contenders"][key]["label"];
    label.as_str().unwrap_or(key).to_owned()
}

/// A dark enough name for what a bar is of.
fn text() -> TextStyle<'static> {
    (FONT, 13).into_font().color(&BLACK)
}

/// Writes memory.svg, latency.svg and scaling.svg; what was not measured is not drawn.
pub fn all(docs: &Path, results: &Value) {
    std::fs::create_dir_all(docs).expect("docs");
    for (name, plot) in [
        ("memory.svg", memory as fn(&Path, &Value) -> Plot),
        ("latency.svg", latency),
        ("scaling.svg", scaling),
    ] {
        let path = docs.join(name);
        plot(&path, results).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

/// Horizontal bars, one for each contender, each of parts.
fn memory(path: &Path, results: &Value) -> Plot {
    let Some(memory) = results["memory"].as_object() else {
        return Ok(());
    };
    let part = |key: &str, part: &str| {
        memory[key]["points"][1]["each"][part]
            .as_f64()
            .unwrap_or(0.0)
    };
    let keys: Vec<&str> = memory.keys().map(String::as_str).collect();
    let most = keys.iter().map(|key| part(key, "all")).fold(0.0, f64::max) * 1.15;
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            "memory of one further shim, KiB (dark: kernel memory)",
            (FONT, 17),
        )
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(10)
        .build_cartesian_2d(0.0..most, 0.0..keys.len() as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .draw()?;
    for (at, key) in keys.iter().rev().enumerate() {
        let (low, high) = (at as f64 + 0.12, at as f64 + 0.62);
        let (all, kernel) = (part(key, "all"), part(key, "kernel"));
        let bar = |from: f64, to: f64, style: ShapeStyle| {
            Rectangle::new([(from, low), (to, high)], style)
        };
        chart.draw_series([
            bar(0.0, all, colour(key).mix(0.55).filled()),
            bar(0.0, kernel, colour(key).filled()),
        ])?;
        let name = format!("{}: {all:.0}", label(results, key));
        chart.draw_series([Text::new(name, (most * 0.004, at as f64 + 0.88), text())])?;
    }
    root.present()?;
    Ok(())
}

/// Groups of vertical bars: a group for each step.
fn latency(path: &Path, results: &Value) -> Plot {
    let Some(latency) = results["latency"].as_object() else {
        return Ok(());
    };
    let steps = [
        "start command",
        "create",
        "start",
        "exec cycle",
        "kill",
        "delete",
    ];
    let keys: Vec<&str> = latency.keys().map(String::as_str).collect();
    let value = |key: &str, step: &str| latency[key][step]["median"].as_f64();
    let all = keys
        .iter()
        .flat_map(|key| steps.iter().filter_map(|step| value(key, step)));
    let most = all.fold(0.0, f64::max) * 1.15;
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("latency, median, ms", (FONT, 17))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(40)
        .build_cartesian_2d(0.0..steps.len() as f64, 0.0..most)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(steps.len() * 2 + 1)
        .x_label_formatter(&|x| {
            let named = (x.fract() - 0.5).abs() < 0.01;
            if named {
                steps[*x as usize].to_owned()
            } else {
                String::new()
            }
        })
        .draw()?;
    let width = 0.86 / keys.len() as f64;
    for (at, key) in keys.iter().enumerate() {
        let bars = steps.iter().enumerate().filter_map(|(step, name)| {
            let left = step as f64 + 0.07 + at as f64 * width;
            let value = value(key, name)?;
            Some(Rectangle::new(
                [(left, 0.0), (left + width * 0.92, value)],
                colour(key).filled(),
            ))
        });
        let shade = colour(key);
        let key = move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], shade.filled());
        chart
            .draw_series(bars)?
            .label(label(results, keys[at]))
            .legend(key);
    }
    chart
        .configure_series_labels()
        .border_style(BLACK.mix(0.2))
        .background_style(WHITE)
        .draw()?;
    root.present()?;
    Ok(())
}

/// Memory of all shims over their number.
fn scaling(path: &Path, results: &Value) -> Plot {
    let Some(memory) = results["memory"].as_object() else {
        return Ok(());
    };
    let line = |key: &str| -> Vec<(f64, f64)> {
        let points = memory[key]["points"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let point = |point: &Value| {
            let shims = point["shims"].as_f64()?;
            Some((shims, shims * point["each"]["all"].as_f64()? / 1024.0))
        };
        points.iter().filter_map(point).collect()
    };
    let ends = memory.keys().filter_map(|key| line(key).last().copied());
    let (right, top) = ends.fold((0.0, 0.0), |(x, y), end| {
        (f64::max(x, end.0), f64::max(y, end.1))
    });
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("memory of all shims, MiB, over their number", (FONT, 17))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..right * 1.02, 0.0..top * 1.05)?;
    chart.configure_mesh().draw()?;
    for key in memory.keys() {
        let shade = colour(key);
        let stroke = shade.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line(key), stroke).point_size(3))?
            .label(label(results, key))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], stroke));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK.mix(0.2))
        .background_style(WHITE)
        .draw()?;
    root.present()?;
    Ok(())
}
