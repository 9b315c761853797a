// SPDX-License-Identifier: Apache-2.0
//! A container in a VM as a tree of spans: the boot with its phases, and what the guest was asked, on
//! behalf of whom its runtime hears, too.

use harness::otlp::{self, Span};
use harness::wait;
use protos::ttrpc::{CALLER, Trace};
use serde_json::json;
use std::fs;
use std::rc::Rc;

#[test]
fn a_boot_and_the_guests_calls_are_parts_of_a_create() {
    crate::run(async |test| {
        let file = test.dir().join("spans");
        let place = format!("file://{}", file.display());
        let hooked = test.dir().join("hooked");
        let script = format!("echo \"$TRACEPARENT\" >{}", hooked.display());
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        let hooks = json!({"createRuntime": [hook]});
        let bundle = test.bundle("c").set("/hooks", hooks).build();
        let shim = bundle.start().env("DUNNAGE_TRACE", &place).shim().await;
        let parent = Trace::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let create = shim.create(bundle.create());
        let parent = Some(Rc::new(parent.unwrap()));
        CALLER.scope(parent, create).await.unwrap();
        let all = wait::until("the spans", || {
            let text = fs::read_to_string(&file).map_err(|e| e.to_string())?;
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let all = otlp::read(whole);
            let is_there = all.iter().any(|span| span.name == "Create");
            is_there.then_some(all).ok_or(text)
        })
        .await;
        let of = |name: &str| -> &Span { otlp::named(&all, name) };
        let create = of("Create");
        assert_eq!(create.parent, "b7ad6b7169203331");
        let told = format!("00-{}-{}-01\n", create.trace, create.id);
        assert_eq!(fs::read_to_string(hooked).unwrap(), told);
        for (part, of_what) in [
            ("vm boot", "Create"),
            ("vm processes", "vm boot"),
            ("vm kernel", "vm boot"),
            ("vm configure", "vm boot"),
            ("guest PutBundle", "Create"),
            ("guest Create", "Create"),
        ] {
            assert_eq!(of(part).parent, of(of_what).id, "{part}: {all:#?}");
            assert!(of(of_what).begin <= of(part).begin, "{part}");
        }
        assert!(of("vm kernel").end <= of("vm configure").begin);
        shim.start("c", "").await.unwrap();
    });
}
