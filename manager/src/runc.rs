// SPDX-License-Identifier: Apache-2.0
//! Containers of runc, which finds their state and their cgroups by nothing but their names: whoever
//! else has a container of the same name would find ours, and we theirs. So their state is below
//! ours, and no cgroup is taken that somebody is in.

use crate::bundles::Bundle;
use crate::failure::Failure;
use protos::{Any, Message, any, runc};
use std::path::Path;

/// What runc's shims are called, less the version.
const SHIM: &str = "containerd-shim-runc-";

/// The options of a task under the shim `binary`: as given, but runc's root is below our `state` if
/// they name no other.
pub fn options(given: Option<Any>, binary: &Path, state: &Path) -> Option<Any> {
    let name = binary.file_name().unwrap_or_default().to_string_lossy();
    let own = || {
        name.starts_with(SHIM)
            .then(|| any::pack(&runc::Options::default()))
    };
    let mut options = given.or_else(own)?;
    if let Some(Ok(known)) = any::unpack::<runc::Options>(&options)
        && known.root.is_empty()
    {
        let root = runc::Options {
            root: state.join("runc").display().to_string(),
            ..Default::default()
        };
        // Messages that follow one another are one; what we don't know in the first stays.
        options.value.extend(root.encode_to_vec());
    }
    Some(options)
}

/// Makes sure that a container of runc's touches nobody else's.
///
/// # Errors
/// `FailedPrecondition` if somebody is in the cgroup that it is to have.
pub async fn claim(bundle: &Bundle, options: Option<&Any>) -> Result<(), Failure> {
    let Some(Ok(options)) = options.and_then(any::unpack::<runc::Options>) else {
        return Ok(());
    };
    let claim = move |files: &crate::bundles::Files| {
        files.write_root(&options.root)?;
        files.check_cgroup(options.systemd_cgroup)
    };
    bundle.with(claim).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_of(given: Option<Any>, binary: &str) -> Option<runc::Options> {
        let options = options(given, Path::new(binary), Path::new("/s"));
        options.and_then(|it| any::unpack(&it)?.ok())
    }

    #[test]
    fn runcs_root_is_ours_unless_it_is_named() {
        let ours = root_of(None, "/bin/containerd-shim-runc-v2").unwrap();
        assert_eq!(ours.root, "/s/runc");
        assert_eq!(root_of(None, "/bin/containerd-shim-vm-v2"), None);
        let given = runc::Options {
            systemd_cgroup: true,
            ..Default::default()
        };
        let ours = root_of(Some(any::pack(&given)), "/bin/x").unwrap();
        assert!(ours.root == "/s/runc" && ours.systemd_cgroup);
        let given = runc::Options {
            root: "/r".into(),
            ..given
        };
        assert_eq!(root_of(Some(any::pack(&given)), "/bin/x"), Some(given));
        let other = Any {
            type_url: "x".into(),
            value: vec![1],
        };
        let state = Path::new("/s");
        assert_eq!(options(Some(other.clone()), state, state), Some(other));
    }
}
