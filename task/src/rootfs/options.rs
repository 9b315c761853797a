// SPDX-License-Identifier: Apache-2.0
//! What a mount's type and fstab-style options ask for (contract N2 to N6, N8).

use super::idmap::{self, Ids};
use nix::mount::MsFlags;

/// How much shorter than a page the options of an overlay must be, in bytes, to be passed as
/// they are (contract N3).
const SLACK: usize = 512;

/// What the types begin with that a helper program mounts, and the helper (contract N6).
const HELPED: [(&str, &str); 2] = [("fuse.", "mount.fuse"), ("fuse3.", "mount.fuse3")];

/// What the types and options begin with that only containerd's mount manager knows (contract N8).
const MANAGED_TYPES: [&str; 3] = ["format/", "mkdir/", "mkfs/"];
const MANAGED_OPTION: &str = "X-containerd.";

#[derive(Clone, Copy)]
enum Effect {
    Set(MsFlags),
    Clear(MsFlags),
}

/// The options that are flags; every other one is data for the filesystem (contract N2).
#[rustfmt::skip]
const FLAGS: &[(&str, Effect)] = {
    use Effect::{Clear, Set};
    &[
        ("async", Clear(MsFlags::MS_SYNCHRONOUS)),
        ("atime", Clear(MsFlags::MS_NOATIME)),
        ("bind", Set(MsFlags::MS_BIND)),
        ("defaults", Set(MsFlags::empty())),
        ("dev", Clear(MsFlags::MS_NODEV)),
        ("diratime", Clear(MsFlags::MS_NODIRATIME)),
        ("dirsync", Set(MsFlags::MS_DIRSYNC)),
        ("exec", Clear(MsFlags::MS_NOEXEC)),
        ("mand", Set(MsFlags::MS_MANDLOCK)),
        ("noatime", Set(MsFlags::MS_NOATIME)),
        ("nodev", Set(MsFlags::MS_NODEV)),
        ("nodiratime", Set(MsFlags::MS_NODIRATIME)),
        ("noexec", Set(MsFlags::MS_NOEXEC)),
        ("nomand", Clear(MsFlags::MS_MANDLOCK)),
        ("norelatime", Clear(MsFlags::MS_RELATIME)),
        ("nostrictatime", Clear(MsFlags::MS_STRICTATIME)),
        ("nosuid", Set(MsFlags::MS_NOSUID)),
        ("rbind", Set(MsFlags::MS_BIND.union(MsFlags::MS_REC))),
        ("relatime", Set(MsFlags::MS_RELATIME)),
        ("remount", Set(MsFlags::MS_REMOUNT)),
        ("ro", Set(MsFlags::MS_RDONLY)),
        ("rw", Clear(MsFlags::MS_RDONLY)),
        ("strictatime", Set(MsFlags::MS_STRICTATIME)),
        ("suid", Clear(MsFlags::MS_NOSUID)),
        ("sync", Set(MsFlags::MS_SYNCHRONOUS)),
    ]
};

/// Why a mount is refused before anything was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// containerd's mount manager should have taken it out (contract N2).
    #[error(
        "internal mount option {0:?} was not consumed by the mount manager: \
         have containerd (2.2 or later, with its mount manager) activate the mounts first"
    )]
    Internal(String),
    /// containerd's mount manager should have made system mounts of it (contract N8).
    #[error(
        "mount type {0:?} is not one of the system's: \
         have containerd (2.2 or later, with its mount manager) activate the mounts first"
    )]
    Managed(String),
    /// A mapping of ids that makes no sense, or not here (contract N5).
    #[error("mount option {option:?}: {why}")]
    Ids { option: String, why: &'static str },
    /// mount(2) reads one page of options and cuts off the rest.
    #[error("mount options is too long")]
    TooLong,
}

/// How a mount is made.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Kernel(Arguments),
    /// A program is run, and told the options as they are.
    Helper {
        program: &'static str,
        kind: String,
    },
}

/// The arguments of mount(2) that the options make, and what is done before and after it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arguments {
    pub flags: MsFlags,
    /// What the filesystem reads, joined with commas.
    pub data: String,
    /// The directory that the paths in `data` are relative to.
    pub chdir: Option<String>,
    /// The source is a file that a loop device makes a disk of.
    pub image: Option<Image>,
    /// And so are these, on which erofs finds what the source does not have.
    pub devices: Vec<String>,
    /// Owners are shown as others.
    pub ids: Option<Ids>,
}

/// How a loop device uses its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// Past the page cache.
    pub direct: bool,
}

/// Reads the `options` of a mount of type `kind`, on a machine with pages of `page` bytes.
pub(super) fn plan(kind: &str, options: &[String], page: usize) -> Result<Plan, Refusal> {
    if MANAGED_TYPES.iter().any(|prefix| kind.starts_with(prefix)) {
        return Err(Refusal::Managed(kind.to_owned()));
    }
    if let Some(option) = options.iter().find(|o| o.starts_with(MANAGED_OPTION)) {
        return Err(Refusal::Internal(option.clone()));
    }
    let helped = |(prefix, program): &(_, _)| Some((*program, kind.strip_prefix(*prefix)?));
    match HELPED.iter().find_map(helped) {
        Some((program, kind)) => Ok(Plan::Helper {
            program,
            kind: kind.to_owned(),
        }),
        None => arguments(kind, options, page).map(Plan::Kernel),
    }
}

fn arguments(kind: &str, options: &[String], page: usize) -> Result<Arguments, Refusal> {
    let mut flags = MsFlags::empty();
    let (mut data, mut image, mut maps) = (Vec::new(), false, idmap::Options::default());
    for option in options {
        match FLAGS.iter().find(|(name, _)| name == option) {
            Some((_, Effect::Set(flag))) => flags |= *flag,
            Some((_, Effect::Clear(flag))) => flags &= !*flag,
            None if option == "loop" => image = true,
            None if maps.take(option) => {}
            None => data.push(option.as_str()),
        }
    }
    let image = image.then(|| {
        let others = data.len();
        data.retain(|option| *option != "direct-io");
        Image {
            direct: data.len() < others,
        }
    });
    let mut devices = Vec::new();
    if image.is_some() && kind == "erofs" {
        data.retain(|option| match option.strip_prefix("device=") {
            Some(device) => {
                devices.push(device.to_owned());
                false
            }
            None => true,
        });
    }
    let mut arguments = Arguments {
        flags,
        data: data.join(","),
        chdir: None,
        image,
        devices,
        ids: maps.read(kind, flags, &data)?,
    };
    if kind == "overlay"
        && arguments.data.len() + SLACK >= page
        && let Some((parent, short)) = shorten(&data)
    {
        arguments.data = short;
        arguments.chdir = Some(parent);
    }
    // The page must hold a final NUL too.
    if arguments.data.len() >= page {
        Err(Refusal::TooLong)
    } else {
        Ok(arguments)
    }
}

/// The options of an overlay with its lower directories relative to their common parent: that
/// parent, and the options joined. `None` if there is no such parent.
fn shorten(data: &[&str]) -> Option<(String, String)> {
    let (at, lower) = data
        .iter()
        .enumerate()
        .find_map(|(i, o)| Some((i, o.strip_prefix("lowerdir=")?)))?;
    if lower.contains('\\') {
        return None; // an escaped colon is no separator, and chdir(2) knows no escapes
    }
    let dirs: Vec<&str> = lower.split(':').collect();
    let parent = common_parent(&dirs)?;
    let relative = |dir: &&'_ str| {
        let below = dir.strip_prefix(parent)?.strip_prefix('/')?;
        (!below.is_empty() && !below.starts_with('/')).then_some(below.to_owned())
    };
    let lower: Option<Vec<String>> = dirs.iter().map(relative).collect();
    let lower = format!("lowerdir={}", lower?.join(":"));
    let mut data = data.to_vec();
    data[at] = &lower;
    Some((parent.to_owned(), data.join(",")))
}

/// The deepest directory that all of two or more absolute `dirs` are in, other than `/`.
fn common_parent<'a>(dirs: &[&'a str]) -> Option<&'a str> {
    let (first, others) = dirs.split_first()?;
    let shared = others
        .iter()
        .map(|dir| {
            dir.bytes()
                .zip(first.bytes())
                .take_while(|(a, b)| a == b)
                .count()
        })
        .min()?;
    let parent = &first[..first.as_bytes()[..shared]
        .iter()
        .rposition(|&byte| byte == b'/')?];
    (parent.starts_with('/') && parent.len() > 1).then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[&str]) -> Vec<String> {
        list.iter().map(|o| o.to_string()).collect()
    }

    /// What `plan` makes of a mount that needs no helper.
    fn kernel(kind: &str, list: &[String], page: usize) -> Result<Arguments, Refusal> {
        match plan(kind, list, page)? {
            Plan::Kernel(arguments) => Ok(arguments),
            helper => panic!("{kind}: {helper:?}"),
        }
    }

    fn plain(flags: MsFlags, data: &str) -> Arguments {
        Arguments {
            flags,
            data: data.to_owned(),
            chdir: None,
            image: None,
            devices: Vec::new(),
            ids: None,
        }
    }

    #[test]
    fn options_become_flags_and_data() {
        use MsFlags as F;
        #[rustfmt::skip]
        let table: &[(&[&str], MsFlags, &str)] = &[
            (&[], F::empty(), ""),
            (&["rbind", "ro"], F::MS_BIND | F::MS_REC | F::MS_RDONLY, ""),
            (&["ro", "rw"], F::empty(), ""),
            (&["defaults", "nosuid", "suid", "nodev"], F::MS_NODEV, ""),
            (&["noatime", "strictatime", "atime"], F::MS_STRICTATIME, ""),
            (&["mode=0755", "noexec", "size=64k"], F::MS_NOEXEC, "mode=0755,size=64k"),
            (&["remount", "sync", "dirsync", "async"], F::MS_REMOUNT | F::MS_DIRSYNC, ""),
            (&["rprivate", "direct-io"], F::empty(), "rprivate,direct-io"),
            (&["lowerdir=/a:/b", "index=off"], F::empty(), "lowerdir=/a:/b,index=off"),
        ];
        for (list, flags, data) in table {
            let expected = Ok(plain(*flags, data));
            assert_eq!(kernel("any", &options(list), 4096), expected, "{list:?}");
        }
    }

    #[test]
    fn n4_a_loop_device_takes_its_own_options() {
        for (list, direct) in [
            (&["loop", "ro", "noload"] as &[&str], false),
            (&["direct-io", "ro", "noload", "loop"], true),
        ] {
            let expected = Arguments {
                image: Some(Image { direct }),
                ..plain(MsFlags::MS_RDONLY, "noload")
            };
            assert_eq!(kernel("ext4", &options(list), 4096), Ok(expected));
        }
    }

    #[test]
    fn n2_n8_refusals_name_the_culprit_and_the_way_out() {
        let internal = "X-containerd.mkdir.path=/x".to_owned();
        let managed = |kind: &str| (kind.to_owned(), Refusal::Managed(kind.to_owned()));
        let table = [
            ("bind".to_owned(), Refusal::Internal(internal.clone())),
            ("fuse.x".to_owned(), Refusal::Internal(internal.clone())),
            managed("format/overlay"),
            managed("format/mkdir/overlay"),
            managed("mkdir/bind"),
            managed("mkfs/loop"),
        ];
        for (kind, refusal) in table {
            let refused = plan(&kind, &options(&["ro", &internal]), 4096).unwrap_err();
            assert_eq!(refused, refusal);
            let text = refused.to_string();
            let culprit = if kind.contains('/') { &kind } else { &internal };
            assert!(text.contains(&format!("{culprit:?}")), "{text}");
            assert!(text.ends_with("activate the mounts first"), "{text}");
        }
        assert!(plan("erofs", &options(&["loop", "ro"]), 4096).is_ok());
    }

    #[test]
    fn n6_fuse_types_go_to_their_helper() {
        for (kind, helper, rest) in [
            ("fuse.sshfs", "mount.fuse", "sshfs"),
            ("fuse3.fuse-overlayfs", "mount.fuse3", "fuse-overlayfs"),
        ] {
            // Its options are its own, whatever they mean to others.
            let mine = options(&["ro", "uidmap=1", "loop", &"x".repeat(9999)]);
            let expected = Plan::Helper {
                program: helper,
                kind: rest.to_owned(),
            };
            assert_eq!(plan(kind, &mine, 4096), Ok(expected));
        }
        assert!(kernel("fuse", &options(&["fd=3"]), 4096).is_ok());
        assert!(kernel("fuseblk", &[], 4096).is_ok());
    }

    #[test]
    fn options_must_fit_a_page_with_a_final_nul() {
        let fits = kernel("tmpfs", &options(&["size=1", &"x".repeat(4088)]), 4096);
        assert_eq!(fits.map(|plan| plan.data.len()), Ok(4095));
        let long = kernel("tmpfs", &options(&["size=1", &"x".repeat(4089)]), 4096);
        assert_eq!(long, Err(Refusal::TooLong));
    }

    #[test]
    fn n3_long_overlay_options_become_relative() {
        let lower: Vec<_> = (1..=200)
            .map(|i| format!("/var/lib/c/snapshots/{i}/fs"))
            .collect();
        let lower = format!("lowerdir={}", lower.join(":"));
        let long = options(&["workdir=/w", &lower, "upperdir=/u", "ro"]);
        let plan = kernel("overlay", &long, 4096).unwrap();
        assert_eq!(plan.flags, MsFlags::MS_RDONLY);
        assert_eq!(plan.chdir.as_deref(), Some("/var/lib/c/snapshots"));
        assert!(
            plan.data.starts_with("workdir=/w,lowerdir=1/fs:2/fs:"),
            "{}",
            plan.data
        );
        assert!(plan.data.ends_with(":200/fs,upperdir=/u"), "{}", plan.data);
    }

    #[test]
    fn n3_short_options_and_other_types_stay_as_they_are() {
        let short = options(&["lowerdir=/var/lib/1/fs:/var/lib/2/fs"]);
        assert_eq!(kernel("overlay", &short, 4096).unwrap().chdir, None);
        assert_eq!(
            kernel("overlay", &short, 512).unwrap().chdir.as_deref(),
            Some("/var/lib")
        );
        assert_eq!(kernel("other", &short, 512).unwrap().chdir, None);
    }

    #[test]
    fn n3_a_common_parent_is_a_directory_above_all() {
        let table: &[(&str, Option<(&str, &str)>)] = &[
            ("/s/1/fs:/s/2/fs", Some(("/s", "1/fs:2/fs"))),
            // The shared first digit is no part of the parent.
            ("/s/x/10/fs:/s/x/11/fs", Some(("/s/x", "10/fs:11/fs"))),
            ("/s/1:/s/1/fs", Some(("/s", "1:1/fs"))),
            ("/s/1:/s/1", Some(("/s", "1:1"))),
            ("/s/1/fs", None),
            ("/1/fs:/2/fs", None),
            ("a/1:a/2", None),
            ("/s/1::/s/2", None),
            ("/s/:/s/1", None),
            ("/s//1:/s//2", Some(("/s/", "1:2"))),
            ("/s/1:/s//2", None),
            (r"/s/1\:1:/s/2", None),
            ("/s/é1:/s/è1", Some(("/s", "é1:è1"))),
        ];
        for (lower, expected) in table {
            let option = format!("lowerdir={lower}");
            let expected = expected.map(|(p, l)| (p.to_owned(), format!("lowerdir={l},x")));
            assert_eq!(shorten(&[&option, "x"]), expected, "{lower}");
        }
        assert_eq!(shorten(&["x"]), None);
    }
}
