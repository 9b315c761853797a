// SPDX-License-Identifier: Apache-2.0
//! On whose behalf a call is made: W3C Trace Context and Baggage, as containerd's metadata have them
//! (https://www.w3.org/TR/trace-context/, https://www.w3.org/TR/baggage/).

use super::wire::KeyValue;
use std::fmt::Write;
use std::rc::Rc;

tokio::task_local! {
    /// What calls that a task makes are made on behalf of, where that is not said of each.
    pub static CALLER: Option<Rc<Trace>>;
}

/// So much of a tracestate, and of a baggage, is passed on, in bytes; what is longer is left out, as a
/// whole.
const MOST_STATE: usize = 512;
const MOST_BAGGAGE: usize = 8192;
const SAMPLED: u8 = 1;

/// A span that others are parts of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    pub id: [u8; 16],
    pub span: [u8; 8],
    pub flags: u8,
    /// As they came, or empty.
    pub state: String,
    pub baggage: String,
}

impl Trace {
    /// The one that metadata name, if they do so as the standard has it.
    pub fn of(metadata: &[KeyValue]) -> Option<Self> {
        let value = |key: &str| {
            let pair = metadata
                .iter()
                .find(|pair| pair.key.eq_ignore_ascii_case(key));
            pair.map(|pair| pair.value.as_str())
        };
        let trace = Self::parse(value("traceparent")?)?;
        Some(trace.with(value("tracestate"), value("baggage")))
    }

    /// With what goes with it, as far as that may be passed on.
    #[must_use]
    pub fn with(self, state: Option<&str>, baggage: Option<&str>) -> Self {
        let short = |value: Option<&str>, most| {
            let is_plain = |value: &&str| {
                value.len() <= most && value.bytes().all(|byte| (b' '..=b'~').contains(&byte))
            };
            value.filter(is_plain).unwrap_or_default().to_owned()
        };
        Self {
            state: short(state, MOST_STATE),
            baggage: short(baggage, MOST_BAGGAGE),
            ..self
        }
    }

    /// `00-<id>-<span>-<flags>`; a version that is newer may have more.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.trim().split('-');
        let mut next = || parts.next();
        let [version] = bytes::<1>(next()?)?;
        let (id, span, [flags]) = (bytes(next()?)?, bytes(next()?)?, bytes::<1>(next()?)?);
        let is_whole = version != 0 || parts.next().is_none();
        let is_any = id != [0; 16] && span != [0; 8] && version != 0xff;
        (is_whole && is_any).then(|| Self {
            id,
            span,
            flags,
            ..Self::default()
        })
    }

    pub fn traceparent(&self) -> String {
        let (id, span) = (hex(&self.id), hex(&self.span));
        format!("00-{id}-{span}-{:02x}", self.flags & SAMPLED)
    }

    /// Somebody up the line records it.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// What is said of it to who is asked next, by the names of the standard.
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs = vec![("traceparent", self.traceparent())];
        let more = [("tracestate", &self.state), ("baggage", &self.baggage)];
        let more = more.into_iter().filter(|(_, value)| !value.is_empty());
        pairs.extend(more.map(|(key, value)| (key, value.clone())));
        pairs
    }
}

/// Small letters, as OTLP's JSON has them, too.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if hex.len() != 2 * N || !hex.bytes().all(is_hex) {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_what_the_standard_says() {
        let trace = Trace::parse(PARENT).unwrap();
        assert_eq!(trace.traceparent(), PARENT);
        assert!(trace.is_sampled());
        assert!(
            !Trace::parse(&PARENT.replace("-01", "-00"))
                .unwrap()
                .is_sampled()
        );
        let newer = PARENT.replacen("00", "01", 1) + "-more";
        assert_eq!(Trace::parse(&newer).unwrap().traceparent(), PARENT);
        for bad in [
            "",
            "00",
            &PARENT.to_uppercase(),
            &format!("{PARENT}-more"),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.replace("b7ad6b7169203331", "0000000000000000"),
            &PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &PARENT.replace("0af7", "0ag7"),
            &PARENT.replace("0af7", "é7"),
        ] {
            assert_eq!(Trace::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_goes_with_it_is_passed_on_if_it_may_be() {
        let pair = |key: &str, value: &str| KeyValue {
            key: key.into(),
            value: value.into(),
        };
        let of = |state: &str, baggage: &str| {
            let metadata = [
                pair("Traceparent", PARENT),
                pair("tracestate", state),
                pair("baggage", baggage),
            ];
            Trace::of(&metadata).unwrap().pairs()
        };
        let parent = ("traceparent", PARENT.to_owned());
        let all = vec![
            parent.clone(),
            ("tracestate", "a=b".into()),
            ("baggage", "c=d".into()),
        ];
        assert_eq!(of("a=b", "c=d"), all);
        let alone = [parent];
        assert_eq!(of(&"x".repeat(513), "a\0b"), alone);
        assert_eq!(of("a\nb", &"x".repeat(9000)), alone);
        assert_eq!(Trace::of(&[pair("tracestate", "a=b")]), None);
    }
}
