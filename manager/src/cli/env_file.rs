// SPDX-License-Identifier: Apache-2.0
//! `--env-file`: environment variables, one a line, as docker reads them.

/// `KEY=VALUE` each.
#[derive(Clone, Debug, PartialEq)]
pub struct Variables(pub Vec<String>);

/// Reads a file.
///
/// # Errors
/// A text with the line that is none.
pub fn read(path: &str) -> Result<Variables, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    parse(&bytes, |key| std::env::var(key).ok()).map(Variables)
}

/// `ours` tells a variable that is named alone, and left out if we have none.
fn parse(bytes: &[u8], ours: impl Fn(&str) -> Option<String>) -> Result<Vec<String>, String> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let mut variables = Vec::new();
    for (n, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let bad = |why: &str| format!("line {}: {why}", n + 1);
        let line = std::str::from_utf8(line).map_err(|_| bad("not UTF-8"))?;
        let line = line.strip_suffix('\r').unwrap_or(line).trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = match line.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (line.trim_end(), ours(line.trim_end())),
        };
        if key.is_empty() || key.contains(char::is_whitespace) || line.contains('\0') {
            return Err(bad(&format!("{line:?} is not KEY=VALUE")));
        }
        variables.extend(value.map(|value| format!("{key}={value}")));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_docker_reads_them() {
        let ours = |key: &str| (key == "HOME").then(|| "/root".to_owned());
        let text = "\u{feff}A=b\n# no\n\n  B= x=y \r\nHOME\nNONE\nC=\n";
        let expected = ["A=b", "B= x=y ", "HOME=/root", "C="];
        assert_eq!(parse(text.as_bytes(), ours).unwrap(), expected);
        for (text, line) in [
            ("A=b\n=c\n", "line 2"),
            ("A B=c\n", "line 1"),
            ("A=\0", "line 1"),
        ] {
            assert!(
                parse(text.as_bytes(), ours).unwrap_err().contains(line),
                "{text}"
            );
        }
        assert!(parse(b"A=\xff", ours).is_err());
        assert!(read("/no/such/file").is_err());
    }
}
