// SPDX-License-Identifier: Apache-2.0
//! Packing messages into `google.protobuf.Any`, the way containerd names them.

use prost::{DecodeError, Name};
use prost_types::Any;

/// Packs `message`; the type url is the bare full name (contract B13).
pub fn pack<M: Name>(message: &M) -> Any {
    Any {
        type_url: M::full_name(),
        value: message.encode_to_vec(),
    }
}

/// True if `any` holds an `M`, with or without a `type.googleapis.com/` prefix.
pub fn holds<M: Name>(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(M::full_name().as_str())
}

/// Unpacks an `M`; `None` if `any` holds something else.
pub fn unpack<M: Name + Default>(any: &Any) -> Option<Result<M, DecodeError>> {
    holds::<M>(any).then(|| M::decode(any.value.as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runc::Options;

    #[test]
    fn type_urls_are_bare_full_names() {
        let any = pack(&Options {
            root: "/r".into(),
            ..Default::default()
        });
        assert_eq!(any.type_url, "containerd.runc.v1.Options");
        assert_eq!(unpack::<Options>(&any).unwrap().unwrap().root, "/r");
        assert!(unpack::<crate::runc::ProcessDetails>(&any).is_none());
    }

    #[test]
    fn a_prefixed_type_url_is_understood() {
        let any = Any {
            type_url: "type.googleapis.com/containerd.runc.v1.Options".into(),
            value: vec![],
        };
        assert!(holds::<Options>(&any));
    }
}
