// SPDX-License-Identifier: Apache-2.0
//! Users by name, also of root filesystems and bundles that are no image's.

use harness::manager;

#[test]
fn names_are_those_of_the_root_filesystem() {
    manager::on(|manager| {
        let id = ["sh", "-c", "id -u; id -g"];
        manager
            .run(&["--rm", "--user", "nobody"], "x", &id)
            .ok()
            .prints("65534\n65534\n");
        manager
            .run(&["--rm", "--user", "nobody:tty"], "x", &id)
            .ok()
            .prints("65534\n5\n");
        let refused = manager.run(&["--user", "stranger"], "x", &id).exits(125);
        assert!(
            refused.stderr.contains("--user") && refused.stderr.contains("stranger"),
            "{refused}"
        );
        assert!(manager.json(&["ls"]).is_empty());
        let bundle = crate::exec::bundle(manager, |spec| {
            spec["process"]["args"] = serde_json::json!(["sleep", "1000"]);
        });
        manager
            .dunnage(&["run", "-d", "-b", &bundle, "--user", "nobody", "b"])
            .ok();
        manager
            .dunnage(&["exec", "b", "id", "-u"])
            .ok()
            .prints("65534\n");
        manager
            .dunnage(&["exec", "--user", "0:tty", "b", "id", "-g"])
            .ok()
            .prints("5\n");
        let refused = manager
            .dunnage(&["exec", "--user", "stranger", "b", "id"])
            .exits(125);
        assert!(refused.stderr.contains("stranger"), "{refused}");
    });
}
