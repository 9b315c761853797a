// SPDX-License-Identifier: Apache-2.0
//! containerd's filter language (pkg/filters): `field==value,labels."a.b"~=regex`.
//!
//! ```text
//! filter   = selector ("," selector)*          all must hold; several filters: any may
//! selector = field ("==" | "!=" | "~=") value  or just a field, which must be there
//! field    = name ("." name)*                  a name may be quoted
//! value    = word or "quoted", and after ~= also |quoted| or /quoted/
//! ```

use crate::failure::{Failure, invalid};
use regex_lite::Regex;

/// What can be asked for its fields; `None` if there is no such field.
pub trait Fields {
    fn field(&self, path: &[&str]) -> Option<String>;
}

/// Any of several filters; none at all lets everything through.
#[derive(Debug, Default)]
pub struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    /// # Errors
    /// `InvalidArgument` with the filter and what is wrong with it.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self, Failure> {
        let parse = |text: &str| {
            let mut parser = Parser { text, at: 0 };
            parser
                .filter()
                .map_err(|why| invalid(format!("parse error in filter {text:?}: {why}")))
        };
        let parsed = filters.iter().map(|f| parse(f.as_ref()));
        Ok(Self(parsed.collect::<Result<_, _>>()?))
    }

    pub fn matches(&self, it: &impl Fields) -> bool {
        self.0.is_empty()
            || self
                .0
                .iter()
                .any(|selectors| selectors.iter().all(|s| s.matches(it)))
    }
}

impl Selector {
    fn matches(&self, it: &impl Fields) -> bool {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let value = it.field(&path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|v| v == *wanted),
            Test::NotEqual(unwanted) => value.as_ref() != Some(unwanted),
            Test::Matches(regex) => value.is_some_and(|v| regex.is_match(&v)),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn filter(&mut self) -> Result<Vec<Selector>, String> {
        let mut selectors = Vec::new();
        if self.text.is_empty() {
            return Ok(selectors);
        }
        loop {
            selectors.push(self.selector()?);
            match self.next() {
                None => return Ok(selectors),
                Some(',') => {}
                Some(c) => return Err(format!("expected a separator or field, got {c:?}")),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, String> {
        let mut path = vec![self.name()?];
        while self.peek() == Some('.') {
            self.next();
            path.push(self.name()?);
        }
        let operator = match self.peek() {
            None | Some(',') => None,
            _ => Some(self.operator()?),
        };
        let test = match operator {
            None => Test::Present,
            Some("==") => Test::Equal(self.value(false)?),
            Some("!=") => Test::NotEqual(self.value(false)?),
            Some(_) => {
                let text = self.value(true)?;
                Test::Matches(Regex::new(&text).map_err(|e| format!("regex {text:?}: {e}"))?)
            }
        };
        Ok(Selector { path, test })
    }

    fn operator(&mut self) -> Result<&'static str, String> {
        let rest = &self.text[self.at..];
        for operator in ["==", "!=", "~="] {
            if rest.starts_with(operator) {
                self.at += operator.len();
                return Ok(operator);
            }
        }
        Err(format!("unsupported operator at {rest:?}"))
    }

    fn name(&mut self) -> Result<String, String> {
        match self.peek() {
            Some('"') => self.quoted('"'),
            _ => self.word(|c| c.is_alphanumeric() || c == '_' || c == '-', "a field"),
        }
    }

    /// A regex may also be quoted by what it is less likely to hold.
    fn value(&mut self, is_regex: bool) -> Result<String, String> {
        match self.peek() {
            Some('"') => self.quoted('"'),
            Some(quote @ ('|' | '/')) if is_regex => self.quoted(quote),
            None => Err("expected a value, got the end".into()),
            _ => self.word(|c| c != ',', "a value"),
        }
    }

    fn word(&mut self, allowed: impl Fn(char) -> bool, what: &str) -> Result<String, String> {
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !allowed(c)).unwrap_or(rest.len());
        if end == 0 {
            return Err(format!("expected {what} at {rest:?}"));
        }
        self.at += end;
        Ok(rest[..end].to_owned())
    }

    /// In `"…"` a backslash escapes as in Go; in other quotes only the quote itself.
    fn quoted(&mut self, quote: char) -> Result<String, String> {
        self.next();
        let mut value = String::new();
        loop {
            match self.next() {
                None => return Err("quoted literal not terminated".into()),
                Some(c) if c == quote => return Ok(value),
                Some('\\') => match self.next() {
                    None => return Err("quoted literal not terminated".into()),
                    Some(c) if c == quote || (c == '\\' && quote == '"') => value.push(c),
                    Some('n') if quote == '"' => value.push('\n'),
                    Some('t') if quote == '"' => value.push('\t'),
                    Some(c) => value.extend(['\\', c]),
                },
                Some(c) => value.push(c),
            }
        }
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct It;

    impl Fields for It {
        fn field(&self, path: &[&str]) -> Option<String> {
            match path {
                ["topic"] => Some("/tasks/exit".into()),
                ["namespace"] => Some("moby".into()),
                ["labels", "a.b/c"] => Some("x,y".into()),
                _ => None,
            }
        }
    }

    #[test]
    fn the_language() {
        for (filter, holds) in [
            ("", true),
            ("topic==/tasks/exit", true),
            ("topic==\"/tasks/exit\"", true),
            ("topic!=/tasks/exit", false),
            ("topic~=|^/tasks/|", true),
            ("namespace==moby,topic~=|^/tasks/|", true),
            ("namespace==moby,topic~=\"^/containers/\"", false),
            ("namespace", true),
            ("nothing", false),
            ("nothing!=x", true),
            ("nothing==x", false),
            ("labels.\"a.b/c\"==\"x,y\"", true),
            ("labels.\"a.b/c\"~=/x,y/", true),
            ("labels.other", false),
        ] {
            assert_eq!(
                Filters::parse(&[filter]).unwrap().matches(&It),
                holds,
                "{filter}"
            );
        }
        assert!(
            Filters::parse(&["nothing", "namespace"])
                .unwrap()
                .matches(&It)
        );
        assert!(Filters::parse::<&str>(&[]).unwrap().matches(&It));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for filter in [
            "==x", "a=b", "a==", "a~=(", "a,", "a==\"x", "a.\"x", "a ==b", "a<b",
        ] {
            let e = Filters::parse(&[filter]).unwrap_err();
            assert_eq!(e.code, protos::Code::InvalidArgument, "{filter}");
            assert!(e.message.contains(&format!("{filter:?}")), "{}", e.message);
        }
    }
}
