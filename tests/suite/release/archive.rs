// SPDX-License-Identifier: Apache-2.0
//! The archive of a release: what is in it, and that whoever makes it again gets the same bytes.

use crate::{dist, guest, programs, script};
use harness::peers;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes a release out of the programs, under `umask`; its files by their names.
fn make(dir: &Path, dist: &Path, out: &str, umask: &str) -> BTreeMap<String, Vec<u8>> {
    let out = dir.join(out);
    let mut command = Command::new("bash");
    command
        .args(["-c", "umask $0 && exec release/dist.sh", umask])
        .env("DIST", dist)
        .env("GUEST", guest())
        .env("OUT", &out)
        .env_remove("SOURCE_DATE_EPOCH");
    script(&mut command);
    let files = fs::read_dir(&out).expect("a release").map(|entry| {
        let entry = entry.expect("a file");
        let name = entry.file_name().into_string().expect("a name");
        (name, fs::read(entry.path()).expect("a file"))
    });
    files.collect()
}

fn base() -> String {
    format!("dunnage-{}-linux-amd64", crate::version::cargo())
}

/// At two times, under two umasks, from files of two ages.
#[test]
fn the_same_programs_make_the_same_release() {
    let dir = tempfile::tempdir().expect("a directory");
    let dist = dist(dir.path());
    let first = make(dir.path(), &dist, "first", "022");
    let touched = Command::new("touch")
        .args(["-d", "2001-01-01"])
        .args(fs::read_dir(&dist).unwrap().map(|it| it.unwrap().path()))
        .status()
        .expect("touch");
    assert!(touched.success());
    let second = make(dir.path(), &dist, "second", "077");
    let names: Vec<&String> = first.keys().collect();
    let sums = "SHA256SUMS".to_owned();
    let [archive, bill] = [".tar.gz", ".cdx.json"].map(|ending| base() + ending);
    assert_eq!(names, [&sums, &bill, &archive]);
    assert_eq!(names, second.keys().collect::<Vec<_>>());
    for (name, bytes) in &first {
        assert!(second[name] == *bytes, "{name} differs");
    }
    for line in String::from_utf8_lossy(&first[&sums]).lines() {
        let (sum, name) = line.split_once("  ").expect("a line of sha256sum");
        let found = Sha256::digest(&first[name]);
        let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, sum, "{name}");
    }
    unpacked_it_works(&dir.path().join("first").join(&archive));
}

/// What whoever unpacks it below a prefix has.
fn unpacked_it_works(archive: &Path) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut tar = Command::new("tar");
    tar.args(["--strip-components=1", "-xzf"]).arg(archive);
    script(tar.arg("-C").arg(dir.path()));
    let path = |name: &str| dir.path().join(name);
    for name in [
        "bin/dunnage-image",
        "lib/dunnage/guest/distro/guest.toml",
        "lib/systemd/system/dunnage-pool.service",
        "lib/systemd/system/dunnage.service",
        "share/bash-completion/completions/dunnage",
        "share/doc/dunnage/LICENSE",
        "share/doc/dunnage/examples/config.toml",
        "share/doc/dunnage/examples/shim-vm.toml",
        "share/man/man1/dunnage-run.1",
    ] {
        assert!(path(name).is_file(), "{name} is missing");
    }
    for name in ["containerd-shim-runc-v2", "containerd-shim-vm-v2"] {
        let said = peers::version_text(&path("bin").join(name));
        assert!(said.contains(&crate::version::cargo()), "{said}");
    }
    let mut check = Command::new(path("bin/dunnage"));
    check
        .arg("check")
        .arg("--config")
        .arg(path("share/doc/dunnage/examples/config.toml"));
    script(&mut check);
    let read = |name: &str| fs::read_to_string(path("share/doc/dunnage").join(name)).unwrap();
    bill_and_licences_agree(&read("sbom.cdx.json"), &read("THIRD-PARTY.txt"));
}

/// Every crate of others has a licence's text, and is known by its checksum.
fn bill_and_licences_agree(bill: &str, texts: &str) {
    let bill: Value = serde_json::from_str(bill).expect("JSON");
    assert_eq!(bill["bomFormat"], "CycloneDX");
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let components = bill["components"].as_array().expect("components");
    let others = components
        .iter()
        .filter(|it| it["hashes"][0]["alg"] == "SHA-256");
    let others: BTreeSet<String> = others
        .map(|it| format!("{} {} (", word(&it["name"]), word(&it["version"])))
        .collect();
    assert!(others.len() > 150, "{others:?}");
    for name in &others {
        let told = texts.lines().any(|line| line.starts_with(name));
        assert!(told, "no licence of {name:?}");
    }
    let names: BTreeSet<String> = components.iter().map(|it| word(&it["name"])).collect();
    for name in [
        "tokio",
        "rustls",
        "virtiofsd",
        "linux",
        "crun",
        "rust-std",
        "shim-runc",
    ] {
        assert!(names.contains(name), "{name} is not told of");
    }
    for name in ["tempfile", "protox", "containerd-shim", "serde_derive"] {
        assert!(!names.contains(name), "{name} is in no program");
    }
    let refs: BTreeSet<String> = components.iter().map(|it| word(&it["bom-ref"])).collect();
    assert_eq!(refs.len(), components.len(), "a component is there twice");
    let dependencies = bill["dependencies"].as_array().expect("dependencies");
    for on in dependencies
        .iter()
        .filter_map(|it| it["dependsOn"].as_array())
    {
        let unknown: Vec<_> = on.iter().filter(|it| !refs.contains(&word(it))).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}

/// Where somebody built a program is in none. (Programs of another build than the Makefile's
/// are not released.)
#[test]
fn no_directory_of_the_build_is_in_a_program() {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let dirs = [peers::workspace().to_owned(), home.expect("HOME")];
    let ours = peers::workspace().join("target/dist");
    for program in programs().iter().filter(|it| it.starts_with(&ours)) {
        let bytes = fs::read(program).expect("a program");
        for dir in &dirs {
            let dir = format!("{}/", dir.display());
            let found = bytes
                .windows(dir.len())
                .position(|it| it == dir.as_bytes())
                .map(|at| String::from_utf8_lossy(&bytes[at..][..dir.len() + 60]).into_owned());
            assert_eq!(found, None, "{}", program.display());
        }
    }
}
