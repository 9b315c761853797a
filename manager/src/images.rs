// SPDX-License-Identifier: Apache-2.0
//! Root filesystems of containers that are made of images: an overlay for each, of its image's layers
//! and a directory of its own.
//!
//! ```text
//! <root>/images/layers/KEY/fs   a layer, which is nobody's to write: dunnage-image makes and removes it
//! <root>/roots/TOKEN/fs, work   what one container writes; made with its first task, and removed with
//!                               its record
//! ```
//! What a container is made of is said in its record, as an extension. The shim mounts the overlay
//! when it creates the task: nothing is mounted between two tasks, nor for a daemon that is gone. The
//! token is the container's for ever, also under another name.

use crate::failure::{Failure, invalid, io};
use crate::manager::Manager;
use crate::store::make_dir;
use protos::Any;
use protos::services::containers::v1::Container;
use protos::services::tasks::v1::CreateTaskRequest;
use protos::types::Mount;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use task::aside;

/// The extension of a record, and the type of what is in it.
const EXTENSION: &str = "io.dunnage.image";
const TYPE: &str = "io.dunnage.image.v1";
/// What mount(2) would take for something else in the options of an overlay.
const SEPARATORS: [char; 3] = [':', ',', '\\'];

/// What a container is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Made {
    /// The image's id, and the name by which it was asked for.
    pub id: String,
    pub name: Option<String>,
    /// The keys of its layers, the lowest first.
    pub layers: Vec<String>,
    /// What the container's own directory is called by.
    pub token: String,
    /// What the image says of itself, for whoever wants to know.
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
}

impl Made {
    /// What a record says; none, if its container is made of no image.
    ///
    /// # Errors
    /// `InvalidArgument`, if it can't be so.
    pub fn of(container: &Container) -> Result<Option<Self>, Failure> {
        let Some(any) = container.extensions.get(EXTENSION) else {
            return Ok(None);
        };
        let bad = |e: &dyn std::fmt::Display| invalid(format!("extension {EXTENSION}: {e}"));
        let made: Self = task::json::read(&any.value).map_err(|e| bad(&e))?;
        let is_name =
            |name: &String| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let all_are = made.layers.iter().chain([&made.token]).all(is_name);
        match all_are {
            true => Ok(Some(made)),
            false => Err(bad(&"a key or the token is none")),
        }
    }

    /// Says it in a record.
    pub fn note(&self, container: &mut Container) {
        let value = serde_json::to_vec(self).unwrap_or_default();
        let type_url = TYPE.to_owned();
        container
            .extensions
            .insert(EXTENSION.into(), Any { type_url, value });
    }

    /// How the container's root filesystem is mounted; its own directory is made if it has none.
    ///
    /// # Errors
    /// From the file system, and if overlays can't be where `root` is.
    pub fn mounts(&self, root: &Path) -> Result<Vec<Mount>, Failure> {
        let text = root.display().to_string();
        if text.contains(SEPARATORS) {
            let why = "an overlay can't be in a directory with `:`, `,` or `\\` in its name";
            return Err(invalid(format!("root: {text:?}: {why}")));
        }
        let layers = root.join("images/layers");
        let lower = self.layers.iter().rev();
        let lower: Vec<PathBuf> = lower.map(|key| layers.join(key).join("fs")).collect();
        for layer in &lower {
            fs::metadata(layer).map_err(io(format!("image {}: {}", self.id, layer.display())))?;
        }
        let own = dir(root).join(&self.token);
        self.make(&own, lower.first())?;
        let upper = own.join("fs").display().to_string();
        if lower.is_empty() {
            return Ok(vec![mount(
                "bind",
                &upper,
                &["rbind", "rw"].map(String::from),
            )]);
        }
        let lower: Vec<String> = lower.iter().map(|it| it.display().to_string()).collect();
        let options = [
            format!("workdir={}", own.join("work").display()),
            format!("upperdir={upper}"),
            format!("lowerdir={}", lower.join(":")),
        ];
        Ok(vec![mount("overlay", "overlay", &options)])
    }

    /// Makes the container's own directory, whose root is like the image's.
    fn make(&self, own: &Path, uppermost: Option<&PathBuf>) -> Result<(), Failure> {
        let upper = own.join("fs");
        let failed = || io(upper.display());
        make_dir(own.parent().unwrap_or(own)).map_err(failed())?;
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(own.join("work")).map_err(failed())?;
        if upper.exists() {
            return Ok(());
        }
        let new = own.join("new");
        private.create(&new).map_err(failed())?;
        let (mode, owner) = match uppermost {
            Some(layer) => {
                let like = fs::metadata(layer).map_err(failed())?;
                (like.mode() & 0o7777, (like.uid(), like.gid()))
            }
            None => (0o755, (0, 0)),
        };
        chown(&new, Some(owner.0), Some(owner.1)).map_err(failed())?;
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).map_err(failed())?;
        fs::rename(&new, &upper).map_err(failed())
    }
}

impl Manager {
    /// The same request, with the mounts of a container that is made of an image and that was given none.
    ///
    /// # Errors
    /// As [`Made::of`] and [`Made::mounts`].
    pub async fn rooted(
        &self,
        container: &Container,
        mut create: CreateTaskRequest,
    ) -> Result<CreateTaskRequest, Failure> {
        if let Some(made) = Made::of(container)?
            && create.rootfs.is_empty()
        {
            let root = self.config.root.clone();
            create.rootfs = aside::run(move || made.mounts(&root)).await?;
        }
        Ok(create)
    }
}

fn mount(kind: &str, source: &str, options: &[String]) -> Mount {
    Mount {
        r#type: kind.into(),
        source: source.into(),
        options: options.to_vec(),
        ..Default::default()
    }
}

/// Where containers' own directories are.
pub fn dir(root: &Path) -> PathBuf {
    root.join("roots")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(layers: &[&str], token: &str) -> Container {
        let made = Made {
            id: "sha256:1".into(),
            name: None,
            layers: layers.iter().map(|&key| key.to_owned()).collect(),
            token: token.into(),
            exposed_ports: Vec::new(),
            volumes: Vec::new(),
        };
        let mut container = Container::default();
        made.note(&mut container);
        container
    }

    #[test]
    fn a_record_leads_nowhere_else() {
        assert!(Made::of(&Container::default()).unwrap().is_none());
        assert!(Made::of(&made(&["0a", "0b"], "c0")).unwrap().is_some());
        for (layers, token) in [
            (&["../x"][..], "c0"),
            (&["0a"], "../c0"),
            (&["0a:0b"], "c0"),
            (&[""], "c0"),
            (&[], ""),
        ] {
            assert!(
                Made::of(&made(layers, token)).is_err(),
                "{layers:?} {token}"
            );
        }
    }

    #[test]
    fn the_uppermost_layer_comes_first_and_says_what_the_root_is_like() {
        let root = tempfile::tempdir().unwrap();
        for (key, mode) in [("0a", 0o755), ("0b", 0o700)] {
            let layer = root.path().join("images/layers").join(key).join("fs");
            fs::create_dir_all(&layer).unwrap();
            fs::set_permissions(&layer, fs::Permissions::from_mode(mode)).unwrap();
        }
        let made = Made::of(&made(&["0a", "0b"], "c0")).unwrap().unwrap();
        let mounts = made.mounts(root.path()).unwrap();
        let lower = &mounts[0].options[2];
        assert!(
            lower.ends_with("/0a/fs") && lower.contains("/0b/fs:"),
            "{lower}"
        );
        let upper = dir(root.path()).join("c0/fs");
        assert_eq!(fs::metadata(&upper).unwrap().mode() & 0o7777, 0o700);
        fs::write(upper.join("kept"), "").unwrap();
        made.mounts(root.path()).unwrap();
        assert!(upper.join("kept").exists());
        assert!(made.mounts(Path::new("/a:b")).is_err());
    }
}
