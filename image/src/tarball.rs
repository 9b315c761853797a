// SPDX-License-Identifier: Apache-2.0
//! The entries of a tar archive, one after the other, with the bytes of their names and attributes.
//!
//! The headers are the crate `tar`'s. Its reader takes a pax record for ended by the first line feed,
//! and a set of capabilities may have that byte.

use nix::sys::time::TimeSpec;
use std::io::{self, Error, ErrorKind, Read};
use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// Bytes that the names and attributes of one entry may have: GNU tar and Go read no more.
const MOST_EXTRA: u64 = 1 << 20;
/// What the keys of extended attributes begin with.
const XATTR: &[u8] = b"SCHILY.xattr.";

pub struct Archive<R> {
    from: R,
    /// Bytes read so far.
    at: u64,
    /// Of the current entry: its data, and what fills the last block.
    data: u64,
    padding: u64,
}

#[derive(Debug)]
pub struct Entry {
    pub path: Vec<u8>,
    /// Where a link leads.
    pub link: Vec<u8>,
    pub kind: EntryType,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: TimeSpec,
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where its data begins in the archive.
    pub offset: u64,
}

/// What was said before an entry's own header.
#[derive(Default)]
struct Extra {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

fn bad(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, why.into())
}

impl<R: Read> Archive<R> {
    pub fn new(from: R) -> Self {
        Self {
            from,
            at: 0,
            data: 0,
            padding: 0,
        }
    }

    /// The next entry, past what was not read of the last.
    ///
    /// # Errors
    /// From reading, and if what comes is no tar archive.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extra = Extra::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let kind = header.entry_type();
            let size = header.entry_size()?;
            match kind {
                EntryType::XHeader => extra.records = records(&self.text(size)?)?,
                EntryType::GNULongName => extra.path = Some(until_nul(self.text(size)?)),
                EntryType::GNULongLink => extra.link = Some(until_nul(self.text(size)?)),
                EntryType::XGlobalHeader => drop(self.text(size)?),
                _ => return self.entry(&header, extra).map(Some),
            }
        }
    }

    /// Of the current entry's data, what has not been read.
    pub fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    /// What is behind the archive's end, to whoever wants to read all.
    pub fn into_rest(self) -> R {
        self.from
    }

    fn skip(&mut self) -> io::Result<()> {
        io::copy(&mut self.data(), &mut io::sink())?;
        self.pass(self.padding)
    }

    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let passed = io::copy(&mut (&mut self.from).take(bytes), &mut io::sink())?;
        self.at += passed;
        self.padding = 0;
        match passed == bytes {
            true => Ok(()),
            false => Err(cut_off()),
        }
    }

    /// None at the end.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let mut filled = 0;
        let block = header.as_mut_bytes();
        while filled < block.len() {
            match self.from.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(cut_off()),
                more => filled += more,
            }
        }
        self.at += BLOCK;
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        // The sum is of the header with blanks in place of itself.
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        let own: u32 = block[148..156].iter().map(|&byte| u32::from(byte)).sum();
        let sum = sum - own + 8 * u32::from(b' ');
        match header.cksum() {
            Ok(told) if told == sum => Ok(Some(header)),
            _ => Err(bad("not a tar archive, or damaged")),
        }
    }

    fn text(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MOST_EXTRA {
            return Err(bad(format!("{size} bytes of names and attributes")));
        }
        let mut text = Vec::new();
        (&mut self.from).take(size).read_to_end(&mut text)?;
        self.at += text.len() as u64;
        if text.len() as u64 != size {
            return Err(cut_off());
        }
        self.pass(padding(size))?;
        Ok(text)
    }

    fn entry(&mut self, header: &Header, extra: Extra) -> io::Result<Entry> {
        let mut kind = header.entry_type();
        let mut entry = Entry {
            path: extra.path.unwrap_or_else(|| header.path_bytes().into()),
            link: header.link_name_bytes().unwrap_or_default().into(),
            kind,
            size: header.entry_size()?,
            mode: header.mode()? & 0o7777,
            uid: number("uid", header.uid())?,
            gid: number("gid", header.gid())?,
            mtime: TimeSpec::new(header.mtime().unwrap_or(0).cast_signed(), 0),
            device: (
                header.device_major().ok().flatten().unwrap_or(0),
                header.device_minor().ok().flatten().unwrap_or(0),
            ),
            xattrs: Vec::new(),
            offset: self.at,
        };
        if let Some(link) = extra.link {
            entry.link = link;
        }
        for (key, value) in extra.records {
            entry.set(&key, value)?;
        }
        if kind == EntryType::Regular && entry.path.ends_with(b"/") {
            kind = EntryType::Directory;
        }
        entry.kind = kind;
        // What has no data may tell of some, and there is none (Go's archive/tar, GNU tar).
        if !matches!(kind, EntryType::Regular | EntryType::Continuous) {
            entry.size = if kind == EntryType::GNUSparse {
                return Err(bad("GNU's sparse files are not supported"));
            } else {
                0
            };
        }
        self.data = entry.size;
        self.padding = padding(entry.size);
        Ok(entry)
    }
}

impl Entry {
    /// A pax record (pax(1), and star's for attributes).
    fn set(&mut self, key: &[u8], value: Vec<u8>) -> io::Result<()> {
        let text = || String::from_utf8_lossy(&value).into_owned();
        let integer = || {
            let parsed = text().parse::<u64>();
            parsed.map_err(|_| bad(format!("{}: {:?}", key.escape_ascii(), text())))
        };
        match key {
            b"path" => self.path = value,
            b"linkpath" => self.link = value,
            b"size" => self.size = integer()?,
            b"uid" => self.uid = number("uid", integer())?,
            b"gid" => self.gid = number("gid", integer())?,
            b"mtime" => self.mtime = time(&text()).ok_or_else(|| bad("mtime"))?,
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(bad("GNU's sparse files are not supported"));
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.push((name.to_vec(), value));
                }
            }
        }
        Ok(())
    }

    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// Reads the data of an entry.
pub struct Data<'a, R>(&'a mut Archive<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.0.data).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.0.from.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(cut_off());
        }
        self.0.data -= read as u64;
        self.0.at += read as u64;
        Ok(read)
    }
}

fn cut_off() -> Error {
    Error::new(ErrorKind::UnexpectedEof, "it ends too early")
}

fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    let end = text.iter().position(|&byte| byte == 0);
    text.truncate(end.unwrap_or(text.len()));
    text
}

fn number(what: &str, number: io::Result<u64>) -> io::Result<u32> {
    let number = number?;
    // The highest says "none" to the kernel.
    let small = u32::try_from(number).ok().filter(|&id| id != u32::MAX);
    small.ok_or_else(|| bad(format!("{what} {number}")))
}

/// Seconds, and perhaps a fraction.
fn time(text: &str) -> Option<TimeSpec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = seconds.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: i64 = digits.parse().ok()?;
    Some(match nanos > 0 && seconds.starts_with('-') {
        true => TimeSpec::new(whole.checked_sub(1)?, 1_000_000_000 - nanos),
        false => TimeSpec::new(whole, nanos),
    })
}

/// Pax records: `LENGTH KEY=VALUE\n` each, where the length is that of all of it.
fn records(mut text: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    while !text.is_empty() {
        let (record, rest) = record(text).ok_or_else(|| bad("a malformed pax record"))?;
        found.push(record);
        text = rest;
    }
    Ok(found)
}

type Record = (Vec<u8>, Vec<u8>);

fn record(text: &[u8]) -> Option<(Record, &[u8])> {
    let blank = text.iter().position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&text[..blank]).ok()?.parse().ok()?;
    let (record, rest) = text.split_at_checked(length)?;
    let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    Some(((key.to_vec(), value.to_vec()), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of one file whose pax header has these records.
    fn archive(records: &[u8], data: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        let mut add = |kind: EntryType, name: &str, data: &[u8]| {
            let mut header = Header::new_ustar();
            header.set_path(name).unwrap();
            header.set_entry_type(kind);
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_uid(1);
            header.set_gid(2);
            header.set_mtime(3);
            header.set_cksum();
            all.extend_from_slice(header.as_bytes());
            all.extend_from_slice(data);
            all.resize(all.len().next_multiple_of(512), 0);
        };
        if !records.is_empty() {
            add(EntryType::XHeader, "pax", records);
        }
        add(EntryType::Regular, "short", data);
        all.resize(all.len() + 1024, 0);
        all
    }

    fn line(key: &[u8], value: &[u8]) -> Vec<u8> {
        let rest = [b" ", key, b"=", value, b"\n"].concat();
        let digits = (rest.len() + 3).to_string().len();
        let text = format!("{}", rest.len() + digits);
        [text.as_bytes(), &rest].concat()
    }

    #[test]
    fn a_value_may_have_a_line_feed() {
        let caps = b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let records = [
            line(b"SCHILY.xattr.security.capability", caps),
            line(b"path", b"a/long\nname"),
            line(b"mtime", b"7.25"),
            line(b"uid", b"70000"),
        ];
        let bytes = archive(&records.concat(), b"hello");
        let mut archive = Archive::new(&bytes[..]);
        let entry = archive.next().unwrap().unwrap();
        assert_eq!(entry.path, b"a/long\nname");
        assert_eq!(
            entry.xattrs,
            [(b"security.capability".into(), caps.to_vec())]
        );
        assert_eq!((entry.uid, entry.gid), (70_000, 2));
        assert_eq!(entry.mtime, TimeSpec::new(7, 250_000_000));
        let mut data = String::new();
        archive.data().read_to_string(&mut data).unwrap();
        assert_eq!(data, "hello");
        assert!(archive.next().unwrap().is_none());
    }

    #[test]
    fn what_is_cut_off_or_changed_is_no_archive() {
        let whole = archive(&line(b"path", b"x"), b"hello");
        // Without its end it is one: GNU tar's words are "a lone zero block".
        for cut in [1, 511, 513, 1023, 1025, 1500, 1539, 1541] {
            let mut archive = Archive::new(&whole[..cut]);
            let wrong = loop {
                match archive.next() {
                    Ok(Some(_)) => {}
                    end => break end.is_err(),
                }
            };
            assert!(wrong, "cut at {cut}");
        }
        let mut changed = whole.clone();
        changed[1024] = b'y';
        assert!(Archive::new(&changed[..]).next().is_err());
        let bad = archive(b"30 path=x\n", b"");
        assert!(Archive::new(&bad[..]).next().is_err());
        let huge = archive(&line(b"uid", b"4294967295"), b"");
        assert!(Archive::new(&huge[..]).next().is_err());
    }

    #[test]
    fn times_have_a_fraction_and_a_sign() {
        assert_eq!(time("1.5"), Some(TimeSpec::new(1, 500_000_000)));
        assert_eq!(time("-1.5"), Some(TimeSpec::new(-2, 500_000_000)));
        assert_eq!(time("12"), Some(TimeSpec::new(12, 0)));
        assert_eq!(time("x"), None);
    }
}
