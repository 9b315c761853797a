// SPDX-License-Identifier: Apache-2.0
//! Images out of registries: where they are asked for, with which credentials, and their blobs.
//!
//! A name's mirrors are asked first, one after the other, then its own registry. TLS is rustls's, with
//! the system's certificates; there is plain HTTP only where somebody said so, or on this machine when
//! there is no TLS.

use crate::digest::Digest;
use crate::failure::{Failure, Result, io, refused};
use crate::manifest::{self, Found, MOST, Part, Source};
use docker_credential::DockerCredential;
use futures_util::StreamExt;
use oci_client::client::{BlobResponse, Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use oci_spec::image::{Descriptor, MediaType};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Runtime;

/// What a manifest may be.
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// How long a registry may take to be connected to, and to send something more.
const CONNECT: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(60);
/// So many times a download that was cut off goes on where it was.
const RESUMES: u32 = 5;

/// Where images come from, beside what their names say.
pub struct Registries {
    /// Those without TLS.
    pub plain_http: Vec<String>,
    /// Registries, and where else their images are.
    pub mirrors: Vec<(String, String)>,
}

/// One place where an image may be.
struct Place {
    reference: Reference,
    auth: RegistryAuth,
    client: Client,
    runtime: Runtime,
    /// Where blobs are kept until they are unpacked.
    spool: PathBuf,
    /// What has been read of it already.
    top: (Digest, Vec<u8>),
}

impl Registries {
    /// The image called `name`, for this machine, and where its layers come from.
    ///
    /// # Errors
    /// Of each place, why it is not there.
    pub fn find(&self, name: &Reference, spool: PathBuf) -> Result<(Found, Box<dyn Source>)> {
        // It may be set already, by nobody but us.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mirrors = self.mirrors.iter();
        let mirrors = mirrors.filter(|(of, _)| of == name.registry());
        let mut whys = Vec::new();
        for (_, mirror) in mirrors {
            match self.ask(&at(name, mirror), &spool) {
                Ok(found) => return Ok(found),
                Err(e) => whys.push(e.to_string()),
            }
        }
        self.ask(name, &spool).map_err(|e| match whys.is_empty() {
            true => e,
            false => refused(name, format!("{}; {e}", whys.join("; "))),
        })
    }

    fn ask(&self, reference: &Reference, spool: &Path) -> Result<(Found, Box<dyn Source>)> {
        let registry = reference.registry();
        let is_plain = self.plain_http.iter().any(|plain| plain == registry);
        let first = Place::ask(reference, is_plain, spool);
        let asked = match first {
            Err(Asked::Unreachable(_)) if !is_plain && is_here(registry) => {
                Place::ask(reference, true, spool)
            }
            first => first,
        };
        let mut place = asked.map_err(|e| match e {
            Asked::Unreachable(e) | Asked::Refused(e) => e,
        })?;
        let (digest, json) = &place.top;
        let kind: serde_json::Value = manifest::parse(digest, json)?;
        let kind = kind["mediaType"].as_str().unwrap_or(MANIFESTS[1]);
        let whole = digest.text().parse::<oci_spec::image::Digest>();
        let whole = whole.map_err(|e| refused(digest, e))?;
        let top = Descriptor::new(MediaType::from(kind), json.len() as u64, whole);
        let mut found = manifest::resolve(&mut place, &top).map_err(|e| e.of(reference))?;
        found.digest = found.digest.or(Some(place.top.0.clone()));
        Ok((found, Box::new(place)))
    }
}

/// The same image, in another registry.
fn at(name: &Reference, registry: &str) -> Reference {
    let (registry, repository) = (registry.to_owned(), name.repository().to_owned());
    match (name.tag(), name.digest()) {
        (_, Some(digest)) => Reference::with_digest(registry, repository, digest.to_owned()),
        (tag, None) => {
            let tag = tag.unwrap_or("latest").to_owned();
            Reference::with_tag(registry, repository, tag)
        }
    }
}

/// Whether a registry is on this machine.
fn is_here(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost" || host == "[::1]" || host.starts_with("127.")
}

/// Why a registry did not tell of an image.
enum Asked {
    /// It could not be spoken with.
    Unreachable(Failure),
    Refused(Failure),
}

impl From<Failure> for Asked {
    fn from(e: Failure) -> Self {
        Self::Refused(e)
    }
}

impl Place {
    fn ask(reference: &Reference, plain: bool, spool: &Path) -> std::result::Result<Self, Asked> {
        let registry = reference.resolve_registry().to_owned();
        let client = Client::new(ClientConfig {
            protocol: match plain {
                true => ClientProtocol::HttpsExcept(vec![registry]),
                false => ClientProtocol::Https,
            },
            connect_timeout: Some(CONNECT),
            read_timeout: Some(SILENCE),
            user_agent: concat!("dunnage/", env!("CARGO_PKG_VERSION")),
            ..Default::default()
        });
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().map_err(io("runtime"))?;
        let auth = credentials(reference.registry())?;
        let asked = runtime.block_on(async {
            client
                .auth(reference, &auth, RegistryOperation::Pull)
                .await?;
            client.pull_manifest_raw(reference, &auth, &MANIFESTS).await
        });
        let (json, _) = asked.map_err(|e| match &e {
            OciDistributionError::RequestError(why) if why.is_connect() || why.is_builder() => {
                Asked::Unreachable(told(reference, &e))
            }
            _ => Asked::Refused(told(reference, &e)),
        })?;
        let top = (Digest::of(&json), json.to_vec());
        if json.len() as u64 > MOST {
            let why = format!("its manifest has {} bytes, {MOST} are the most", json.len());
            return Err(refused(reference, why).into());
        }
        if reference
            .digest()
            .is_some_and(|wanted| wanted != top.0.text())
        {
            return Err(refused(reference, format!("damaged: its digest is {}", top.0)).into());
        }
        Ok(Self {
            reference: reference.clone(),
            auth,
            client,
            runtime,
            spool: spool.to_owned(),
            top,
        })
    }

    /// Appends what is still missing of a blob.
    async fn download(&self, digest: &str, size: u64, file: &mut File) -> Result<()> {
        let mut left = RESUMES;
        loop {
            let have = file.metadata().map_err(io(digest))?.len();
            let why = match self.part(digest, have, size, file).await {
                Ok(()) => return Ok(()),
                Err(Cut::Here(e)) => return Err(e),
                Err(Cut::Network(e)) => e,
            };
            let more = file.metadata().map_err(io(digest))?.len();
            left -= 1;
            if more == have || left == 0 {
                return Err(refused(&self.reference, format!("{digest}: {why}")));
            }
        }
    }

    async fn part(
        &self,
        digest: &str,
        have: u64,
        size: u64,
        file: &mut File,
    ) -> std::result::Result<(), Cut> {
        let network = |e: OciDistributionError| Cut::Network(words(&e));
        let mut stream = if have == 0 {
            let whole = self.client.pull_blob_stream(&self.reference, digest);
            whole.await.map_err(network)?
        } else {
            let part = self
                .client
                .pull_blob_stream_partial(&self.reference, digest, have, None);
            match part.await.map_err(network)? {
                BlobResponse::Partial(stream) => stream,
                BlobResponse::Full(stream) => {
                    file.set_len(0).map_err(io(digest))?;
                    file.rewind().map_err(io(digest))?;
                    stream
                }
            }
        };
        while let Some(bytes) = stream.stream.next().await {
            let bytes = bytes.map_err(|e| Cut::Network(words(&e)))?;
            file.write_all(&bytes).map_err(io(digest))?;
            let written = file.stream_position().map_err(io(digest))?;
            if written > size {
                let why = format!("it has more than the {size} bytes that were told of");
                return Err(refused(digest, why).into());
            }
        }
        match file.stream_position().map_err(io(digest))? == size {
            true => Ok(()),
            false => Err(Cut::Network("it ended too early".into())),
        }
    }
}

/// Why a download did not go on: on our side, or theirs.
enum Cut {
    Here(Failure),
    Network(String),
}

impl From<Failure> for Cut {
    fn from(e: Failure) -> Self {
        Self::Here(e)
    }
}

impl Source for Place {
    fn open(&mut self, part: &Part) -> Result<Box<dyn Read>> {
        let (digest, size) = match &part.blob {
            Some((digest, size)) => (digest.text(), *size),
            None => return Err(refused(&part.place, "without a digest")),
        };
        let mut options = File::options();
        options.create(true).truncate(true).read(true).write(true);
        let mut file = options
            .open(&self.spool)
            .map_err(io(self.spool.display()))?;
        let download = self.download(digest, size, &mut file);
        self.runtime.block_on(download)?;
        file.rewind().map_err(io(self.spool.display()))?;
        // It goes with the last that has it open.
        std::fs::remove_file(&self.spool).map_err(io(self.spool.display()))?;
        Ok(Box::new(file))
    }

    fn read(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let digest = descriptor.digest().as_ref().to_owned();
        if digest == self.top.0.text() {
            return Ok(self.top.1.clone());
        }
        let kind = descriptor.media_type().to_string();
        let (client, of, auth) = (&self.client, &self.reference, &self.auth);
        let read = self.runtime.block_on(async {
            if MANIFESTS.contains(&kind.as_str()) {
                let one = of.clone_with_digest(digest.clone());
                let (json, _) = client.pull_manifest_raw(&one, auth, &MANIFESTS).await?;
                return Ok(json.to_vec());
            }
            let mut stream = client.pull_blob_stream(of, digest.as_str()).await?;
            let mut all = Vec::new();
            while let Some(bytes) = stream.stream.next().await {
                all.extend_from_slice(&bytes?);
                if all.len() as u64 > descriptor.size() {
                    break;
                }
            }
            Ok(all)
        });
        read.map_err(|e: OciDistributionError| told(of, &e))
    }
}

/// What `~/.docker/config.json` has for a registry, or `$DOCKER_CONFIG/config.json`.
fn credentials(registry: &str) -> Result<RegistryAuth> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    let dir = std::env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(home);
    let Some(path) = dir.map(|dir| dir.join("config.json")) else {
        return Ok(RegistryAuth::Anonymous);
    };
    let file = match File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(RegistryAuth::Anonymous),
        file => file.map_err(io(path.display()))?,
    };
    let server = match registry {
        "docker.io" => "https://index.docker.io/v1/",
        other => other,
    };
    use docker_credential::CredentialRetrievalError as Why;
    match docker_credential::get_credential_from_reader(file, server) {
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            Ok(RegistryAuth::Basic(user, password))
        }
        Ok(DockerCredential::IdentityToken(_)) => {
            let why = format!("an identity token for {server} is not supported: use a password");
            Err(refused(path.display(), why))
        }
        Err(Why::NoCredentialConfigured) => Ok(RegistryAuth::Anonymous),
        Err(Why::HelperFailure { stdout, .. }) if stdout.contains("credentials not found") => {
            Ok(RegistryAuth::Anonymous)
        }
        Err(e) => Err(refused(path.display(), format!("{server}: {e}"))),
    }
}

fn told(reference: &Reference, e: &OciDistributionError) -> Failure {
    refused(reference, words(e))
}

/// An error and what it comes from, in one line.
fn words(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(deeper) = cause {
        let more = deeper.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = deeper.source();
    }
    text.replace('\n', " ")
}
