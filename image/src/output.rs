// SPDX-License-Identifier: Apache-2.0
//! What is printed: names, lists, and why something was not done.

use crate::load::shown;
use crate::removal::Removed;
use crate::store::{Image, Images};
use serde_json::json;
use std::io::Write;

/// Digits of an id in a list.
const SHORT: usize = 12;

pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Who does not read on has read enough.
    pub fn line(&mut self, text: &str) {
        let _ = writeln!(std::io::stdout(), "{text}");
        let _ = std::io::stdout().flush();
    }

    pub fn installed(&mut self, image: &Image) {
        match self.json {
            true => self.line(&about(image, image.names.first()).to_string()),
            false => self.line(&shown(image)),
        }
    }

    pub fn images(&mut self, images: &Images, quiet: bool) {
        let mut rows = Vec::new();
        for image in &images.images {
            let names = image.names.iter().map(Some);
            let none = image.names.is_empty().then_some(None);
            rows.extend(names.chain(none).map(|name| (name, image)));
        }
        rows.sort_by_key(|(name, image)| (name.is_none(), *name, &image.id));
        if quiet {
            return rows
                .iter()
                .for_each(|(_, image)| self.line(image.id.text()));
        }
        if self.json {
            for (name, image) in rows {
                self.line(&about(image, name).to_string());
            }
            return;
        }
        let texts: Vec<[String; 4]> = rows
            .iter()
            .map(|(name, image)| {
                [
                    name.map_or("-", |name| name).to_owned(),
                    image.id.hex()[..SHORT].to_owned(),
                    size(image.size),
                    image.created.clone(),
                ]
            })
            .collect();
        let head = ["NAME", "ID", "SIZE", "CREATED"].map(str::to_owned);
        self.table(&[&[head], &texts[..]].concat());
    }

    fn table(&mut self, rows: &[[String; 4]]) {
        let mut widths = [0; 4];
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in rows {
            let cells = row.iter().zip(widths);
            let cells: Vec<_> = cells
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            self.line(cells.join("  ").trim_end());
        }
    }

    pub fn removed(&mut self, removed: &Removed) {
        for name in &removed.names {
            match self.json {
                true => self.line(&json!({"untagged": name}).to_string()),
                false => self.line(&format!("untagged {name}")),
            }
        }
        for id in &removed.images {
            match self.json {
                true => self.line(&json!({"removed": id}).to_string()),
                false => self.line(&format!("removed {id}")),
            }
        }
    }

    pub fn freed(&mut self, bytes: u64) {
        match self.json {
            true => self.line(&json!({"freed_bytes": bytes}).to_string()),
            false => self.line(&format!("freed {}", size(bytes))),
        }
    }
}

fn about(image: &Image, name: Option<&String>) -> serde_json::Value {
    json!({
        "name": name,
        "id": image.id,
        "digest": image.digest,
        "size_bytes": image.size,
        "created": image.created,
    })
}

fn size(bytes: u64) -> String {
    let mut rest = bytes as f64;
    for unit in ["B", "KiB", "MiB"] {
        if rest < 1024.0 {
            return match unit {
                "B" => format!("{rest} B"),
                _ => format!("{rest:.1} {unit}"),
            };
        }
        rest /= 1024.0;
    }
    format!("{rest:.1} GiB")
}

/// In one line, without what a terminal would obey.
pub fn complain(text: &str) {
    let harmless = |c: char| match c.is_control() {
        true => c.escape_default().collect::<String>(),
        false => c.to_string(),
    };
    let text: String = text.chars().map(harmless).collect();
    let _ = writeln!(std::io::stderr(), "dunnage: {text}");
}
