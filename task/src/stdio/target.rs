// SPDX-License-Identifier: Apache-2.0
//! Where a client wants a process's output.

use super::Paths;
use crate::error::{Error, Result};
use std::path::Path;

/// Stdout's scheme decides for both streams (I2).
pub(super) enum Target<'a> {
    Nowhere,
    Fifo,
    File(&'a Path),
    Logger { uri: &'a str, must_call_ready: bool },
}

pub(super) fn target(paths: &Paths) -> Result<Target<'_>> {
    let Some((scheme, rest)) = paths.stdout.split_once("://") else {
        let none = paths.stdin.is_empty() && paths.stdout.is_empty() && paths.stderr.is_empty();
        return Ok(if none { Target::Nowhere } else { Target::Fifo });
    };
    match scheme {
        "fifo" => Ok(Target::Fifo),
        "file" => Ok(Target::File(Path::new(rest))),
        "binary" => Ok(Target::Logger {
            uri: rest,
            must_call_ready: false,
        }),
        "binary-v2" => Ok(Target::Logger {
            uri: rest,
            must_call_ready: true,
        }),
        other => Err(Error::Refused(format!("unknown STDIO scheme {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(stdin: &str, stdout: &str) -> Paths {
        Paths {
            stdin: stdin.into(),
            stdout: stdout.into(),
            ..Paths::default()
        }
    }

    /// I1: no streams, no output. I2: else the scheme of stdout says where it goes.
    #[test]
    fn stdouts_scheme_decides() {
        assert!(matches!(target(&paths("", "")), Ok(Target::Nowhere)));
        assert!(matches!(target(&paths("/in", "")), Ok(Target::Fifo)));
        assert!(matches!(target(&paths("", "/run/f")), Ok(Target::Fifo)));
        assert!(
            matches!(target(&paths("", "file:///l")), Ok(Target::File(p)) if p == Path::new("/l"))
        );
        let logger = paths("", "binary-v2:///b?x=y");
        let logger = target(&logger);
        assert!(matches!(
            logger,
            Ok(Target::Logger {
                uri: "/b?x=y",
                must_call_ready: true
            })
        ));
        let text = target(&paths("", "gopher://x")).err().unwrap().to_string();
        assert_eq!(text, "unknown STDIO scheme gopher");
    }
}
