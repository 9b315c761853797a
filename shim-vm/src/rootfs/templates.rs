// SPDX-License-Identifier: Apache-2.0
//! Texts of a mount that name mounts before it: `{{ mount 0 }}`, where that is mounted,
//! `{{ overlay 0 3 }}`, where all from one to another are, with a colon between them, `{{ source 0 }}` and
//! `{{ target 0 }}` (containerd's docs/mounts.md, "format").

use protos::types::Mount;

/// `text` with what its templates stand for, where the mounts `before` it are mounted by their numbers in
/// the directory `base`.
///
/// # Errors
/// Which template stands for nothing, and why.
pub fn fill(text: &str, base: &str, before: &[&Mount]) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((plain, template)) = rest.split_once("{{") {
        let (template, after) = template
            .split_once("}}")
            .ok_or_else(|| format!("{text:?}: a template without an end"))?;
        let value = value(template, base, before);
        filled += plain;
        filled += &value.map_err(|why| format!("{{{{{template}}}}}: {why}"))?;
        rest = after;
    }
    filled += rest;
    Ok(filled)
}

fn value(template: &str, base: &str, before: &[&Mount]) -> Result<String, String> {
    let one = |number: &str| {
        let number: usize = number.parse().map_err(|_| "no number of a mount")?;
        let mount = before.get(number);
        mount
            .map(|mount| (number, *mount))
            .ok_or_else(|| format!("there are {} mounts before it", before.len()))
    };
    let point = |number: usize| format!("{base}/{number}");
    match template.split_whitespace().collect::<Vec<_>>()[..] {
        ["mount", number] => Ok(point(one(number)?.0)),
        ["source", number] => Ok(one(number)?.1.source.clone()),
        ["target", number] => Ok(one(number)?.1.target.clone()),
        ["overlay", first, last] => {
            let (first, last) = (one(first)?.0, one(last)?.0);
            let mut points: Vec<String> = (first.min(last)..=first.max(last)).map(point).collect();
            if first > last {
                points.reverse();
            }
            Ok(points.join(":"))
        }
        _ => Err("no such template".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_stand_for_mounts_before_them() {
        let mounts: Vec<Mount> = (0..4)
            .map(|n| Mount {
                source: format!("/images/{n}"),
                target: format!("/t{n}"),
                ..Default::default()
            })
            .collect();
        let before: Vec<&Mount> = mounts.iter().collect();
        for (text, filled) in [
            ("", ""),
            ("ro", "ro"),
            ("workdir={{ mount 0 }}/work", "workdir=/b/0/work"),
            ("lowerdir={{ overlay 1 3 }}", "lowerdir=/b/1:/b/2:/b/3"),
            ("{{overlay 3 1}}", "/b/3:/b/2:/b/1"),
            ("{{ source 2 }}+{{ target 1 }}!", "/images/2+/t1!"),
        ] {
            assert_eq!(fill(text, "/b", &before).as_deref(), Ok(filled), "{text}");
        }
        for (text, why) in [
            (
                "x{{ mount 4 }}",
                "{{ mount 4 }}: there are 4 mounts before it",
            ),
            ("{{ mount -1 }}", "{{ mount -1 }}: no number of a mount"),
            ("{{ mount }}", "{{ mount }}: no such template"),
            ("{{ run 1 }}", "{{ run 1 }}: no such template"),
            ("{{ mount 1", "\"{{ mount 1\": a template without an end"),
        ] {
            assert_eq!(fill(text, "/b", &before), Err(why.to_owned()));
        }
    }
}
