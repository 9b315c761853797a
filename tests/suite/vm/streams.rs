// SPDX-License-Identifier: Apache-2.0
//! Standard streams across the VM's border: pipes, terminals, files, loggers, and their ends (V2).

use harness::stdio::{Fifos, Stdio, Sum};
use harness::wait;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Twenty megabytes through stdin and back, checked by checksum; the end of input travels with it.
#[test]
fn twenty_megabytes_go_in_and_come_back() {
    crate::run(async |test| {
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        let bundle = test.bundle("c").args(&["cat"]).build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create().fifos(&fifos)).await.unwrap();
        shim.start("c", "").await.unwrap();
        let data: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut stdin = fifos.stdin.writer().await;
        let write = async {
            for chunk in data.chunks(1 << 20) {
                stdin.write(chunk).await;
            }
            drop(stdin);
            shim.close_io("c", "").await.unwrap();
        };
        let (sum, ()) = tokio::join!(out.sum(), write);
        assert_eq!(sum, Sum::of(&data));
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 0);
        shim.delete("c", "").await.unwrap();
        shim.released().await;
    });
}

/// A terminal in the guest: size, echo, resize, and all output before Wait answers. Then, in the
/// same VM, what else a process's output may go to.
#[test]
fn terminals_files_and_loggers_get_what_a_process_says() {
    crate::run(async |test| {
        let fifos = Fifos::new(test.dir().join("io"));
        let mut out = fifos.stdout.reader();
        let script = "read line; stty size; tty; read line; exit 5";
        let bundle = test.bundle("c").terminal().sh(script).build();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create().terminal(&fifos)).await.unwrap();
        shim.resize("c", "", 100, 40).await.unwrap();
        shim.start("c", "").await.unwrap();
        let mut stdin = fifos.stdin.writer().await;
        stdin.write("go\n").await;
        assert_eq!(out.until("/0\r\n").await, "go\r\n40 100\r\n/dev/pts/0\r\n");

        let file = test.dir().join("logs/e.log");
        let name = format!("file://{}", file.display());
        let request = bundle.exec_sh("file", "echo out; echo err >&2");
        shim.run(request.stdio("", &name, "")).await;
        assert_eq!(shim.wait("c", "file").await.unwrap().exit_status, 0);
        let text = fs::read_to_string(&file).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            ["err", "out"],
            "Wait answers once the output is there"
        );

        let logger = test.dir().join("logger");
        let logged = test.dir().join("logged");
        let script = format!("#!/bin/sh\nexec 5>&-\ncat <&3 >{}\n", logged.display());
        fs::write(&logger, script).unwrap();
        fs::set_permissions(&logger, fs::Permissions::from_mode(0o755)).unwrap();
        let name = format!("binary://{}", logger.display());
        let request = bundle.exec_sh("logger", "seq 1 20000");
        shim.run(request.stdio("", &name, &name)).await;
        assert_eq!(shim.wait("c", "logger").await.unwrap().exit_status, 0);
        let expected: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
        assert_eq!(
            Sum::of(&fs::read(&logged).unwrap()),
            Sum::of(expected.as_bytes())
        );

        let tty = Fifos::new(test.dir().join("exec-tty"));
        let mut tty_out = tty.stdout.reader();
        let request = bundle.exec_sh("tty", "read line; stty size; exit 6");
        shim.run(request.terminal(&tty)).await;
        shim.resize("c", "tty", 81, 25).await.unwrap();
        let mut tty_in = tty.stdin.writer().await;
        tty_in.write("x\n").await;
        assert_eq!(tty_out.text().await, "x\r\n25 81\r\n");
        assert_eq!(shim.wait("c", "tty").await.unwrap().exit_status, 6);

        // An output that nobody reads holds up neither calls nor another process.
        let stuck = Fifos::new(test.dir().join("stuck"));
        let (unread, _err) = stuck.readers();
        let request = bundle.exec_sh("stuck", "yes | head -c 3000000; exit 0");
        shim.run(request.output(&stuck)).await;
        shim.run(bundle.exec_sh("quick", "exit 9")).await;
        assert_eq!(shim.wait("c", "quick").await.unwrap().exit_status, 9);
        let mut unread = unread;
        assert_eq!(unread.sum().await.bytes, 3_000_000);
        wait::soon("end of the stuck one", shim.wait("c", "stuck"))
            .await
            .unwrap();

        stdin.write("end\n").await;
        assert_eq!(shim.wait("c", "").await.unwrap().exit_status, 5);
        shim.delete("c", "").await.unwrap();
    });
}
