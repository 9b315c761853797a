// SPDX-License-Identifier: Apache-2.0
//! Images for tests, good and bad: layers entry by entry, in every form in which images come.
#![allow(
    clippy::disallowed_methods,
    reason = "a test may wait for its own processes"
)]

use crate::peers;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use std::process::Command;

const BLOCK: usize = 512;

/// An archive of a root filesystem's changes, byte by byte (pax(1), ustar).
#[derive(Clone, Default)]
pub struct Layer(pub Vec<u8>);

impl Layer {
    /// The tests' own root filesystem, as GNU tar writes it.
    pub fn of_rootfs() -> Self {
        let tar = Command::new("tar")
            .args(["--format=pax", "--numeric-owner", "--owner=0", "--group=0"])
            .args(["--pax-option=delete=atime,delete=ctime", "-C"])
            .arg(peers::rootfs())
            .args(["-c", "."])
            .output()
            .expect("tar");
        assert!(tar.status.success(), "{tar:?}");
        // Entries may be added before the end.
        let end = tar.stdout.len() - tar.stdout.iter().rev().take_while(|&&b| b == 0).count();
        let mut bytes = tar.stdout;
        bytes.truncate(end.next_multiple_of(BLOCK));
        Self(bytes)
    }

    /// Any entry: its type as tar has it, what a link leads to, and its data.
    #[must_use]
    pub fn entry(mut self, kind: u8, path: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = [0_u8; BLOCK];
        let mut put = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, path);
        put(100, &format!("{mode:07o}"));
        put(108, &format!("{:07o}", 0));
        put(116, &format!("{:07o}", 0));
        put(124, &format!("{:011o}", data.len()));
        put(136, &format!("{:011o}", 1_000_000_000));
        put(148, "        ");
        put(157, link);
        put(257, "ustar\x0000");
        if let (b'3' | b'4', Some((major, minor))) = (kind, link.split_once(':')) {
            put(157, &"\0".repeat(link.len()));
            put(
                329,
                &format!("{:07o}", major.parse::<u32>().expect("a number")),
            );
            put(
                337,
                &format!("{:07o}", minor.parse::<u32>().expect("a number")),
            );
        }
        header[156] = kind;
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    #[must_use]
    pub fn file(self, path: &str, data: &str) -> Self {
        self.entry(b'0', path, "", 0o644, data.as_bytes())
    }

    #[must_use]
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(b'5', path, "", mode, b"")
    }

    #[must_use]
    pub fn symlink(self, path: &str, to: &str) -> Self {
        self.entry(b'2', path, to, 0o777, b"")
    }

    #[must_use]
    pub fn hard_link(self, path: &str, to: &str) -> Self {
        self.entry(b'1', path, to, 0o644, b"")
    }

    /// A character device.
    #[must_use]
    pub fn device(self, path: &str, numbers: &str) -> Self {
        self.entry(b'3', path, numbers, 0o666, b"")
    }

    /// Says something of the next entry: pax records.
    #[must_use]
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
            let mut length = rest.len() + 1;
            while format!("{length}").len() + rest.len() != length {
                length += 1;
            }
            data.extend_from_slice(format!("{length}").as_bytes());
            data.extend_from_slice(&rest);
        }
        self.entry(b'x', "pax", "", 0o644, &data)
    }

    /// The whole archive.
    pub fn tar(&self) -> Vec<u8> {
        [&self.0[..], &[0; 2 * BLOCK]].concat()
    }
}

/// What a blob is compressed by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    Nothing,
    Gzip,
    /// Of several frames, as pzstd writes them, and something to be skipped.
    Zstd,
}

/// An image, before it is written.
pub struct Image {
    /// The archives of its layers, and how each blob is compressed.
    pub layers: Vec<(Vec<u8>, By)>,
    /// The `config` of its configuration.
    pub config: Value,
    /// Is not what the layers' own digests are, if it is there.
    pub diff_ids: Option<Vec<String>>,
}

impl Image {
    pub fn new(layers: &[Layer], config: Value) -> Self {
        Self {
            layers: layers.iter().map(|layer| (layer.tar(), By::Gzip)).collect(),
            config,
            diff_ids: None,
        }
    }

    pub fn configuration(&self) -> Value {
        let own = || self.layers.iter().map(|(tar, _)| digest(tar)).collect();
        let diff_ids: Vec<String> = self.diff_ids.clone().unwrap_or_else(own);
        json!({
            "architecture": architecture(), "os": "linux", "created": "2001-09-09T01:46:40Z",
            "config": self.config, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
    }

    /// Writes an OCI layout with this image into `dir`, under a name.
    pub fn layout(&self, dir: &Path, name: &str) {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("blobs");
        let blob = |bytes: &[u8], kind: &str| {
            let digest = digest(bytes);
            fs::write(blobs.join(&digest["sha256:".len()..]), bytes).expect("a blob");
            json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
        };
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|(tar, by)| {
                let (ending, bytes) = match by {
                    By::Nothing => ("", tar.clone()),
                    By::Gzip => ("+gzip", through("gzip", &["-c"], tar)),
                    By::Zstd => ("+zstd", zstd(tar)),
                };
                blob(
                    &bytes,
                    &format!("application/vnd.oci.image.layer.v1.tar{ending}"),
                )
            })
            .collect();
        let config = blob(
            self.configuration().to_string().as_bytes(),
            "application/vnd.oci.image.config.v1+json",
        );
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
        let mut manifest = blob(manifest.to_string().as_bytes(), kind);
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(dir.join("index.json"), index.to_string()).expect("index.json");
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("oci-layout");
    }

    /// Writes the directory of which Docker's older `docker save` makes an archive.
    pub fn saved(&self, dir: &Path, name: &str) {
        fs::create_dir_all(dir).expect("a directory");
        let config = self.configuration().to_string();
        let id = digest(config.as_bytes())["sha256:".len()..].to_owned();
        fs::write(dir.join(format!("{id}.json")), &config).expect("the configuration");
        let layers: Vec<String> = (0..self.layers.len())
            .map(|n| format!("{n:064x}/layer.tar"))
            .collect();
        for (path, (tar, _)) in layers.iter().zip(&self.layers) {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().expect("one")).expect("a directory");
            fs::write(path, tar).expect("layer.tar");
        }
        let manifest =
            json!([{"Config": format!("{id}.json"), "RepoTags": [name], "Layers": layers}]);
        fs::write(dir.join("manifest.json"), manifest.to_string()).expect("manifest.json");
    }
}

/// Makes an archive of a directory with the machine's tar.
pub fn archive(dir: &Path, file: &Path) {
    let tar = Command::new("tar")
        .arg("-C")
        .arg(dir)
        .arg("-cf")
        .arg(file)
        .arg(".")
        .output();
    let tar = tar.expect("tar");
    assert!(tar.status.success(), "{tar:?}");
}

pub fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn zstd(tar: &[u8]) -> Vec<u8> {
    let (first, second) = tar.split_at(tar.len() / 2);
    let frame = |part| through("zstd", &["-c", "-q"], part);
    // A frame to be skipped: its magic number, its length, its content (RFC 8878, 3.1.2).
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    [frame(first), skipped, frame(second)].concat()
}

/// What a program makes of its stdin.
fn through(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), input).expect("a file");
    let output = Command::new(program)
        .args(args)
        .stdin(fs::File::open(file.path()).expect("a file"))
        .output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e} (tests/setup.sh installs it)"));
    assert!(output.status.success(), "{program}: {output:?}");
    output.stdout
}
