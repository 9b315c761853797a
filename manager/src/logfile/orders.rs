// SPDX-License-Identifier: Apache-2.0
//! What a logger is told, and by whom: the URI that a container has for its output, and the command
//! line that a shim makes of it.
//!
//! ```text
//! binary:///…/dunnage?log=FILE&max_size=N&max_files=N  ->  dunnage log FILE max_size N max_files N
//! ```

use crate::config::{Config, Logger};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What to write, and how much of it to keep.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Orders {
    pub file: PathBuf,
    max_size: Option<u64>,
    max_files: Option<u32>,
    /// Asked for what is not said otherwise.
    config: Option<PathBuf>,
}

impl Orders {
    /// Reads a command line. Shims pass the pairs of a query on in any order.
    pub fn read(args: impl Iterator<Item = OsString>) -> Option<Self> {
        let args: Vec<OsString> = args.skip(1).collect();
        let mut orders = Self::default();
        for pair in args.chunks(2) {
            let [key, value] = pair else { return None };
            match key.to_str()? {
                "log" => orders.file = value.into(),
                "max_size" => orders.max_size = Some(value.to_str()?.parse().ok()?),
                "max_files" => orders.max_files = Some(value.to_str()?.parse().ok()?),
                "--config" => orders.config = Some(value.into()),
                _ => return None,
            }
        }
        (!orders.file.as_os_str().is_empty()).then_some(orders)
    }

    /// How much is kept. A configuration that is no good loses nobody's output.
    pub fn limits(&self) -> Logger {
        let both = self.max_size.zip(self.max_files);
        let or = match both {
            Some(_) => Logger::default(),
            None => Config::load(self.config.as_deref()).map_or_else(
                |e| {
                    log::error!("{e}");
                    Logger::default()
                },
                |config| config.logger,
            ),
        };
        Logger {
            max_size: self.max_size.unwrap_or(or.max_size),
            max_files: self.max_files.unwrap_or(or.max_files),
        }
    }
}

/// Has our logger write `file`, and keep as much as the configuration says today.
pub fn uri(limits: &Logger, file: &Path) -> String {
    let own = std::env::current_exe().unwrap_or_else(|_| "/usr/local/bin/dunnage".into());
    let Logger {
        max_size,
        max_files,
    } = limits;
    format!(
        "binary://{}?log={}&max_size={max_size}&max_files={max_files}",
        own.display(),
        file.display()
    )
}

/// The file that a URI has a logger of ours write.
pub fn file_of(uri: &str) -> Option<PathBuf> {
    let (_, query) = uri.split_once('?')?;
    let file = query.split('&').find_map(|pair| pair.strip_prefix("log="));
    file.map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Option<Orders> {
        Orders::read(words.split(' ').map(Into::into))
    }

    #[test]
    fn a_query_is_understood_in_any_order() {
        let limits = Logger {
            max_size: 5,
            max_files: 2,
        };
        for words in [
            "dunnage log /f max_size 5 max_files 2",
            "dunnage max_files 2 log /f max_size 5",
        ] {
            let orders = read(words).unwrap();
            assert_eq!(orders.file, Path::new("/f"));
            assert_eq!(orders.limits(), limits, "{words}");
        }
        let uri = uri(&limits, Path::new("/f"));
        assert!(uri.ends_with("?log=/f&max_size=5&max_files=2"), "{uri}");
        assert_eq!(file_of(&uri), Some("/f".into()));
        assert_eq!(file_of("file:///f"), None);
    }

    #[test]
    fn what_is_no_order_is_none() {
        for words in [
            "dunnage",
            "dunnage log",
            "dunnage ls -q",
            "dunnage max_size 5",
            "dunnage log /f max_size x",
            "dunnage logs x",
        ] {
            assert_eq!(read(words), None, "{words}");
        }
    }

    #[test]
    fn a_configuration_that_is_no_good_loses_no_output() {
        let orders = read("dunnage --config /no/such/file log /f max_size 5").unwrap();
        let limits = orders.limits();
        assert_eq!((limits.max_size, limits.max_files), (5, 3));
    }
}
