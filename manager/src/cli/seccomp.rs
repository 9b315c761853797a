// SPDX-License-Identifier: Apache-2.0
//! Which system calls a container may make: a profile in Docker's form, ours or a user's, becomes the
//! `seccomp` of an OCI spec.
//!
//! Its rules may hold for some architectures, capabilities or kernels only; those of the container and
//! of this machine decide.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder,
    LinuxSeccompFilterFlag, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Docker's default, as of June 2026 (github.com/moby/profiles), in our order.
const DEFAULT: &str = include_str!("../../etc/seccomp.json");
/// No profile is longer.
const MOST: u64 = 1 << 20;

/// A profile in Docker's form, which is that of the OCI spec with conditions.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<Family>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

/// An architecture, and those whose system calls its kernel takes, too.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Family {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    /// In profiles of old.
    name: Option<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    includes: Condition,
    #[serde(default, deserialize_with = "or_default")]
    excludes: Condition,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// Docker writes `null` and `{}` for none.
fn or_default<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Condition, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// For whom a profile is resolved.
pub struct Whom<'a> {
    /// Its bounding set.
    pub capabilities: &'a [&'a str],
    /// The kernel's version, its first two numbers.
    pub kernel: (u32, u32),
    /// The architecture as Docker calls it, and as libseccomp does.
    pub native: Option<(&'static str, Arch)>,
}

impl<'a> Whom<'a> {
    /// A container with these capabilities on this machine.
    ///
    /// # Errors
    /// A text, if the kernel does not say which one it is.
    pub fn here(capabilities: &'a [&'a str]) -> Result<Self, String> {
        let name = nix::sys::utsname::uname().map_err(|e| format!("uname: {e}"))?;
        let release = name.release().to_string_lossy().into_owned();
        let kernel = version(&release).ok_or_else(|| format!("kernel {release:?}: no version"))?;
        Ok(Self {
            capabilities,
            kernel,
            native: native(std::env::consts::ARCH),
        })
    }
}

/// The first two numbers of a kernel's version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// How Docker's profiles call an architecture in conditions, and in maps.
fn native(name: &str) -> Option<(&'static str, Arch)> {
    Some(match name {
        "x86_64" => ("amd64", Arch::ScmpArchX86_64),
        "x86" => ("x86", Arch::ScmpArchX86),
        "aarch64" => ("arm64", Arch::ScmpArchAarch64),
        "arm" => ("arm", Arch::ScmpArchArm),
        "riscv64" => ("riscv64", Arch::ScmpArchRiscv64),
        "s390x" => ("s390x", Arch::ScmpArchS390x),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", Arch::ScmpArchPpc64le),
        "loongarch64" => ("loongarch64", Arch::ScmpArchLoongarch64),
        _ => return None,
    })
}

impl Profile {
    /// Docker's default.
    ///
    /// # Errors
    /// A text, if the file that this was built with is none.
    pub fn builtin() -> Result<Self, String> {
        Self::parse(DEFAULT.as_bytes()).map_err(|e| format!("the default seccomp profile: {e}"))
    }

    /// # Errors
    /// A text that names the file.
    pub fn read(path: &Path) -> Result<Self, String> {
        use std::io::Read;
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let file = std::fs::File::open(path).map_err(|e| failed(&e))?;
        let mut json = Vec::new();
        let read = file.take(MOST + 1).read_to_end(&mut json);
        read.map_err(|e| failed(&e))?;
        if json.len() as u64 > MOST {
            return Err(failed(&format!("more than {MOST} bytes")));
        }
        Self::parse(&json).map_err(|e| failed(&e))
    }

    fn parse(json: &[u8]) -> Result<Self, String> {
        let profile: Self = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        if profile.architectures.is_some() && profile.arch_map.is_some() {
            return Err("both architectures and archMap".into());
        }
        for (place, rule) in profile.syscalls.iter().enumerate() {
            let kernels = [&rule.includes.min_kernel, &rule.excludes.min_kernel];
            let bad = kernels.into_iter().flatten();
            let mut bad = bad.filter(|kernel| version(kernel).is_none());
            let why = match &rule.name {
                Some(_) if !rule.names.is_empty() => Some("both name and names".to_owned()),
                None if rule.names.is_empty() => Some("no names".to_owned()),
                _ => bad.next().map(|it| format!("minKernel {it:?}: no version")),
            };
            if let Some(why) = why {
                return Err(format!("syscalls.{place}: {why}"));
            }
        }
        Ok(profile)
    }

    /// What of it holds for `whom`.
    ///
    /// # Errors
    /// A text, if the crate that knows the spec finds something missing.
    pub fn resolve(&self, whom: &Whom) -> Result<LinuxSeccomp, String> {
        let mut built = LinuxSeccompBuilder::default()
            .default_action(self.default_action)
            .syscalls(self.syscalls(whom)?);
        if let Some(errno) = self.default_errno_ret {
            built = built.default_errno_ret(errno);
        }
        if let Some(architectures) = self.architectures(whom) {
            built = built.architectures(architectures);
        }
        if let Some(flags) = &self.flags {
            built = built.flags(flags.clone());
        }
        if let Some(path) = &self.listener_path {
            built = built.listener_path(path.clone());
        }
        if let Some(metadata) = &self.listener_metadata {
            built = built.listener_metadata(metadata.clone());
        }
        built.build().map_err(|e| e.to_string())
    }

    fn architectures(&self, whom: &Whom) -> Option<Vec<Arch>> {
        let Some(map) = &self.arch_map else {
            return self.architectures.clone();
        };
        let (_, native) = whom.native?;
        let family = map.iter().find(|family| family.architecture == native)?;
        let subordinate = family.sub_architectures.iter().flatten().copied();
        Some(std::iter::once(native).chain(subordinate).collect())
    }

    /// Rules that differ in their names only become one.
    fn syscalls(&self, whom: &Whom) -> Result<Vec<LinuxSyscall>, String> {
        let mut all: Vec<LinuxSyscall> = Vec::new();
        for rule in self.syscalls.iter().filter(|rule| rule.holds_for(whom)) {
            let names = rule.names.iter().chain(&rule.name).cloned();
            let alike = all.iter_mut().find(|it| {
                it.action() == rule.action
                    && it.errno_ret() == rule.errno_ret
                    && (it.args().is_none() && rule.args.as_ref().is_none_or(Vec::is_empty))
            });
            if let Some(alike) = alike {
                let names = alike.names().iter().cloned().chain(names).collect();
                alike.set_names(names);
                continue;
            }
            let mut built = LinuxSyscallBuilder::default()
                .names(names.collect::<Vec<_>>())
                .action(rule.action);
            if let Some(errno) = rule.errno_ret {
                built = built.errno_ret(errno);
            }
            if let Some(args) = rule.args.as_ref().filter(|args| !args.is_empty()) {
                built = built.args(args.clone());
            }
            all.push(built.build().map_err(|e| e.to_string())?);
        }
        Ok(all)
    }
}

impl Rule {
    /// It does if all that it includes is there, and nothing that it excludes.
    fn holds_for(&self, whom: &Whom) -> bool {
        let is_native = |arch: &String| whom.native.is_some_and(|(name, _)| name == arch);
        let has = |name: &String| whom.capabilities.contains(&name.as_str());
        let is_since = |kernel: &Option<String>| {
            let since = kernel.as_deref().and_then(version);
            since.map(|since| whom.kernel >= since)
        };
        let (with, without) = (&self.includes, &self.excludes);
        (with.arches.is_empty() || with.arches.iter().any(is_native))
            && with.caps.iter().all(has)
            && is_since(&with.min_kernel).unwrap_or(true)
            && !without.arches.iter().any(is_native)
            && !without.caps.iter().any(has)
            && !is_since(&without.min_kernel).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whom<'a>(capabilities: &'a [&'a str], arch: &str) -> Whom<'a> {
        Whom {
            capabilities,
            kernel: (6, 1),
            native: native(arch),
        }
    }

    /// Every rule for this system call, as (action, errno, number of arguments looked at).
    fn rules(of: &LinuxSeccomp, call: &str) -> Vec<(LinuxSeccompAction, Option<u32>, usize)> {
        let all = of.syscalls().iter().flatten();
        all.filter(|rule| rule.names().iter().any(|name| name == call))
            .map(|rule| {
                let args = rule.args().as_ref().map_or(0, Vec::len);
                (rule.action(), rule.errno_ret(), args)
            })
            .collect()
    }

    #[test]
    fn the_default_is_dockers() {
        use LinuxSeccompAction::{ScmpActAllow as ALLOW, ScmpActErrno as ERRNO};
        let profile = Profile::builtin().unwrap();
        let usual = profile.resolve(&whom(&[], "x86_64")).unwrap();
        assert_eq!(usual.default_action(), ERRNO);
        assert_eq!(usual.default_errno_ret(), Some(1));
        let x86 = [Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32];
        assert_eq!(usual.architectures().as_deref(), Some(&x86[..]));
        assert_eq!(rules(&usual, "read"), [(ALLOW, None, 0)]);
        assert_eq!(rules(&usual, "arch_prctl"), [(ALLOW, None, 0)]);
        assert_eq!(rules(&usual, "ptrace"), [(ALLOW, None, 0)]);
        assert_eq!(rules(&usual, "clone"), [(ALLOW, None, 1)]);
        assert_eq!(rules(&usual, "clone3"), [(ERRNO, Some(38), 0)]);
        assert_eq!(rules(&usual, "socket").len(), 3);
        assert_eq!(rules(&usual, "personality").len(), 5);
        for call in [
            "mount",
            "unshare",
            "keyctl",
            "add_key",
            "bpf",
            "io_uring_setup",
            "userfaultfd",
        ] {
            assert_eq!(rules(&usual, call), [], "{call}");
        }
        let able = ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_CHROOT"];
        let able = profile.resolve(&whom(&able, "aarch64")).unwrap();
        let arm = [Arch::ScmpArchAarch64, Arch::ScmpArchArm];
        assert_eq!(able.architectures().as_deref(), Some(&arm[..]));
        for call in [
            "mount",
            "unshare",
            "clone",
            "clone3",
            "kcmp",
            "chroot",
            "cacheflush",
        ] {
            assert_eq!(rules(&able, call), [(ALLOW, None, 0)], "{call}");
        }
        assert_eq!(rules(&able, "arch_prctl"), []);
        let s390 = profile.resolve(&whom(&[], "s390x")).unwrap();
        assert_eq!(rules(&s390, "clone"), [(ALLOW, None, 1)]);
        let old = Whom {
            kernel: (4, 7),
            ..whom(&[], "x86_64")
        };
        assert_eq!(rules(&profile.resolve(&old).unwrap(), "ptrace"), []);
    }

    #[test]
    fn what_is_no_profile_is_refused_by_what_is_wrong() {
        for (json, why) in [
            ("{}", "defaultAction"),
            (r#"{"defaultAction": "SCMP_ACT_FOO"}"#, "SCMP_ACT_FOO"),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "sysCalls": []}"#,
                "sysCalls",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_KILL"}]}"#,
                "syscalls.0: no names",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"], "action": "SCMP_ACT_KILL",
                    "includes": {"minKernel": "new"}}]}"#,
                "syscalls.0: minKernel \"new\"",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": [], "archMap": []}"#,
                "both",
            ),
            ("[", "EOF"),
        ] {
            let error = Profile::parse(json.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{json}: {error}");
        }
        let old = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"name": "chmod", "action": "SCMP_ACT_ERRNO", "args": null, "comment": "", "includes": {}}]}"#;
        let old = Profile::parse(old.as_bytes()).unwrap();
        let old = old.resolve(&whom(&[], "x86_64")).unwrap();
        assert_eq!(rules(&old, "chmod").len(), 1);
    }
}
