// SPDX-License-Identifier: Apache-2.0
//! What a configuration file may say.

use super::*;

fn load(main: &str, drop_ins: &[(&str, &str)]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, main).unwrap();
    std::fs::create_dir(dir.path().join("config.d")).unwrap();
    for (name, text) in drop_ins {
        std::fs::write(dir.path().join("config.d").join(name), text).unwrap();
    }
    Config::load(Some(&path))
}

#[test]
fn defaults_follow_from_state() {
    let config = load("state = \"/s\"", &[]).unwrap();
    assert_eq!(config.grpc.address, Path::new("/s/dunnage.sock"));
    assert_eq!(config.ttrpc.address, Path::new("/s/dunnage.sock.ttrpc"));
    assert_eq!(config.shim.socket_dir, Path::new("/s/s"));
    assert_eq!(config.grpc.mode, 0o660);
}

#[test]
fn later_files_win_key_by_key() {
    let main = "[shim]\non_death = \"keep\"\nstart_timeout = \"1m\"\n";
    let config = load(
        main,
        &[
            ("20.toml", "[shim]\nstart_timeout = \"3s\""),
            ("10.toml", "[shim]\nstart_timeout = \"2s\""),
            ("no", "nonsense"),
        ],
    )
    .unwrap();
    assert_eq!(config.shim.on_death, OnDeath::Keep);
    assert_eq!(config.shim.start_timeout.0, Duration::from_secs(3));
}

#[test]
fn a_wrong_key_or_value_is_named_with_its_file() {
    for (text, said) in [
        ("roots = \"/x\"", "roots"),
        ("[shim]\nsockets = 1", "sockets"),
        ("[grpc]\nmode = \"99\"", "99"),
        ("[journal]\nmax_age = \"7 days\"", "7 days"),
        ("[shim]\non_death = \"ignore\"", "ignore"),
        ("version = 2", "version"),
        ("state = \"here\"", "state"),
        ("[log]\nlevel = \"loud\"", "loud"),
        ("[grpc]\nmode = \"1777\"", "grpc.mode: 1777"),
        (
            "[metrics]\naddress = \"localhost\"",
            "metrics.address: \"localhost\"",
        ),
        (
            "[metrics]\naddress = \"127.0.0.1\"",
            "metrics.address: \"127.0.0.1\"",
        ),
        ("[shim]\nstart_timeout = \"0s\"", "shim.start_timeout"),
        (
            "[restart]\nbackoff_min = \"5s\"\nbackoff_max = \"1s\"",
            "restart.backoff_min: 5s",
        ),
        (
            "[runtime.paths]\nx = \"here\"",
            "runtime.paths.\"x\": \"here\"",
        ),
    ] {
        let e = load(text, &[]).unwrap_err();
        assert!(e.contains(said), "{text}: {e}");
        let e = load("", &[("x.toml", text)]).unwrap_err();
        assert!(e.contains(said), "{text}: {e}");
    }
}

#[test]
fn paths_of_sockets_that_are_too_long_are_named() {
    let long = format!("/{}", "x".repeat(107));
    for (text, key) in [
        (format!("[grpc]\naddress = \"{long}\""), "grpc.address"),
        (format!("[ttrpc]\naddress = \"{long}\""), "ttrpc.address"),
        (
            format!("[metrics]\naddress = \"{long}\""),
            "metrics.address",
        ),
        (format!("state = \"{long}\""), "grpc.address"),
        (
            format!("[shim]\nsocket_dir = \"{}\"", &long[..39]),
            "shim.socket_dir",
        ),
    ] {
        let e = load(&text, &[]).unwrap_err();
        assert!(e.contains(&format!("config.toml: {key}: ")), "{e}");
        assert!(e.contains("bytes"), "{e}");
    }
}

/// The file that is installed names every key, with the default.
#[test]
fn the_example_says_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("etc/config.toml");
    let example = Config::load(Some(&path)).unwrap();
    let mut default = Config::default();
    default.complete().unwrap();
    assert_eq!(format!("{example:?}"), format!("{default:?}"));
}
