//! Debian's registry, private to a test: docker-registry with a directory of its own.
#![allow(
    clippy::disallowed_methods,
    reason = "a test may wait for its own processes"
)]

use crate::containerd::capture::Capture;
use crate::image::digest;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub struct Registry {
    process: Child,
    port: u16,
    /// Of a registry that wants to know who asks.
    authorization: Option<&'static str>,
}

/// Who may ask, if not everybody: `user` with the password `secret`, in HTTP's words.
pub const USER: (&str, &str) = ("user", "secret");
/// The password, as `htpasswd -B` writes it.
const BCRYPT: &str = "$2b$04$aWruRjiZQ.lLFkhvStKE4.3W.4NJNkoqs/jfSOriRsTOu9AyfEJhO";
const AUTHORIZATION: &str = "Basic dXNlcjpzZWNyZXQ=";

impl Registry {
    /// Starts one, with its files in `dir`; it is `closed` to who has no password.
    pub fn start(dir: &Path, closed: bool) -> Self {
        fs::create_dir_all(dir.join("data")).expect("a directory");
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:0\"}}\n",
            dir.join("data").display()
        );
        if closed {
            let users = dir.join("users");
            fs::write(&users, format!("{}:{BCRYPT}\n", USER.0)).expect("users");
            config += &format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                users.display()
            );
        }
        let file = dir.join("registry.yml");
        fs::write(&file, config).expect("registry.yml");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&file);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: prctl with these arguments only sets a flag of the new process.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut process = command
            .spawn()
            .expect("docker-registry (tests/setup.sh installs it)");
        let log = Capture::of(process.stderr.take().expect("piped"));
        let port = log.wait_for("the registry to listen", |log| {
            let (_, rest) = log.split_once("listening on 127.0.0.1:")?;
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        });
        Self {
            process,
            port,
            authorization: closed.then_some(AUTHORIZATION),
        }
    }

    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Uploads what an OCI layout has, under a name and a tag (OCI distribution spec).
    pub fn push(&self, layout: &Path, name: &str, tag: &str) {
        let read =
            |path: &Path| fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let blob = |digest: &Value| {
            let digest = digest.as_str().expect("a digest");
            read(&layout.join("blobs").join(digest.replace(':', "/")))
        };
        let index: Value = serde_json::from_slice(&read(&layout.join("index.json"))).expect("JSON");
        let json = blob(&index["manifests"][0]["digest"]);
        let manifest: Value = serde_json::from_slice(&json).expect("JSON");
        let layers = manifest["layers"].as_array().expect("layers");
        for part in layers.iter().chain([&manifest["config"]]) {
            let bytes = blob(&part["digest"]);
            let begun = self.ask("POST", &format!("/v2/{name}/blobs/uploads/"), "", b"");
            let (_, location) = begun
                .split_once("Location: ")
                .unwrap_or_else(|| panic!("{begun}"));
            let location = location.lines().next().expect("a line").trim();
            let path = location
                .split_once(&format!(":{}", self.port))
                .map_or(location, |(_, path)| path);
            let path = format!("{path}&digest={}", digest(&bytes));
            let put = self.ask("PUT", &path, "application/octet-stream", &bytes);
            assert!(put.starts_with("HTTP/1.1 201"), "{put}");
        }
        let kind = manifest["mediaType"].as_str().expect("a type");
        let put = self.ask("PUT", &format!("/v2/{name}/manifests/{tag}"), kind, &json);
        assert!(put.starts_with("HTTP/1.1 201"), "{put}");
    }

    /// One request on a connection of its own; the whole answer.
    fn ask(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the registry");
        let auth = self
            .authorization
            .map_or(String::new(), |it| format!("Authorization: {it}\r\n"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{auth}Connection: close\r\n\
             Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.host(),
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("a request");
        stream.write_all(body).expect("a request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
