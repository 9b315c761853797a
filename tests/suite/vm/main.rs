// SPDX-License-Identifier: Apache-2.0
//! The VM shim with real VMs: `SHIM_VM` names it, `DUNNAGE_VM_CONFIG` the guest image.
//!
//! A VM takes seconds to boot, so each test looks at much in one.

mod adopt;
mod attacker;
mod attributes;
mod boots;
mod cgroup;
mod check;
mod checkpoint;
mod container_sockets;
mod containerd;
mod cycles;
mod death;
mod debug;
mod docker;
mod files;
mod frozen;
#[cfg(target_arch = "x86_64")]
mod fsd;
mod guest;
mod hooks;
mod hostile;
mod image;
mod images;
mod inspect;
mod jail;
mod known;
mod kubernetes;
mod late;
mod life;
mod localhost;
mod manager;
mod memory;
mod network;
mod pod;
mod pods;
mod pool;
mod refusals;
mod removal;
mod rules;
mod sandbox;
mod share;
mod sockets;
mod streams;
mod swaps;
mod templates;
mod trace;
mod upgrade;
mod users;

use harness::bundle::Bundle;
use harness::stdio::{Fifos, Stdio};
use harness::{Shim, Test, proc};
use protos::task::ExecProcessRequest;
use std::env;
use std::path::Path;

/// [`harness::run`], with the shim of VMs.
fn run(body: impl AsyncFnOnce(&Test)) {
    prepare();
    harness::run(body);
}

/// What every test begins with.
fn prepare() {
    harness::peers::choose_vm_shim();
    let config = env::var_os("DUNNAGE_VM_CONFIG");
    assert!(
        config.is_some(),
        "DUNNAGE_VM_CONFIG is not set: target/peers/vm.toml would do (tests/setup.sh)"
    );
}

/// The shim's child whose command line says `word`.
fn child(shim: &Shim, word: &str) -> i32 {
    let says = |pid: &i32| proc::words(*pid, "cmdline").iter().any(|w| w == word);
    let found = proc::children(shim.pid()).into_iter().find(says);
    found.unwrap_or_else(|| panic!("no child of the shim says {word}"))
}

/// The guest image, where a shim in `<prefix>/bin` finds it without a configuration: then it also
/// finds out for itself whether KVM works here.
fn install_image(prefix: &Path) {
    let config = env::var_os("DUNNAGE_VM_CONFIG").expect("set");
    let config = Path::new(&config);
    let text = std::fs::read_to_string(config).expect("the configuration");
    let image = text.lines().find_map(|line| line.strip_prefix("image = "));
    let image = image.expect("it names the image").trim_matches('"');
    let image = config.parent().expect("a file").join(image);
    std::fs::create_dir_all(prefix.join("lib/dunnage")).expect("a new directory");
    let image = std::fs::canonicalize(image).expect("make guest");
    std::os::unix::fs::symlink(image, prefix.join("lib/dunnage/guest")).expect("a new link");
}

/// What this exec of the bundle's container says on stdout.
async fn said(shim: &Shim, bundle: &Bundle, request: ExecProcessRequest) -> String {
    let exec = request.exec_id.clone();
    let fifos = Fifos::new(bundle.test.dir().join(format!("io-{}-{exec}", bundle.id)));
    let (mut out, _err) = fifos.readers();
    shim.run(request.output(&fifos)).await;
    let text = out.text().await;
    shim.wait(&bundle.id, &exec).await.expect("its exit");
    text
}
