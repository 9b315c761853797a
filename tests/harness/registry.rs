// SPDX-License-Identifier: Apache-2.0
//! Debian's registry, private to a test: docker-registry with a directory of its own.
#![allow(
    clippy::disallowed_methods,
    reason = "a test may wait for its own processes"
)]

use crate::containerd::capture::Capture;
use crate::image::digest;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

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
/// An authority, and a certificate of it for this machine.
const CERTIFICATES: &str = r#"
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca.pem -days 2 -subj /CN=authority
openssl req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=localhost
printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' >names
openssl x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile names -out cert.pem
"#;
/// A token for a repository (distribution's token authentication), signed by the authority.
const TOKEN: &str = r#"
url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }
der=$(openssl x509 -in ca.pem -outform DER | openssl base64 -A)
now=$(date +%s)
head=$(printf '{"typ":"JWT","alg":"RS256","x5c":["%s"]}' "$der" | url)
body=$(printf '{"iss":"test","sub":"user","aud":"test","iat":%s,"nbf":%s,"exp":%s,"jti":"1","access":[{"type":"repository","name":"NAME","actions":["pull"]}]}' \
    "$now" "$((now - 10))" "$((now + 3000))" | url)
signed=$(printf '%s.%s' "$head" "$body" | openssl dgst -sha256 -sign ca-key.pem | url)
printf '%s.%s.%s' "$head" "$body" "$signed"
"#;
const AUTHORIZATION: &str = "Basic dXNlcjpzZWNyZXQ=";

impl Registry {
    /// Starts one, with its files in `dir`; it is `closed` to who has no password.
    pub fn start(dir: &Path, closed: bool) -> Self {
        fs::create_dir_all(dir.join("data")).expect("a directory");
        if !closed {
            return Self::serve(dir, "", "");
        }
        let users = dir.join("users");
        fs::write(&users, format!("{}:{BCRYPT}\n", USER.0)).expect("users");
        let auth = format!("htpasswd: {{realm: test, path: {}}}", users.display());
        let mut it = Self::serve(dir, "", &auth);
        it.authorization = Some(AUTHORIZATION);
        it
    }

    /// Serves what is there, as this says beside the address (`http`) and of who may ask (`auth`).
    fn serve(dir: &Path, http: &str, auth: &str) -> Self {
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:0\"{http}}}\nauth: {{{auth}}}\n",
            dir.join("data").display()
        );
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
            authorization: None,
        }
    }

    /// The same images under TLS, with a certificate of an authority that nobody knows; and the
    /// authority's own.
    pub fn with_tls(dir: &Path) -> (Self, PathBuf) {
        shell(dir, CERTIFICATES);
        let (key, chain) = (dir.join("key.pem"), dir.join("cert.pem"));
        let tls = format!(
            ", tls: {{certificate: {}, key: {}}}",
            chain.display(),
            key.display()
        );
        (Self::serve(dir, &tls, ""), dir.join("ca.pem"))
    }

    /// The same images for whom a server of tokens has given one for the repository `name`.
    pub fn with_tokens(dir: &Path, name: &str) -> (Self, Tokens) {
        shell(dir, CERTIFICATES);
        let token = shell(dir, &TOKEN.replace("NAME", name));
        let tokens = Tokens::start(token.trim().to_owned());
        let auth = format!(
            "token: {{realm: \"http://127.0.0.1:{}/token\", service: test, issuer: test, \
             rootcertbundle: {}}}",
            tokens.port,
            dir.join("ca.pem").display()
        );
        (Self::serve(dir, "", &auth), tokens)
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

/// A server of tokens: whoever asks gets the same one.
pub struct Tokens {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tokens {
    fn start(token: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let all = Arc::clone(&asked);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.expect("a connection"));
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n")
                    && stream.read_line(&mut head).expect("a head") > 0
                {}
                all.lock().expect("the requests").push(head);
                let json = format!("{{\"token\": \"{token}\", \"expires_in\": 3000}}");
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                     Connection: close\r\n\r\n{json}",
                    json.len()
                );
                // Who does not hear it asks again, or fails.
                let _ = stream.get_mut().write_all(answer.as_bytes());
            }
        });
        Self { port, asked }
    }

    /// The heads of all requests so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("the requests").clone()
    }
}

/// Runs a script in `dir`; what it prints.
fn shell(dir: &Path, script: &str) -> String {
    let ran = Command::new("sh")
        .args(["-euc", script])
        .current_dir(dir)
        .output()
        .expect("sh");
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stdout).expect("text")
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
