// SPDX-License-Identifier: Apache-2.0
//! All dialects of what `start` reads and prints (contract B9 to B12, B20 to B22).
//!
//! | caller | stdin | stdout |
//! |---|---|---|
//! | containerd 2.3 and later | `BootstrapParams` | `BootstrapResult`, version 3 |
//! | containerd up to 2.2 | an `Any` with the runtime's options, or nothing | the address |
//!
//! The plain address works with every containerd: it then speaks version 2 of the Task API.

use protos::bootstrap::{BootstrapParams, BootstrapResult};
use protos::operator::{BootstrapExtension, BootstrapExtensions, MountCapabilities};
use protos::{Any, Message, any};

/// Who called `start`, and what for.
#[derive(Debug, PartialEq)]
pub enum Caller {
    Bootstrap(Box<BootstrapParams>),
    Legacy(Option<Any>),
}

/// The versions of the Task API that a shim speaks. Ours speaks both; the one that a container
/// joins may be Go's, which speaks one.
#[derive(Clone, Copy)]
pub struct Versions {
    pub v2: bool,
    pub v3: bool,
}

impl Versions {
    pub const OURS: Self = Self { v2: true, v3: true };
    /// Who asks for a sandbox speaks version 3, and joins containers to it himself only if it says
    /// so, too.
    pub const OF_SANDBOX: Self = Self {
        v2: false,
        v3: true,
    };
}

/// What of a root filesystem's mounts a shim makes itself (containerd's docs/mounts.md).
#[derive(Clone, Copy)]
pub struct Mounts {
    pub types: &'static [&'static str],
    pub transforms: &'static [&'static str],
}

impl Mounts {
    /// Where containerd 2.2 and 2.3 look for it, in the info of the runtime.
    pub const ANNOTATION: &str = "containerd.io/runtime-allow-mounts";
    const TYPE: &str = "type.googleapis.com/containerd.types.MountCapabilities";

    /// As that annotation has it.
    pub fn annotation(&self) -> String {
        let types = self.types.iter().map(|&kind| kind.to_owned());
        let transforms = self.transforms.iter().map(|name| format!("{name}/*"));
        types.chain(transforms).collect::<Vec<_>>().join(",")
    }

    fn extension(&self) -> BootstrapExtensions {
        let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        let mounts = MountCapabilities {
            types: texts(self.types),
            transforms: texts(self.transforms),
        };
        BootstrapExtensions {
            extensions: vec![BootstrapExtension {
                value: Some(Any {
                    type_url: Self::TYPE.into(),
                    value: mounts.encode_to_vec(),
                }),
            }],
        }
    }
}

const DEBUG: i32 = protos::bootstrap::LogLevel::Debug as i32;

impl Caller {
    /// Reads `stdin`. An Any parses as BootstrapParams too, so only ones that name this very
    /// shim count (B12).
    pub fn parse(stdin: &[u8], id: &str, namespace: &str) -> Self {
        match BootstrapParams::decode(stdin) {
            Ok(params) if params.instance_id == id && params.namespace == namespace => {
                Self::Bootstrap(Box::new(params))
            }
            _ => Self::Legacy(
                Any::decode(stdin)
                    .ok()
                    .filter(|any| !any.type_url.is_empty()),
            ),
        }
    }

    /// The options of runc, if such came; others are for somebody else.
    pub fn options(&self) -> Option<&Any> {
        let is_runc = |any: &&Any| any::holds::<protos::runc::Options>(any);
        match self {
            Self::Legacy(options) => options.as_ref().filter(is_runc),
            Self::Bootstrap(params) => {
                let values = params.extensions.iter().filter_map(|e| e.value.as_ref());
                values.into_iter().find(is_runc)
            }
        }
    }

    /// Debug logs are wanted (B11).
    pub fn debug(&self) -> bool {
        matches!(self, Self::Bootstrap(params) if params.log_level <= DEBUG)
    }

    /// Where sockets shall be, if the caller says so (B34).
    pub fn socket_dir(&self) -> Option<&str> {
        match self {
            Self::Bootstrap(params) => params.socket_dir.as_deref().filter(|dir| !dir.is_empty()),
            Self::Legacy(_) => None,
        }
    }

    /// Where events go, if the caller says so.
    pub fn ttrpc_address(&self) -> Option<&str> {
        match self {
            Self::Bootstrap(params) => Some(params.containerd_ttrpc_address.as_str()),
            Self::Legacy(_) => None,
        }
        .filter(|address| !address.is_empty())
    }

    /// What to print, in the caller's dialect, of a shim that speaks `versions` of the Task API, and makes
    /// what `mounts` says itself (N8).
    pub fn answer(&self, address: &str, versions: Versions, mounts: Option<&Mounts>) -> Vec<u8> {
        match self {
            Self::Legacy(_) if versions.v2 => address.as_bytes().to_vec(),
            // Only containerd 2.0 and later starts a shim that does not speak version 2.
            Self::Legacy(_) => {
                format!(r#"{{"version":3,"address":"{address}","protocol":"ttrpc"}}"#).into_bytes()
            }
            Self::Bootstrap(_) => {
                let result = BootstrapResult {
                    version: if versions.v3 { 3 } else { 2 },
                    address: address.to_owned(),
                    protocol: "ttrpc".into(),
                    ..Default::default()
                };
                let mut answer = result.encode_to_vec();
                if let Some(mounts) = mounts {
                    answer.extend(mounts.extension().encode_to_vec());
                }
                answer
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protos::bootstrap::Extension;
    use protos::runc::Options;

    fn params() -> BootstrapParams {
        BootstrapParams {
            instance_id: "c".into(),
            namespace: "n".into(),
            log_level: -4,
            extensions: vec![Extension {
                value: Some(any::pack(&Options::default())),
            }],
            ..Default::default()
        }
    }

    #[test]
    fn params_that_name_this_shim_are_a_bootstrap() {
        let caller = Caller::parse(&params().encode_to_vec(), "c", "n");
        assert!(matches!(caller, Caller::Bootstrap(_)));
        assert!(caller.debug() && caller.options().is_some());
        let result =
            BootstrapResult::decode(caller.answer("unix:///s", Versions::OURS, None).as_slice())
                .unwrap();
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        // One message, of which each reader takes what it knows.
        let mounts = Mounts {
            types: &["erofs"],
            transforms: &["format", "mkdir"],
        };
        assert_eq!(mounts.annotation(), "erofs,format/*,mkdir/*");
        let answer = caller.answer("unix:///s", Versions::OURS, Some(&mounts));
        assert_eq!(BootstrapResult::decode(answer.as_slice()), Ok(result));
        let rest = BootstrapExtensions::decode(answer.as_slice()).unwrap();
        let value = rest.extensions[0].value.as_ref().unwrap();
        assert!(
            value
                .type_url
                .ends_with("/containerd.types.MountCapabilities")
        );
        assert_eq!(value.value, b"\n\x05erofs\x12\x06format\x12\x05mkdir");
    }

    #[test]
    fn anything_else_is_legacy() {
        let other = Caller::parse(&params().encode_to_vec(), "other", "n");
        assert!(matches!(other, Caller::Legacy(_)));
        let options = any::pack(&Options {
            root: "/r".into(),
            ..Default::default()
        });
        let caller = Caller::parse(&options.encode_to_vec(), "c", "n");
        assert_eq!(caller, Caller::Legacy(Some(options)));
        assert_eq!(
            caller.answer("unix:///s", Versions::OURS, None),
            b"unix:///s"
        );
        let only_v3 = Versions {
            v2: false,
            v3: true,
        };
        let json = br#"{"version":3,"address":"unix:///s","protocol":"ttrpc"}"#;
        assert_eq!(caller.answer("unix:///s", only_v3, None), json);
        assert_eq!(Caller::parse(b"", "c", "n"), Caller::Legacy(None));
        assert_eq!(Caller::parse(b"\xff\xff", "c", "n"), Caller::Legacy(None));
    }
}
