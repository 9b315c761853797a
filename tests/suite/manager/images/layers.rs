// SPDX-License-Identifier: Apache-2.0
//! Layers: what each makes of those below it, as a container sees it.

use super::{load, place};
use harness::image::{By, Image, Layer};
use harness::manager;
use serde_json::json;

/// What a container of the image prints.
fn says(manager: &manager::Manager, script: &str) -> String {
    manager
        .dunnage(&["run", "--rm", "box", "sh", "-c", script])
        .ok()
        .stdout
}

#[test]
fn what_a_layer_hides_is_hidden_and_nothing_else() {
    manager::on(|manager| {
        let lower = Layer::default()
            .file("file", "lower")
            .dir("dir", 0o755)
            .file("dir/a", "lower")
            .dir("opaque", 0o755)
            .file("opaque/a", "lower")
            .dir("again", 0o755)
            .file("again/a", "lower")
            .dir("late", 0o755)
            .file("late/a", "lower")
            .file("kept", "lower");
        let upper = Layer::default()
            .file(".wh.file", "")
            .file("dir/.wh.a", "")
            .file("dir/b", "upper")
            .file("opaque/b", "upper")
            .file("opaque/.wh..wh..opq", "")
            // Hidden, and made anew: in either order the old one's content is gone.
            .file(".wh.again", "")
            .dir("again", 0o755)
            .file("again/b", "upper")
            .dir("late", 0o755)
            .file("late/b", "upper")
            .file(".wh.late", "")
            // A name that was never there, and what AUFS kept for itself.
            .file(".wh.nothing", "")
            .dir(".wh..wh.plnk", 0o700)
            .file(".wh..wh.plnk/1.2", "x");
        load(manager, "box", &[lower, upper], json!({}));
        let said = says(
            manager,
            "ls -d /file /.wh* 2>&1 | grep -c 'No such'; ls dir opaque again late; cat kept",
        );
        let expected = "2\nagain:\nb\n\ndir:\nb\n\nlate:\nb\n\nopaque:\na\nb\n"
            .replace("opaque:\na\n", "opaque:\n");
        assert_eq!(said, format!("{expected}lower"));
    });
}

/// It hides all that is below: only what it brings itself is there.
#[test]
fn an_opaque_root_hides_every_layer_below() {
    manager::on(|manager| {
        let old = Layer::default().file("old", "x");
        let mut new = Layer::of_rootfs().file(".wh..wh..opq", "").file("new", "x");
        new = new.dir("added", 0o711);
        load(manager, "box", &[old, new], json!({}));
        assert_eq!(
            says(manager, "ls -d old new added 2>/dev/null; stat -c %a added"),
            "added\nnew\n711\n"
        );
    });
}

#[test]
fn links_devices_modes_times_and_attributes_are_as_the_layer_says() {
    manager::on(|manager| {
        let capability = b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
        let layer = Layer::default()
            .entry(b'0', "setuid", "", 0o4755, b"x")
            .hard_link("link", "setuid")
            .hard_link("absolute", "/setuid")
            .symlink("sym", "/setuid")
            .hard_link("symlink-again", "sym")
            .device("null", "1:3")
            .entry(b'6', "fifo", "", 0o640, b"")
            .dir("sticky", 0o1777)
            .pax(&[
                ("SCHILY.xattr.security.capability", capability),
                ("SCHILY.xattr.user.note", b"a\nb"),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ("uid", b"70000"),
                ("mtime", b"1234567890.5"),
            ])
            .file("capable", "x")
            .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")])
            .dir("etc", 0o755)
            .pax(&[("path", long.as_bytes())])
            .file("short", "long");
        load(manager, "box", &[layer], json!({}));
        let said = says(
            manager,
            "stat -c '%a %h' setuid link absolute; readlink sym; readlink symlink-again; \
             stat -c '%F %t:%T %a' null; stat -c '%F %a' fifo; stat -c %a sticky; \
             stat -c '%u %Y' capable; stat -c %Y setuid; ls etc | head -1; cat ddd*/f*",
        );
        let expected = "4755 3\n4755 3\n4755 3\n/setuid\n/setuid\ncharacter special file 1:3 666\n\
             fifo 640\n1777\n70000 1234567890\n1000000000\ngroup\nlong";
        assert_eq!(said, expected);
        let root = manager.dir().join("r/images/layers");
        let layers = std::fs::read_dir(root).expect("layers");
        let files: Vec<_> = layers
            .map(|it| it.expect("a layer").path().join("fs/capable"))
            .collect();
        let file = files.iter().find(|file| file.exists()).expect("capable");
        let attribute = |name: &str| xattr::get(file, name).expect("attributes");
        assert_eq!(
            attribute("security.capability").as_deref(),
            Some(&capability[..])
        );
        assert_eq!(attribute("user.note").as_deref(), Some(&b"a\nb"[..]));
        assert_eq!(attribute("trusted.overlay.redirect"), None);
    });
}

/// A directory that only has something in it is as it was, also what it belongs to.
#[test]
fn directories_that_a_layer_does_not_describe_stay_as_they_were() {
    manager::on(|manager| {
        let lower = Layer::default()
            .dir("private", 0o700)
            .pax(&[("uid", b"5"), ("gid", b"6")])
            .dir("private/mine", 0o2750);
        let middle = Layer::default().file("unrelated", "x");
        let upper = Layer::default()
            .file("private/mine/new", "x")
            .file("nobodys/new", "x");
        load(manager, "box", &[lower, middle, upper], json!({}));
        let said = says(manager, "stat -c '%a %u %g' / private private/mine nobodys");
        assert_eq!(said, "755 0 0\n700 0 0\n2750 5 6\n755 0 0\n");
    });
}

#[test]
fn blobs_are_gzip_zstd_or_as_they_are() {
    manager::on(|manager| {
        let layers = [By::Zstd, By::Nothing, By::Gzip].into_iter().enumerate();
        let above = layers.map(|(n, by)| (Layer::default().file(&format!("of{n}"), "x").tar(), by));
        let mut image = Image::new(&[], json!({}));
        image.layers = vec![(Layer::of_rootfs().tar(), By::Zstd)];
        image.layers.extend(above);
        let dir = place(manager, "layout");
        image.layout(&dir, "box");
        manager
            .dunnage(&["image", "load", &dir.display().to_string()])
            .ok();
        assert_eq!(says(manager, "ls -d of*"), "of0\nof1\nof2\n");
    });
}

/// Docker's most; their names fit into the page that mount(2) takes.
#[test]
fn a_hundred_and_twenty_seven_layers_are_one_root() {
    manager::on(|manager| {
        let layers: Vec<Layer> = (1..127)
            .map(|n| Layer::default().file(&format!("l{n}"), "x"))
            .collect();
        load(manager, "box", &layers, json!({"User": "nobody"}));
        assert_eq!(
            says(manager, "id -u; ls -d l* | wc -l; ls l126"),
            "65534\n126\nl126\n"
        );
    });
}
