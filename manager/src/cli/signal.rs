// SPDX-License-Identifier: Apache-2.0
//! Signals by name and number, as kill(1) knows them.

use nix::sys::signal::Signal;

/// The first and the last real-time signal, as the C library counts them (signal(7)).
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// The number of a signal: 9, KILL, kill or SIGKILL; RTMIN+3, SIGRTMAX-2.
///
/// # Errors
/// A text that names it.
pub fn number(text: &str) -> Result<u32, String> {
    let none = || format!("{text:?} is no signal, such as TERM, SIGHUP, RTMIN+3 or 15");
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = text.parse().ok();
        return number
            .filter(|number| (1..=RTMAX).contains(number))
            .ok_or_else(none);
    }
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    real_time(name).or_else(|| known(name)).ok_or_else(none)
}

fn known(name: &str) -> Option<u32> {
    // Other names of the same (signal(7)).
    let name = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        "UNUSED" => "SYS",
        name => name,
    };
    Some(format!("SIG{name}").parse::<Signal>().ok()? as u32)
}

/// A real-time signal is named by how far it is from the first or the last.
fn real_time(name: &str) -> Option<u32> {
    let far = |rest: &str, sign: char| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<u32>().ok(),
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => RTMIN.checked_add(far(rest, '+')?),
        (_, Some(rest)) => RTMAX.checked_sub(far(rest, '-')?),
        _ => None,
    };
    number.filter(|number| (RTMIN..=RTMAX).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_as_kill_knows_them() {
        for (text, signal) in [
            ("9", 9),
            ("64", 64),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigkill", 9),
            ("Term", 15),
            ("IOT", 6),
            ("CLD", 17),
            ("POLL", 29),
            ("STKFLT", 16),
            ("PWR", 30),
            ("SYS", 31),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmax-2", 62),
            ("RTMAX", 64),
        ] {
            assert_eq!(number(text), Ok(signal), "{text}");
        }
        for text in [
            "",
            "0",
            "65",
            "-1",
            "SIG",
            "SIG9",
            "KILLL",
            "RTMIN-1",
            "RTMIN+31",
            "RTMAX+1",
            " TERM",
            "99999999999999999999",
        ] {
            let error = number(text).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
