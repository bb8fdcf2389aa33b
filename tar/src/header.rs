//! One 512-byte header block: fields, numbers, checksum (POSIX.1-1988 ustar, GNU and star variants).

use super::{BLOCK, Kind, Timestamp};

/// A header block whose checksum is right.
pub(super) struct Header([u8; BLOCK]);

/// What is wrong with a header block.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// It is none, or has been damaged.
    #[error("its checksum is wrong: this is not a tar archive, or it is damaged")]
    Checksum,
    /// Neither octal nor base-256.
    #[error("its {field} is not a number")]
    NotANumber {
        /// Of the header.
        field: &'static str,
    },
    /// A number that cannot be meant.
    #[error("its {field} is out of range: {value}")]
    OutOfRange {
        /// Of the header.
        field: &'static str,
        /// What it holds.
        value: i128,
    },
    /// A type flag that means nothing here.
    #[error("entries of type {:?} are not supported", char::from(*.0))]
    Type(u8),
}

impl Header {
    /// Checks the checksum; both the standard unsigned sum and the signed one of some old tars are accepted.
    pub(super) fn parse(block: [u8; BLOCK]) -> Result<Self, HeaderError> {
        let stored = number(&block[148..156]).ok_or(HeaderError::Checksum)?;
        let mut unsigned: i128 = 0;
        let mut signed: i128 = 0;
        for (position, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&position) {
                b' '
            } else {
                *byte
            };
            unsigned += i128::from(byte);
            signed += i128::from(byte.cast_signed());
        }
        if stored == unsigned || stored == signed {
            Ok(Self(block))
        } else {
            Err(HeaderError::Checksum)
        }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    /// The name, with ustar's prefix put before it.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[0..100]);
        let prefix = if &self.0[257..263] != b"ustar\0" {
            &[]
        } else if &self.0[508..512] == b"tar\0" {
            text(&self.0[345..476])
        } else {
            text(&self.0[345..500])
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    /// Permission bits; what else stands in the field (GNU tar once wrote type bits) is dropped.
    pub(super) fn mode(&self) -> Result<u16, HeaderError> {
        let mode = self.number("mode", 100..108)?;
        u16::try_from(mode & 0o7777).map_err(|_| HeaderError::OutOfRange {
            field: "mode",
            value: mode,
        })
    }

    pub(super) fn uid(&self) -> Result<u32, HeaderError> {
        self.unsigned("owner", 108..116)
    }

    pub(super) fn gid(&self) -> Result<u32, HeaderError> {
        self.unsigned("group", 116..124)
    }

    pub(super) fn size(&self) -> Result<u64, HeaderError> {
        self.unsigned("size", 124..136)
    }

    pub(super) fn mtime(&self) -> Result<Timestamp, HeaderError> {
        let seconds = self.unsigned("modification time", 136..148)?;
        Ok(Timestamp {
            seconds,
            nanoseconds: 0,
        })
    }

    pub(super) fn device(&self) -> Result<(u32, u32), HeaderError> {
        Ok((
            self.unsigned("device major", 329..337)?,
            self.unsigned("device minor", 337..345)?,
        ))
    }

    /// GNU's size of a sparse file with its holes.
    pub(super) fn real_size(&self) -> Result<u64, HeaderError> {
        self.unsigned("real size", 483..495)
    }

    /// GNU's four extents in the header of a sparse file, and whether extension blocks follow.
    pub(super) fn sparse_extents(&self) -> (&[u8], bool) {
        (&self.0[386..482], self.0[482] != 0)
    }

    pub(super) fn kind(&self, path: &[u8]) -> Result<Kind, HeaderError> {
        match self.type_flag() {
            // Before ustar a directory was a file whose name ended in a slash.
            0 if path.ends_with(b"/") => Ok(Kind::Directory),
            0 | b'0' | b'7' | b'S' => Ok(Kind::File),
            b'1' => Ok(Kind::HardLink),
            b'2' => Ok(Kind::Symlink),
            b'3' => Ok(Kind::CharacterDevice),
            b'4' => Ok(Kind::BlockDevice),
            b'5' => Ok(Kind::Directory),
            b'6' => Ok(Kind::Fifo),
            other => Err(HeaderError::Type(other)),
        }
    }

    fn number(&self, field: &'static str, range: std::ops::Range<usize>) -> Result<i128, HeaderError> {
        number(&self.0[range]).ok_or(HeaderError::NotANumber { field })
    }

    fn unsigned<T: TryFrom<i128>>(
        &self,
        field: &'static str,
        range: std::ops::Range<usize>,
    ) -> Result<T, HeaderError> {
        let value = self.number(field, range)?;
        T::try_from(value).map_err(|_| HeaderError::OutOfRange { field, value })
    }
}

/// The bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A numeric field of at most 12 bytes: octal digits, or GNU's base-256 two's complement if the top bit is set.
pub fn number(field: &[u8]) -> Option<i128> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (position, byte) in field.iter().enumerate() {
            let byte = if position == 0 && !negative {
                *byte & 0x7f
            } else {
                *byte
            };
            value = (value << 8) | i128::from(byte);
        }
        return Some(value);
    }
    let digits = text(field.trim_ascii_start()).trim_ascii();
    let mut value = 0;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value * 8 + i128::from(digit - b'0');
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let check = |field: &[u8], expected: Option<i128>| assert_eq!(number(field), expected, "{field:?}");
        check(b"0000644\0", Some(0o644));
        check(b"    644 ", Some(0o644));
        check(b"\0\0\0\0\0\0\0\0", Some(0));
        check(b"        ", Some(0));
        check(b"0000648\0", None);
        check(b"-1      ", None);
        check(b"\x80\0\0\0\0\0\0\0\x01\0\0\0", Some(1 << 24));
        check(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1));
        check(b"\x80\xff\xff\xff\xff\xff\xff\xff", Some((1 << 56) - 1));
    }
}
