// SPDX-License-Identifier: Apache-2.0
//! Names of images, as Docker has them: short ones are Docker Hub's, and without a tag it is `latest`.

use crate::failure::{Failure, Result, refused};
use crate::store::{Image, Images};
use oci_client::Reference;

/// Digits that may stand for an image's id, at least.
const FEW: usize = 4;

/// # Errors
/// What names the text, if it is no name.
pub fn parse(text: &str) -> Result<Reference> {
    let parsed = text.parse::<Reference>();
    parsed.map_err(|e| {
        refused(
            format!("{text:?}"),
            format!("not the name of an image: {e}"),
        )
    })
}

/// The whole name of it.
///
/// # Errors
/// What names the text, if it is none.
pub fn whole(text: &str) -> Result<String> {
    Ok(parse(text)?.whole())
}

/// The image that `text` means, and the name by which it was found; none if that was its id.
///
/// # Errors
/// `NoImage`, and what names the text if it means several.
pub fn find<'a>(images: &'a Images, text: &str) -> Result<(&'a Image, Option<String>)> {
    let name = parse(text).ok().map(|name| name.whole());
    if let Some(name) = name
        && let Some(image) = images.named(&name)
    {
        return Ok((image, Some(name)));
    }
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = hex.len() >= FEW && hex.chars().all(|c| c.is_ascii_hexdigit());
    match images.beginning(hex)[..] {
        [image] if is_hex => Ok((image, None)),
        [_, _, ..] if is_hex => Err(refused(text, "the ids of several images begin so")),
        _ => match parse(text) {
            // A digest says all: the name before it is where it came from.
            Ok(name) if name.digest().is_some() => {
                let digest = name.digest().unwrap_or_default();
                let is_it = |image: &&Image| {
                    let has = image.digest.as_ref().map(|it| it.text());
                    has == Some(digest) || image.id.text() == digest
                };
                let found = images.images.iter().find(is_it);
                let image = found.ok_or_else(|| Failure::NoImage(text.to_owned()))?;
                Ok((image, None))
            }
            Ok(_) => Err(Failure::NoImage(text.to_owned())),
            Err(e) => Err(e),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_docker_hubs() {
        for (text, name) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("user/app:1", "docker.io/user/app:1"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("ghcr.io/a/b/c:x", "ghcr.io/a/b/c:x"),
        ] {
            assert_eq!(whole(text).unwrap(), name);
        }
        for text in ["", "A", "a b", "a:", "a@sha256:12", "/x", "../x"] {
            assert!(whole(text).is_err(), "{text}");
        }
    }
}
