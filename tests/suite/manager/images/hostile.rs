// SPDX-License-Identifier: Apache-2.0
//! Layers that would leave their root, and content that is not what it is called.

use super::{kept, place};
use harness::image::{By, Image, Layer, archive, digest};
use harness::manager::{self, Manager};
use serde_json::json;
use std::fs;
use std::path::Path;

/// Files of the host's that hostile layers are after.
fn bait(manager: &Manager) -> String {
    let dir = manager.dir().join("bait");
    fs::create_dir_all(&dir).expect("a directory");
    fs::write(dir.join("file"), "the host's").expect("a file");
    dir.display().to_string()
}

fn unharmed(bait: &str) -> bool {
    let names = fs::read_dir(bait).expect("the bait");
    let names: Vec<_> = names.map(|it| it.expect("an entry").file_name()).collect();
    let file = Path::new(bait).join("file");
    let links = std::os::unix::fs::MetadataExt::nlink(&fs::metadata(&file).expect("the file"));
    names == ["file"] && links == 1 && fs::read(file).expect("the file") == b"the host's"
}

fn load(manager: &Manager, image: &Image) -> harness::containerd::ctr::Output {
    let dir = place(manager, "layout");
    let _ = fs::remove_dir_all(&dir);
    image.layout(&dir, "bad");
    manager.dunnage(&["image", "load", &dir.display().to_string()])
}

#[test]
fn a_layer_that_names_what_is_outside_is_refused_by_that_name() {
    manager::on(|manager| {
        let bait = bait(manager);
        let up = "../".repeat(20);
        let out = format!("{up}{}", &bait[1..]);
        let new = Layer::default;
        for (layer, named) in [
            (new().file(&format!("{out}/new"), "x"), "/new"),
            (new().file("a/../../x", "x"), "a/../../x"),
            (new().dir("..", 0o700), ".."),
            (new().symlink(&format!("{out}/link"), "/"), "/link"),
            (new().hard_link("link", &format!("{out}/file")), "link"),
            // There is none in the layer, whatever the host has.
            (new().hard_link("link", &format!("{bait}/file")), "link"),
            (
                new().symlink("s", &bait).hard_link("link", "s/file"),
                "link",
            ),
            (new().symlink("s", &bait).file("s/new", "x"), "s"),
            (new().symlink("s", &out).file("s/new", "x"), "s"),
            (new().symlink("s", &out).file("s/.wh.file", ""), "s"),
            (new().symlink("s", &out).file("s/.wh..wh..opq", ""), "s"),
            (new().file(&format!("{out}/.wh.file"), ""), ".wh.file"),
            (new().file("a/.wh...", ""), ".wh..."),
            (new().file("a/.wh..", ""), ".wh.."),
            (new().file("f", "x").file("f/below", "x"), "f"),
            (new().dir("d", 0o755).hard_link("link", "d"), "link"),
            (new().entry(b'Z', "odd", "", 0o644, b""), "odd"),
        ] {
            let image = Image::new(&[Layer::default().file("first", "x"), layer], json!({}));
            let refused = load(manager, &image);
            let (code, text) = (refused.code, refused.stderr.clone());
            assert!(
                code == 125 && text.contains(named) && text.lines().count() == 1,
                "{named}: {refused}"
            );
            assert!(unharmed(&bait), "{named}: {text}");
            assert!(kept(manager).is_empty(), "{named}: {:?}", kept(manager));
        }
    });
}

/// What a container may have as it is, for it is never followed out of the root.
#[test]
fn links_to_the_host_are_links_in_the_root() {
    manager::on(|manager| {
        let bait = bait(manager);
        let layer = Layer::default()
            .dir(&bait[1..], 0o755)
            .symlink("abs", &bait)
            .symlink("up", &format!("{}{}", "../".repeat(20), &bait[1..]))
            .file("abs/one", "of the image")
            .file("up/two", "of the image")
            .file("//etc/absolute", "of the image")
            // A link whose place is taken by a directory, and the other way round.
            .symlink("swap", &bait)
            .dir("swap", 0o755)
            .file("swap/three", "of the image")
            .dir("pows", 0o755)
            .file("pows/gone", "x")
            .symlink("pows", &bait)
            .file("pows/four", "of the image");
        let image = Image::new(&[Layer::of_rootfs(), layer], json!({}));
        load(manager, &image).ok();
        assert!(unharmed(&bait));
        let script = format!("ls {bait}; ls swap; cat /etc/absolute");
        let said = manager
            .dunnage(&["run", "--rm", "bad", "sh", "-c", &script])
            .ok();
        said.prints("four\none\ntwo\nthree\nof the image");
        assert!(unharmed(&bait));
    });
}

/// Users are looked up in the image's root, wherever its links lead.
#[test]
fn users_files_that_are_links_or_devices_lead_nowhere() {
    manager::on(|manager| {
        let bait = bait(manager);
        fs::write(format!("{bait}/file"), "the host's").expect("a file");
        fs::write(manager.dir().join("passwd"), "spy:x:77:77::/:/bin/sh\n").expect("passwd");
        let host = manager.dir().join("passwd").display().to_string();
        for passwd in [
            Layer::default().symlink("etc/passwd", &host),
            Layer::default().entry(b'6', "etc/passwd", "", 0o644, b""),
            Layer::default().device("etc/passwd", "1:5"),
        ] {
            let image = Image::new(&[Layer::of_rootfs(), passwd], json!({"User": "spy"}));
            load(manager, &image).ok();
            let refused = manager.dunnage(&["run", "bad", "true"]).exits(125);
            assert!(refused.stderr.contains("spy"), "{refused}");
        }
    });
}

/// Whatever is not what its digest says, ends early or is not there.
#[test]
fn damaged_images_are_named_and_leave_nothing() {
    manager::on(|manager| {
        let image = || {
            Image::new(
                &[Layer::of_rootfs(), Layer::default().file("a", "x")],
                json!({}),
            )
        };
        let dir = place(manager, "damaged");
        let blobs = dir.join("blobs/sha256");
        let check = |what: &str, named: &str| {
            let refused = manager
                .dunnage(&["image", "load", &dir.display().to_string()])
                .exits(125);
            let text = &refused.stderr;
            assert!(
                text.contains(named) && text.lines().count() == 1,
                "{what}: {refused}"
            );
            assert!(kept(manager).is_empty(), "{what}: {:?}", kept(manager));
            // And as an archive.
            let tar = place(manager, "damaged.tar");
            archive(&dir, &tar);
            manager
                .dunnage(&["image", "load", &tar.display().to_string()])
                .exits(125);
            assert!(kept(manager).is_empty(), "{what}: {:?}", kept(manager));
        };
        let fresh = |image: &Image| {
            let _ = fs::remove_dir_all(&dir);
            image.layout(&dir, "bad");
            let names = fs::read_dir(&blobs).expect("blobs");
            let mut names: Vec<_> = names.map(|it| it.expect("a blob").path()).collect();
            names.sort_by_key(|path| fs::metadata(path).expect("a blob").len());
            names
        };
        // The blobs by their size: the last is the first layer.
        for at in 0..4 {
            let path = fresh(&image())[at].clone();
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let mut bytes = fs::read(&path).expect("a blob");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x20;
            fs::write(&path, &bytes).expect("a blob");
            check("changed", if at == 3 { "layer 1 of 2" } else { "" });
            fs::write(&path, &bytes[..middle]).expect("a blob");
            check("cut off", &name);
            fs::remove_file(&path).expect("a blob");
            check("missing", &name);
            std::os::unix::fs::symlink("/etc/passwd", &path).expect("a link");
            check("a link out of it", &name);
        }
        let mut wrong = image();
        wrong.diff_ids = Some(vec![digest(&wrong.layers[0].0), digest(b"another")]);
        fresh(&wrong);
        check("another diff_id", &digest(b"another"));
        wrong.diff_ids = Some(vec![digest(&wrong.layers[0].0)]);
        fresh(&wrong);
        check("a diff_id less", "diff_ids");
        wrong.diff_ids = None;
        let cut = wrong.layers[0].0.len() / 2;
        wrong.layers[0] = (wrong.layers[0].0[..cut].to_vec(), By::Gzip);
        fresh(&wrong);
        check("half an archive", "layer 1 of 2");
    });
}

/// Docker's older archives have digests of the configuration and of what is in it only.
#[test]
fn damaged_archives_of_docker_are_named() {
    manager::on(|manager| {
        let dir = place(manager, "saved");
        let image = Image::new(&[Layer::of_rootfs()], json!({}));
        image.saved(&dir, "bad");
        let load = || manager.dunnage(&["image", "load", &dir.display().to_string()]);
        let layer = dir.join(format!("{:064x}/layer.tar", 0));
        let good = fs::read(&layer).expect("a layer");
        let mut bad = good.clone();
        bad[700] ^= 1;
        fs::write(&layer, &bad).expect("a layer");
        assert!(load().exits(125).stderr.contains("layer 1 of 1"));
        fs::write(&layer, &good).expect("a layer");
        let config = fs::read_dir(&dir)
            .expect("files")
            .map(|it| it.expect("a file").path());
        let config = config
            .into_iter()
            .find(|it| it.file_stem().is_some_and(|it| it.len() == 64) && it.is_file());
        let config = config.expect("the configuration");
        fs::write(&config, image.configuration().to_string() + " ").expect("a file");
        let name = config
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        assert!(load().exits(125).stderr.contains(&name));
        assert!(kept(manager).is_empty(), "{:?}", kept(manager));
        fs::write(
            dir.join("manifest.json"),
            r#"[{"Config": "../../etc/passwd", "Layers": []}]"#,
        )
        .expect("a file");
        assert!(load().exits(125).stderr.contains("../../etc/passwd"));
    });
}
