//! The on-disk structures, encoded and decoded (Linux, fs/erofs/erofs_fs.h). All numbers are little-endian.

use std::collections::BTreeMap;

use crate::limits;
use rvm_tar::Timestamp;

pub(crate) const BLOCK: usize = 4096;
pub(super) const BLOCK_BYTES: u64 = 4096;

pub(super) const MAGIC: u32 = 0xe0f5_e1e2;
pub(super) const SUPERBLOCK_OFFSET: usize = 1024;
/// The superblock proper; extension slots are not used.
pub(super) const SUPERBLOCK_BYTES: usize = 128;
const FEATURE_CHECKSUM: u32 = 1;
const FEATURE_MTIME: u32 = 2;

/// An inode's number is its position in units of this many bytes.
pub(super) const SLOT: u64 = 32;
pub(super) const INODE_BYTES: usize = 64;
/// Position of the link count within an inode, for patching it once all names are known.
pub(super) const INODE_LINKS_OFFSET: u64 = 44;
const LAYOUT_PLAIN: u16 = 0;
const LAYOUT_INLINE: u16 = 2;
const FORMAT_EXTENDED: u16 = 1;

pub(super) const DIRENT_BYTES: usize = 12;
const XATTR_HEADER_BYTES: usize = 12;

const TYPE_MASK: u16 = 0o170_000;

/// Extended attributes by full name (`user.name`).
pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What an inode says about a file besides its content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Metadata {
    /// Permission bits, no type bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: Xattrs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileType {
    File,
    Directory,
    CharacterDevice,
    BlockDevice,
    Fifo,
    Symlink,
}

impl FileType {
    const ALL: [Self; 6] = [
        Self::File,
        Self::Directory,
        Self::CharacterDevice,
        Self::BlockDevice,
        Self::Fifo,
        Self::Symlink,
    ];

    /// The type bits of `st_mode`.
    pub(super) fn mode(self) -> u16 {
        match self {
            Self::File => 0o100_000,
            Self::Directory => 0o040_000,
            Self::CharacterDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Symlink => 0o120_000,
        }
    }

    pub(super) fn from_mode(mode: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.mode() == mode & TYPE_MASK)
    }

    /// The type as directory entries have it (EROFS_FT_*).
    pub(super) fn dirent(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Directory => 2,
            Self::CharacterDevice => 3,
            Self::BlockDevice => 4,
            Self::Fifo => 5,
            Self::Symlink => 7,
        }
    }

    pub(super) fn from_dirent(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.dirent() == value)
    }
}

/// A device number as Linux encodes it on disk (new_encode_dev): 12 bits of major, 20 of minor.
pub(crate) fn device_number(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// Major and minor number from [`device_number`]'s form.
pub(super) fn device_numbers(device: u32) -> (u32, u32) {
    (
        (device >> 8) & 0xfff,
        (device & 0xff) | ((device >> 12) & 0xfff00),
    )
}

/// The fixed part of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawInode {
    /// With type bits.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) size: u64,
    pub(super) links: u32,
    /// A serial number for 32-bit `stat`; the real number is the inode's position.
    pub(super) serial: u32,
    /// Whether the last partial block of data follows the inode.
    pub(super) inline_tail: bool,
    /// The first block of data, or the number of a device.
    pub(super) start_or_device: u32,
    /// Bytes of the extended attributes, which follow the inode.
    pub(super) xattr_bytes: usize,
}

impl RawInode {
    pub(super) fn encode(&self) -> [u8; INODE_BYTES] {
        let layout = if self.inline_tail {
            LAYOUT_INLINE
        } else {
            LAYOUT_PLAIN
        };
        let xattr_count = match self.xattr_bytes {
            0 => 0,
            // Attributes are capped far below what 16 bits of 4-byte units hold.
            bytes => u16::try_from((bytes - XATTR_HEADER_BYTES) / 4 + 1).unwrap_or(u16::MAX),
        };
        let mut bytes = [0; INODE_BYTES];
        put(&mut bytes, 0, &(layout << 1 | FORMAT_EXTENDED).to_le_bytes());
        put(&mut bytes, 2, &xattr_count.to_le_bytes());
        put(&mut bytes, 4, &self.mode.to_le_bytes());
        put(&mut bytes, 8, &self.size.to_le_bytes());
        put(&mut bytes, 16, &self.start_or_device.to_le_bytes());
        put(&mut bytes, 20, &self.serial.to_le_bytes());
        put(&mut bytes, 24, &self.uid.to_le_bytes());
        put(&mut bytes, 28, &self.gid.to_le_bytes());
        put(&mut bytes, 32, &self.mtime.seconds.to_le_bytes());
        put(&mut bytes, 40, &self.mtime.nanoseconds.to_le_bytes());
        put(&mut bytes, 44, &self.links.to_le_bytes());
        bytes
    }

    /// Nothing if the inode is of a form that the writer here does not produce.
    pub(super) fn decode(bytes: &[u8; INODE_BYTES]) -> Option<Self> {
        let inline_tail = match u16_at(bytes, 0)? {
            format if format == LAYOUT_PLAIN << 1 | FORMAT_EXTENDED => false,
            format if format == LAYOUT_INLINE << 1 | FORMAT_EXTENDED => true,
            _ => return None,
        };
        Some(Self {
            mode: u16_at(bytes, 4)?,
            uid: u32_at(bytes, 24)?,
            gid: u32_at(bytes, 28)?,
            mtime: Timestamp {
                seconds: i64::from_le_bytes(*bytes.get(32..)?.first_chunk()?),
                nanoseconds: u32_at(bytes, 40)?,
            },
            size: u64_at(bytes, 8)?,
            links: u32_at(bytes, 44)?,
            serial: u32_at(bytes, 20)?,
            inline_tail,
            start_or_device: u32_at(bytes, 16)?,
            xattr_bytes: match usize::from(u16_at(bytes, 2)?) {
                0 => 0,
                count => XATTR_HEADER_BYTES + (count - 1) * 4,
            },
        })
    }
}

/// Name prefixes that are stored as a number. Order matters: the ACL names are whole names.
const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Why extended attributes cannot be stored.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum XattrError {
    #[error(
        "the name of the extended attribute {name:?} has more than {} bytes",
        limits::XATTR_NAME_BYTES
    )]
    Name { name: String },
    #[error(
        "the extended attributes have {bytes} bytes, more than {}",
        limits::XATTR_BYTES
    )]
    Size { bytes: usize },
}

/// Whether the name is in one of the name spaces that EROFS can store.
pub(crate) fn check_xattr_name(name: &[u8]) -> bool {
    split_xattr_name(name).is_some()
}

fn split_xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        (rest.is_empty() != prefix.ends_with(b".")).then_some((*index, rest))
    })
}

/// The bytes that follow an inode; none if there are no attributes. Names outside the known spaces are left out.
pub(super) fn encode_xattrs(xattrs: &Xattrs) -> Result<Vec<u8>, XattrError> {
    let total: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if total > limits::XATTR_BYTES {
        return Err(XattrError::Size { bytes: total });
    }
    let mut bytes = Vec::new();
    for (name, value) in xattrs {
        let Some((index, rest)) = split_xattr_name(name) else {
            continue;
        };
        let long = || XattrError::Name {
            name: String::from_utf8_lossy(name).into_owned(),
        };
        let name_length = u8::try_from(rest.len())
            .ok()
            .filter(|_| name.len() <= limits::XATTR_NAME_BYTES);
        let value_length = u16::try_from(value.len()).map_err(|_| XattrError::Size { bytes: total })?;
        if bytes.is_empty() {
            bytes.resize(XATTR_HEADER_BYTES, 0);
        }
        bytes.extend_from_slice(&[name_length.ok_or_else(long)?, index]);
        bytes.extend_from_slice(&value_length.to_le_bytes());
        bytes.extend_from_slice(rest);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    Ok(bytes)
}

/// The inverse of [`encode_xattrs`]; nothing if the bytes are malformed.
pub(super) fn decode_xattrs(bytes: &[u8]) -> Option<Xattrs> {
    let mut xattrs = Xattrs::new();
    let mut rest = bytes.get(XATTR_HEADER_BYTES..)?;
    while !rest.is_empty() {
        let (name_length, index) = (usize::from(*rest.first()?), *rest.get(1)?);
        let value_length = usize::from(u16_at(rest, 2)?);
        let name = rest.get(4..4 + name_length)?;
        let value = rest.get(4 + name_length..4 + name_length + value_length)?;
        let (_, prefix) = XATTR_PREFIXES.iter().find(|(known, _)| *known == index)?;
        xattrs.insert([prefix, name].concat(), value.to_vec());
        rest = rest.get((4 + name_length + value_length).next_multiple_of(4)..)?;
    }
    Some(xattrs)
}

/// What a superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Slot number of the root directory's inode; 16 bits on disk.
    pub(super) root: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
}

impl Superblock {
    /// Puts the superblock into the image's first block, which must be complete otherwise: its checksum covers the
    /// block from the superblock to the end.
    pub(super) fn encode(&self, block: &mut [u8; BLOCK]) {
        let superblock = &mut block[SUPERBLOCK_OFFSET..];
        put(superblock, 0, &MAGIC.to_le_bytes());
        put(superblock, 4, &0_u32.to_le_bytes());
        put(superblock, 8, &(FEATURE_CHECKSUM | FEATURE_MTIME).to_le_bytes());
        put(superblock, 12, &[12, 0]);
        put(superblock, 14, &self.root.to_le_bytes());
        put(superblock, 16, &self.inodes.to_le_bytes());
        put(superblock, 36, &self.blocks.to_le_bytes());
        let checksum = crc32c(superblock);
        put(superblock, 4, &checksum.to_le_bytes());
    }

    /// Nothing if it is not a superblock that the writer here made, or if it is damaged.
    pub(super) fn decode(block: &[u8; BLOCK]) -> Option<Self> {
        let mut superblock = block[SUPERBLOCK_OFFSET..].to_vec();
        let checksum = u32_at(&superblock, 4)?;
        put(&mut superblock, 4, &0_u32.to_le_bytes());
        let known = u32_at(&superblock, 0)? == MAGIC
            && u32_at(&superblock, 8)? == FEATURE_CHECKSUM | FEATURE_MTIME
            && superblock.get(12..14)? == [12, 0]
            && u32_at(&superblock, 40)? == 0
            && u32_at(&superblock, 80)? == 0
            && crc32c(&superblock) == checksum;
        known.then_some(Self {
            root: u16_at(&superblock, 14)?,
            inodes: u64_at(&superblock, 16)?,
            blocks: u32_at(&superblock, 36)?,
        })
    }
}

/// CRC-32C without the final inversion, as the kernel's crc32c(~0, ...). It runs over 3 KiB per image.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 0 {
                crc >> 1
            } else {
                (crc >> 1) ^ 0x82f6_3b78
            };
        }
    }
    crc
}

pub(super) fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_round_trip() {
        let inode = RawInode {
            mode: 0o104_755,
            uid: u32::MAX - 1,
            gid: 65_536,
            mtime: Timestamp {
                seconds: -5,
                nanoseconds: 999_999_999,
            },
            size: 1 << 40,
            links: 3,
            serial: 9,
            inline_tail: true,
            start_or_device: 77,
            xattr_bytes: 40,
        };
        assert_eq!(RawInode::decode(&inode.encode()), Some(inode));
        assert_eq!(RawInode::decode(&[0xff; INODE_BYTES]), None);
    }

    #[test]
    fn xattrs_round_trip() {
        let mut xattrs = Xattrs::new();
        for (name, value) in [
            ("user.a", "1"),
            ("security.capability", "\u{1}\0\0\u{2}"),
            ("trusted.x", ""),
            ("system.posix_acl_access", "acl"),
        ] {
            xattrs.insert(name.into(), value.into());
        }
        let bytes = encode_xattrs(&xattrs).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(decode_xattrs(&bytes).unwrap(), xattrs);
        assert!(encode_xattrs(&Xattrs::new()).unwrap().is_empty());
        for cut in 0..bytes.len() {
            let _ = decode_xattrs(&bytes[..cut]);
        }
    }

    #[test]
    fn xattr_names_and_sizes_are_bounded() {
        let check = |name: &str, good| assert_eq!(check_xattr_name(name.as_bytes()), good, "{name}");
        check("user.x", true);
        check("user.", false);
        check("system.posix_acl_access", true);
        check("system.posix_acl_access2", false);
        check("system.nfs4_acl", false);
        let long = Xattrs::from([(format!("user.{}", "x".repeat(251)).into_bytes(), vec![])]);
        assert!(matches!(encode_xattrs(&long), Err(XattrError::Name { .. })));
        let large = Xattrs::from([(b"user.x".to_vec(), vec![0; 65_536])]);
        assert!(matches!(encode_xattrs(&large), Err(XattrError::Size { .. })));
    }

    #[test]
    fn superblocks_round_trip() {
        let superblock = Superblock {
            root: 36,
            inodes: 5,
            blocks: 9,
        };
        let mut block = [0; BLOCK];
        superblock.encode(&mut block);
        assert_eq!(Superblock::decode(&block), Some(superblock));
        block[2000] ^= 1;
        assert_eq!(Superblock::decode(&block), None);
    }

    #[test]
    fn crc32c_is_the_castagnoli_one() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn device_numbers_round_trip() {
        let check = |major, minor, expected: Option<u32>| {
            assert_eq!(device_number(major, minor), expected);
            assert!(expected.is_none_or(|number| device_numbers(number) == (major, minor)));
        };
        check(1, 3, Some(0x103));
        check(259, 0x12345, Some(0x1231_0345));
        check(4096, 0, None);
        check(0, 1 << 20, None);
    }
}
