//! PAX extended headers (POSIX.1-2001 `pax`): records of `LENGTH KEY=VALUE\n`.
//!
//! Known keys are read, others ignored, as the standard asks. Extended attributes come as `SCHILY.xattr.NAME` with
//! the raw value (star, GNU tar, Go) or as `LIBARCHIVE.xattr.NAME` with an encoded name and a base64 value (bsdtar
//! writes both; the first wins then).

use std::collections::BTreeMap;

use super::Timestamp;

/// The records of one extended header that mean something here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) device_major: Option<u32>,
    pub(super) device_minor: Option<u32>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse: SparseRecords,
}

/// `GNU.sparse.*`, in any of its three versions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.x) or `GNU.sparse.realsize` (1.0).
    pub(super) real_size: Option<u64>,
    /// Version 0.x: offsets and lengths alternating.
    pub(super) map: Option<Vec<u64>>,
}

/// What is wrong with an extended header.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PaxError {
    /// Not `LENGTH KEY=VALUE`.
    #[error("a record is malformed")]
    Record,
    /// Not what the key asks for.
    #[error("the value of {0} is malformed")]
    Value(String),
}

impl Records {
    /// Reads all records; where a key is repeated the last one counts.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, PaxError> {
        let mut records = Self::default();
        let mut libarchive = BTreeMap::new();
        while !bytes.is_empty() {
            let (key, value, rest) = split(bytes).ok_or(PaxError::Record)?;
            bytes = rest;
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                records.xattrs.insert(name.to_vec(), value.to_vec());
            } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                let decoded = percent_decode(name).zip(base64_decode(value));
                let (name, value) = decoded.ok_or_else(|| malformed(key))?;
                libarchive.insert(name, value);
            } else {
                records.set(key, value).ok_or_else(|| malformed(key))?;
            }
        }
        for (name, value) in libarchive {
            records.xattrs.entry(name).or_insert(value);
        }
        Ok(records)
    }

    /// One record that is no extended attribute; nothing if its value is malformed.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let sparse = &mut self.sparse;
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = decimal(value)?,
            b"uid" => self.uid = decimal(value)?,
            b"gid" => self.gid = decimal(value)?,
            b"mtime" => {
                self.mtime = if value.is_empty() {
                    None
                } else {
                    Some(timestamp(value)?)
                }
            }
            b"SCHILY.devmajor" => self.device_major = decimal(value)?,
            b"SCHILY.devminor" => self.device_minor = decimal(value)?,
            b"GNU.sparse.major" => sparse.major = decimal(value)?,
            b"GNU.sparse.minor" => sparse.minor = decimal(value)?,
            b"GNU.sparse.name" => sparse.name = name(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => sparse.real_size = decimal(value)?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                sparse.map.get_or_insert_default().push(decimal(value)??);
            }
            b"GNU.sparse.map" => {
                let numbers: Option<Vec<u64>> = value
                    .split(|byte| *byte == b',')
                    .map(|number| decimal(number).flatten())
                    .collect();
                sparse.map = Some(numbers?);
            }
            _ => {}
        }
        Some(())
    }
}

fn malformed(key: &[u8]) -> PaxError {
    PaxError::Value(String::from_utf8_lossy(key).into_owned())
}

/// Key, value and what follows the first record.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(..length)?.get(space + 1..)?;
    let body = record.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    (equals > 0).then(|| (&body[..equals], &body[equals + 1..], &bytes[length..]))
}

/// An empty value takes an earlier one back. A NUL would cut the name short for every other reader.
#[expect(
    clippy::option_option,
    reason = "outer: malformed, inner: taken back; as for the other values"
)]
fn name(value: &[u8]) -> Option<Option<Vec<u8>>> {
    if value.contains(&0) {
        return None;
    }
    Some((!value.is_empty()).then(|| value.to_vec()))
}

#[expect(
    clippy::option_option,
    reason = "outer: malformed, inner: taken back by an empty value"
)]
fn decimal<T: std::str::FromStr>(value: &[u8]) -> Option<Option<T>> {
    if value.is_empty() {
        return Some(None);
    }
    if !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok().map(Some)
}

/// Decimal seconds with an optional fraction; digits below a nanosecond are dropped.
fn timestamp(value: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(value).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanoseconds: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp {
            seconds: -seconds,
            nanoseconds,
        },
        (true, _) => Timestamp {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        if *byte == b'%' {
            let pair = [*bytes.next()?, *bytes.next()?];
            decoded.push(u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok()?);
        } else {
            decoded.push(*byte);
        }
    }
    Some(decoded)
}

/// RFC 4648, padding optional.
fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.iter().filter(|byte| **byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = ((bits & 0xff_ffff) << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = body.len();
        while length.to_string().len() + body.len() != length {
            length = length.to_string().len() + body.len();
        }
        [length.to_string().as_bytes(), &body].concat()
    }

    #[test]
    fn known_keys_are_read() {
        let bytes = [
            record("path", b"a\n=b\xff"),
            record("size", b"8589934592"),
            record("uid", b"4294967294"),
            record("mtime", b"1700000000.5"),
            record("SCHILY.xattr.user.a", b"x\0\ny"),
            record("LIBARCHIVE.xattr.user.b%3d", b"aGVsbG8"),
            record("LIBARCHIVE.xattr.user.a", b"AAAA"),
            record("comment", b"nothing"),
        ]
        .concat();
        let records = Records::parse(&bytes).unwrap();
        assert_eq!(records.path.as_deref(), Some(b"a\n=b\xff".as_slice()));
        assert_eq!(
            (records.size, records.uid),
            (Some(8_589_934_592), Some(4_294_967_294))
        );
        assert_eq!(
            records.mtime,
            Some(Timestamp {
                seconds: 1_700_000_000,
                nanoseconds: 500_000_000
            })
        );
        assert_eq!(records.xattrs[b"user.a".as_slice()], b"x\0\ny");
        assert_eq!(records.xattrs[b"user.b=".as_slice()], b"hello");
    }

    #[test]
    fn timestamps() {
        let check = |text: &str, expected: Option<(i64, u32)>| {
            let expected = expected.map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds });
            assert_eq!(timestamp(text.as_bytes()), expected, "{text}");
        };
        check("0", Some((0, 0)));
        check("1.000000001", Some((1, 1)));
        check("1.0000000019", Some((1, 1)));
        check("-1.25", Some((-2, 750_000_000)));
        check("-3", Some((-3, 0)));
        check("1.5e3", None);
        check(".5", None);
        check("", None);
        check("99999999999999999999", None);
    }

    #[test]
    fn malformed_records_are_refused() {
        let check = |bytes: &[u8]| assert!(Records::parse(bytes).is_err(), "{bytes:?}");
        check(b"5 a=b\n");
        check(b"7 a=b\n");
        check(b"6 a=b");
        check(b"6 ab\n\n");
        check(b"99999999999999999999999 a=b\n");
        check(b"0 a=b\n");
        check(&record("size", b"-1"));
        check(&record("size", b"+1"));
        check(&record("path", b"a\0b"));
        check(&record("uid", b"4294967296"));
        check(&record("GNU.sparse.map", b"1,,2"));
    }
}
