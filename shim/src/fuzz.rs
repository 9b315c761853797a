// SPDX-License-Identifier: Apache-2.0
//! What a fuzzer, and a test with random inputs, do to the stdin of `start`.

use crate::params::{Caller, Versions};
use protos::Message;
use protos::bootstrap::{BootstrapParams, BootstrapResult};
use task::oci::Options;

/// Bytes on stdin: a bootstrap is one that names this shim, and either caller's answer can be
/// read by it.
pub fn params(input: &[u8]) {
    let caller = Caller::parse(input, "c", "n");
    let named = BootstrapParams::decode(input)
        .is_ok_and(|params| params.instance_id == "c" && params.namespace == "n");
    assert_eq!(matches!(caller, Caller::Bootstrap(_)), named);
    let _ = (caller.debug(), caller.socket_dir(), caller.ttrpc_address());
    let _ = Options::from_any(caller.options());
    let answer = caller.answer("unix:///s", Versions::OURS, None);
    match caller {
        Caller::Legacy(_) => assert_eq!(answer, b"unix:///s"),
        Caller::Bootstrap(_) => {
            let result = BootstrapResult::decode(answer.as_slice());
            assert_eq!(result.map(|r| r.address).ok().as_deref(), Some("unix:///s"));
        }
    }
}

#[cfg(test)]
#[path = "../../fuzz/mutate.rs"]
mod mutate;

#[cfg(test)]
mod tests {
    use super::*;
    use protos::any;
    use protos::bootstrap::Extension;

    #[test]
    fn no_bytes_upset_start() {
        let options = any::pack(&protos::runc::Options {
            root: "/r".into(),
            ..Default::default()
        });
        let params_for = |id: &str| BootstrapParams {
            instance_id: id.into(),
            namespace: "n".into(),
            log_level: -4,
            containerd_ttrpc_address: "/t".into(),
            socket_dir: Some("/d".into()),
            extensions: vec![Extension {
                value: Some(options.clone()),
            }],
            ..Default::default()
        };
        let seeds = [
            params_for("c").encode_to_vec(),
            params_for("other").encode_to_vec(),
            options.encode_to_vec(),
            Vec::new(),
        ];
        mutate::inputs(&seeds, params);
    }
}
