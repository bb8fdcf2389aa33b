//! Writing tar: ustar headers, with PAX records for whatever they have no place for.

use std::io::{self, Write};

use tar::{EntryType, Header};

/// Tar's unit of everything.
const BLOCK: usize = 512;

/// Bytes of a name in a header.
const NAME_BYTES: usize = 100;

/// What an entry says of a file besides its content.
#[derive(Debug, Clone, Default)]
pub(super) struct Meta {
    /// Permission bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(super) mtime: (i64, u32),
    /// Major and minor number of a device.
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar stream.
pub(super) struct Writer<W> {
    output: W,
    /// Bytes of content of the last entry.
    written: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(output: W) -> Self {
        Self { output, written: 0 }
    }

    /// Writes an entry's header. `size` bytes of content follow by [`Writer::content`], then [`Writer::pad`].
    pub(super) fn entry(
        &mut self,
        kind: EntryType,
        (path, link): (&[u8], &[u8]),
        meta: &Meta,
        size: u64,
    ) -> io::Result<()> {
        self.entry_with(kind, (path, link), meta, size, Vec::new())
    }

    /// Writes the header of a sparse file in the form that GNU tar calls 1.0: the list of its extents, `(start, length)`,
    /// and then their content.
    pub(super) fn sparse(
        &mut self,
        path: &[u8],
        meta: &Meta,
        size: u64,
        extents: &[(u64, u64)],
    ) -> io::Result<()> {
        let mut map = format!("{}\n", extents.len());
        for (start, length) in extents {
            map.push_str(&format!("{start}\n{length}\n"));
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        let content: u64 = extents.iter().map(|(_, length)| length).sum();
        let map_bytes = u64::try_from(map.len()).unwrap_or(u64::MAX);
        let mut records = Vec::new();
        for (key, value) in [
            ("GNU.sparse.major", b"1".as_slice()),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", path),
            ("GNU.sparse.realsize", size.to_string().as_bytes()),
        ] {
            records.extend(record(key.as_bytes(), value));
        }
        // Who does not know the records sees a file with another name.
        let length = map_bytes.saturating_add(content);
        self.entry_with(
            EntryType::Regular,
            (b"GNUSparseFile.0/file", b""),
            meta,
            length,
            records,
        )?;
        self.content(&map)
    }

    fn entry_with(
        &mut self,
        kind: EntryType,
        (path, link): (&[u8], &[u8]),
        meta: &Meta,
        size: u64,
        mut records: Vec<u8>,
    ) -> io::Result<()> {
        let (seconds, nanoseconds) = meta.mtime;
        if path.len() > NAME_BYTES {
            records.extend(record(b"path", path));
        }
        if link.len() > NAME_BYTES {
            records.extend(record(b"linkpath", link));
        }
        if nanoseconds != 0 || seconds < 0 {
            records.extend(record(b"mtime", decimal(seconds, nanoseconds).as_bytes()));
        }
        for (name, value) in &meta.xattrs {
            records.extend(record(&[b"SCHILY.xattr.", name.as_slice()].concat(), value));
        }
        if !records.is_empty() {
            let bytes = u64::try_from(records.len()).unwrap_or(u64::MAX);
            let extended = header(
                EntryType::XHeader,
                (b"PaxHeaders/entry", b""),
                &Meta::default(),
                bytes,
            )?;
            self.output.write_all(extended.as_bytes())?;
            self.content(&records)?;
            self.pad()?;
        }
        self.output
            .write_all(header(kind, (path, link), meta, size)?.as_bytes())
    }

    pub(super) fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.output.write_all(bytes)
    }

    /// Fills the last block of an entry's content.
    pub(super) fn pad(&mut self) -> io::Result<()> {
        let used = usize::try_from(self.written % 512).unwrap_or(0);
        self.written = 0;
        if used == 0 {
            return Ok(());
        }
        self.output.write_all(&[0; BLOCK][used..])
    }

    /// Writes the end mark.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.flush()
    }
}

fn header(kind: EntryType, (path, link): (&[u8], &[u8]), meta: &Meta, size: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    // What is too long has a record of its own, and is cut here.
    let cut = |name: &[u8]| name.get(..NAME_BYTES).unwrap_or(name).to_vec();
    let name = cut(path);
    header.as_old_mut().name[..name.len()].copy_from_slice(&name);
    header.set_link_name_literal(cut(link))?;
    header.set_entry_type(kind);
    header.set_mode(meta.mode);
    header.set_uid(meta.uid.into());
    header.set_gid(meta.gid.into());
    header.set_mtime(u64::try_from(meta.mtime.0).unwrap_or(0));
    header.set_size(size);
    if matches!(kind, EntryType::Char | EntryType::Block) {
        header.set_device_major(meta.device.0)?;
        header.set_device_minor(meta.device.1)?;
    }
    header.set_cksum();
    Ok(header)
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// Seconds with nanoseconds; the latter always count upwards.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    if seconds < 0 && nanoseconds > 0 {
        return format!(
            "-{}.{:09}",
            (seconds + 1).unsigned_abs(),
            1_000_000_000 - nanoseconds
        );
    }
    format!("{seconds}.{nanoseconds:09}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_themselves() {
        assert_eq!(record(b"a", b"b"), b"6 a=b\n");
        assert_eq!(record(b"path", &[b'x'; 89]).len(), 98);
        for length in 80..110 {
            let record = record(b"k", &vec![b'v'; length]);
            let text = String::from_utf8(record.clone()).unwrap();
            let (number, _) = text.split_once(' ').unwrap();
            assert_eq!(number.parse::<usize>().unwrap(), record.len());
        }
    }

    #[test]
    fn times_before_1970_are_written() {
        assert_eq!(decimal(1, 5), "1.000000005");
        assert_eq!(decimal(-1, 500_000_000), "-0.500000000");
        assert_eq!(decimal(-2, 0), "-2.000000000");
    }

    #[test]
    fn another_reader_reads_it() {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        let long = [b'l'; 150];
        let meta = Meta {
            mode: 0o4755,
            uid: 5_000_000,
            mtime: (7, 5),
            xattrs: vec![(b"user.a".to_vec(), b"x=y".to_vec())],
            ..Meta::default()
        };
        writer.entry(EntryType::Regular, (&long, b""), &meta, 3).unwrap();
        writer.content(b"abc").unwrap();
        writer.pad().unwrap();
        writer
            .sparse(b"holes", &Meta::default(), 1 << 20, &[(4096, 2), (1 << 20, 0)])
            .unwrap();
        writer.content(b"hi").unwrap();
        writer.pad().unwrap();
        writer.finish().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut entries = archive.entries().unwrap();
        let mut first = entries.next().unwrap().unwrap();
        assert_eq!(&*first.path_bytes(), long);
        assert_eq!(first.header().uid().unwrap(), 5_000_000);
        let records: Vec<_> = first
            .pax_extensions()
            .unwrap()
            .unwrap()
            .map(|extension| extension.unwrap().value_bytes().to_vec())
            .collect();
        assert!(records.contains(&b"x=y".to_vec()) && records.contains(&b"7.000000005".to_vec()));
        assert_eq!(entries.next().unwrap().unwrap().size(), 512 + 2);
    }
}
