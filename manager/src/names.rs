// SPDX-License-Identifier: Apache-2.0
//! What a container is called, and what may be an id, a namespace or a label (containerd
//! pkg/identifiers, pkg/labels).

use crate::failure::{Failure, invalid};

/// A container, of any namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: String,
    pub id: String,
}

impl Key {
    pub fn new(namespace: &str, id: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
        }
    }
}

impl std::fmt::Display for Key {
    /// For logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.id)
    }
}

/// The longest id, in bytes.
pub const MAX_ID: usize = 76;
const MAX_LABEL: usize = 4096;
/// How much of a label's key an error repeats.
const SHOWN_KEY: usize = 64;

/// Words of letters and digits, joined by single `.`, `_` or `-`.
///
/// # Errors
/// `InvalidArgument`, which names the value.
pub fn check_id(id: &str) -> Result<(), Failure> {
    if id.is_empty() {
        return Err(invalid("identifier must not be empty"));
    }
    if id.len() > MAX_ID {
        return Err(invalid(format!(
            "identifier {id:?} greater than maximum length ({MAX_ID} characters)"
        )));
    }
    let words = id.split(['.', '_', '-']);
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric());
    if words.into_iter().all(is_word) {
        return Ok(());
    }
    Err(invalid(format!(
        "identifier {id:?} must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
    )))
}

/// # Errors
/// `InvalidArgument` if there is no namespace, or it is not an id.
pub fn check_namespace(namespace: &str) -> Result<(), Failure> {
    if namespace.is_empty() {
        return Err(crate::failure::precondition("namespace is required"));
    }
    check_id(namespace).map_err(|e| invalid(format!("namespace validation: {}", plain(&e.message))))
}

fn plain(message: &str) -> &str {
    message
        .strip_suffix(": invalid argument")
        .unwrap_or(message)
}

/// # Errors
/// `InvalidArgument` if key and value together are too long.
pub fn check_label(key: &str, value: &str) -> Result<(), Failure> {
    let total = key.len() + value.len();
    if total <= MAX_LABEL {
        return Ok(());
    }
    let shown: String = key.chars().take(SHOWN_KEY).collect();
    Err(invalid(format!(
        "label key and value length ({total} bytes) greater than maximum size ({MAX_LABEL} bytes), key: {shown}"
    )))
}

/// Topics are `/word/word…` (core/events/exchange `validateTopic`).
///
/// # Errors
/// `InvalidArgument`, which names the topic.
pub fn check_topic(topic: &str) -> Result<(), Failure> {
    let Some(words) = topic.strip_prefix('/') else {
        return Err(invalid(format!("topic {topic:?} must start with '/'")));
    };
    if words.is_empty() {
        return Err(invalid(format!(
            "topic {topic:?} must have at least one component"
        )));
    }
    for word in words.split('/') {
        check_id(word).map_err(|_| {
            invalid(format!(
                "component {word:?} of topic {topic:?} is not an identifier"
            ))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_words_joined_by_single_marks() {
        for good in ["a", "A1", "a.b_c-d", "0", &"x".repeat(76)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a/b",
            "a b",
            "é",
            "../x",
            &"x".repeat(77),
        ] {
            let e = check_id(bad).unwrap_err();
            assert_eq!(e.code, protos::Code::InvalidArgument, "{bad}");
            assert!(e.message.contains(bad), "{}", e.message);
        }
    }

    #[test]
    fn topics_are_paths_of_words() {
        assert!(check_topic("/tasks/exec-added").is_ok());
        for bad in ["", "/", "tasks", "/tasks/", "/tasks//x", "/a b"] {
            assert!(check_topic(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_have_a_limit() {
        assert!(check_label("k", &"v".repeat(4095)).is_ok());
        assert!(check_label("k", &"v".repeat(4096)).is_err());
    }
}
