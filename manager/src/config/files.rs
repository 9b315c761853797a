// SPDX-License-Identifier: Apache-2.0
//! The files of the configuration, and which of them says what.

use super::Config;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The files as they were read; a later one replaces keys of those before.
#[derive(Default)]
pub struct Files(Vec<(PathBuf, Table)>);

impl Files {
    /// Reads one more, and refuses keys that do not exist while it is still known which file has them.
    ///
    /// # Errors
    /// A text with the file and the key.
    pub fn read(&mut self, path: &Path) -> Result<(), String> {
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let text = std::fs::read(path).map_err(|e| failed(&e))?;
        let text = String::from_utf8(text).map_err(|e| failed(&e))?;
        let table: Table = toml::from_str(&text).map_err(|e| failed(&e))?;
        toml::from_str::<Config>(&text).map_err(|e| failed(&e))?;
        self.0.push((path.to_owned(), table));
        Ok(())
    }

    /// What they say together.
    pub fn merged(&self) -> Table {
        let mut merged = Table::new();
        for (_, table) in &self.0 {
            merge(&mut merged, table.clone());
        }
        merged
    }

    /// A complaint about a key, which it begins with, and the file that has the key; or, if it follows
    /// from others, the main one.
    pub fn blame(&self, complaint: &str, main: &Path) -> String {
        let key = complaint.split(':').next().unwrap_or_default();
        let has = |table: &Table| {
            let mut parts = key.splitn(3, '.');
            let first = parts.next().and_then(|part| table.get(part));
            let found = parts.try_fold(first?, |value: &Value, part| {
                value.get(part.trim_matches('"'))
            });
            found.map(drop)
        };
        let file = self.0.iter().rev().find(|(_, table)| has(table).is_some());
        let file = file.map_or(main, |(path, _)| path);
        format!("{}: {complaint}", file.display())
    }
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_has_the_key_is_blamed() {
        let files = |texts: &[(&str, &str)]| {
            let parsed = texts
                .iter()
                .map(|(path, text)| (PathBuf::from(path), toml::from_str(text).unwrap()));
            Files(parsed.collect())
        };
        let files = files(&[
            ("/main", "root = \"x\"\n[runtime.paths]\n\"a.b\" = \"c\"\n"),
            ("/drop", "[grpc]\nmode = \"1\"\n"),
        ]);
        let blame = |complaint: &str| files.blame(complaint, Path::new("/main"));
        assert_eq!(blame("root: no"), "/main: root: no");
        assert_eq!(blame("grpc.mode: no"), "/drop: grpc.mode: no");
        assert_eq!(
            blame("runtime.paths.\"a.b\": no"),
            "/main: runtime.paths.\"a.b\": no"
        );
        assert_eq!(blame("shim.env: no"), "/main: shim.env: no");
    }
}
