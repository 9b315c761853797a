// SPDX-License-Identifier: Apache-2.0
//! Bundles that a user has, which a container is made of.

use std::path::Path;

/// A spec whose root filesystem is found from anywhere.
///
/// # Errors
/// A text that names the file, and what is wrong with it.
pub fn read(bundle: &Path) -> Result<serde_json::Value, String> {
    let path = bundle.join("config.json");
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let json = std::fs::read(&path).map_err(|e| failed(&e))?;
    let mut spec: serde_json::Value = task::json::read_first(&json).map_err(|e| failed(&e))?;
    let bundle = bundle.canonicalize().map_err(|e| failed(&e))?;
    if let Some(root) = spec["root"]["path"].as_str() {
        spec["root"]["path"] = bundle.join(root).display().to_string().into();
    }
    Ok(spec)
}
