// SPDX-License-Identifier: Apache-2.0
//! What can't be done is refused at once and by name, and leaves nothing (V1, V7).

use harness::{Code, refused, wait};
use serde_json::json;
use std::fs;
use std::path::Path;

/// None of these boots a VM.
#[test]
fn wrong_requests_are_refused_by_name() {
    crate::run(async |test| {
        let refusal = async |id: &str, bundle: harness::bundle::Bundle| {
            let shim = bundle.start().shim().await;
            let status = refused(shim.create(bundle.create()).await);
            assert!(!test.vm_dir(id).exists());
            assert_eq!(refused(shim.state(id, "").await).code, Code::NotFound);
            shim.shutdown(id).await.unwrap();
            shim.stopped().await;
            status
        };
        let hook = json!([{"path": "/bin/true"}]);
        let bundle = test
            .bundle("hook")
            .set("/hooks/createContainer", hook)
            .build();
        let status = refusal("hook", bundle).await;
        assert_eq!(status.code, Code::Unimplemented);
        assert!(status.message.contains("hooks.createContainer"), "{status}");

        let kernel = "io.dunnage.vm.kernel";
        let bundle = test
            .bundle("kernel")
            .annotation(kernel, "/etc/passwd")
            .build();
        let status = refusal("kernel", bundle).await;
        let file = std::env::var("DUNNAGE_VM_CONFIG").expect("set");
        let why = format!("io.dunnage.vm.kernel: not allowed by {file}");
        assert!(status.message.contains(&why), "{status}");

        let bundle = test
            .bundle("little")
            .annotation("io.dunnage.vm.memory", "7")
            .build();
        let status = refusal("little", bundle).await;
        assert!(
            status.message.contains("io.dunnage.vm.memory=\"7\""),
            "{status}"
        );

        let device = json!({"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11});
        let bundle = test.bundle("device").set("/linux/devices", json!([device]));
        let bundle = bundle.set("/linux/resources/devices", json!([])).build();
        let status = refusal("device", bundle).await;
        assert_eq!(status.code, Code::Unimplemented);
        assert!(
            status.message.contains("linux.devices: /dev/kmsg"),
            "{status}"
        );

        let bundle = test.bundle("json").build();
        fs::write(bundle.file("config.json"), r#"{"root": 7}"#).unwrap();
        let status = refusal("json", bundle).await;
        assert!(status.message.contains("config.json"), "{status}");

        // None of them ends the shim.
        for part in ["linux", "process", "root", "hooks"] {
            let bundle = test
                .bundle(part)
                .set(&format!("/{part}"), json!([]))
                .build();
            let status = refusal(part, bundle).await;
            let why = format!("config.json: {part}: is no object");
            assert!(status.message.contains(&why), "{status}");
        }
    });
}

/// A guest that never says hello: the create fails within its deadline and says what the console
/// said; a create whose files are missing ends its VM.
#[test]
fn a_guest_that_does_not_come_up_fails_the_create_with_its_last_words() {
    crate::run(async |test| {
        let ours = std::env::var("DUNNAGE_VM_CONFIG").expect("set");
        let dir = Path::new(&ours).parent().expect("a file").to_owned();
        let text = fs::read_to_string(&ours).expect("the tests' configuration");
        // An initrd that is none: the kernel panics without an init.
        let initrd = test.dir().join("initrd");
        fs::write(&initrd, "no cpio").unwrap();
        let config = test.dir().join("shim-vm.toml");
        let text = text
            .replace("\"../", &format!("\"{}/../", dir.display()))
            .replace("annotations", "#");
        fs::write(
            &config,
            format!("{text}initrd = \"{}\"\n", initrd.display()),
        )
        .unwrap();
        let bundle = test.bundle("c").build();
        let start = bundle
            .start()
            .env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
        let shim = start.shim().await;
        let create = shim.create(bundle.create());
        let status = refused(wait::within(wait::DEADLINE * 2, "the refusal", create).await);
        let text = &status.message;
        assert!(text.contains("the VM did not start: "), "{text}");
        assert!(text.contains("QEMU ended: exit status 0"), "{text}");
        assert!(
            text.contains("Kernel panic"),
            "the console's last lines: {text}"
        );
        assert!(!test.vm_dir("c").exists());

        let missing = json!({"destination": "/x", "type": "bind", "source": "/nonexistent/x",
                             "options": ["bind"]});
        let bundle = test.bundle("m").mount(missing).build();
        let shim = bundle.start().shim().await;
        let status = refused(shim.create(bundle.create()).await);
        assert!(status.message.contains("/nonexistent/x"), "{status}");
        assert!(!test.vm_dir("m").exists());
    });
}
