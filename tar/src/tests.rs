//! Streams by the `tar` crate, and those that it would not write.

use super::*;

type Bytes = Vec<u8>;

/// A header block with a right checksum, for what the `tar` crate would not write.
pub(super) fn raw_header(name: &[u8], type_flag: u8, size: &[u8], patch: impl Fn(&mut [u8; BLOCK])) -> Bytes {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..124 + size.len()].copy_from_slice(size);
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = type_flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    patch(&mut block);
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.to_vec()
}

fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Bytes)>, Error> {
    let mut reader = Reader::new(Forward(bytes));
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        let mut buffer = [0; 100];
        loop {
            let count = reader.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            data.extend_from_slice(&buffer[..count]);
        }
        found.push((entry, data));
    }
    Ok(found)
}

fn padded(mut data: Bytes) -> Bytes {
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    data
}

fn pax(records: &[(&str, &[u8])]) -> Bytes {
    let mut body = Vec::new();
    for (key, value) in records {
        let tail = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let length = (1..)
            .find(|length: &usize| length.to_string().len() + tail.len() == *length)
            .unwrap();
        body.extend_from_slice(length.to_string().as_bytes());
        body.extend_from_slice(&tail);
    }
    let size = format!("{:011o}\0", body.len());
    [raw_header(b"pax", b'x', size.as_bytes(), |_| {}), padded(body)].concat()
}

#[test]
fn the_tar_crate_and_this_reader_agree() {
    let mut builder = tar::Builder::new(Vec::new());
    let long = "d/".repeat(120) + "file";
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o4755);
    header.set_uid(3_000_000_000);
    header.set_gid(7);
    header.set_mtime(1_700_000_000);
    header.set_size(5);
    builder
        .append_data(&mut header, &long, b"hello".as_slice())
        .unwrap();
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Symlink);
    builder.append_link(&mut header, "link", "x".repeat(150)).unwrap();
    let found = entries(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(found[0].0.path, long.as_bytes());
    assert_eq!(
        (found[0].0.mode, found[0].0.uid, found[0].0.gid),
        (0o4755, 3_000_000_000, 7)
    );
    assert_eq!(found[0].0.mtime.seconds, 1_700_000_000);
    assert_eq!(found[0].1, b"hello");
    assert_eq!((found[1].0.kind, found[1].0.link.len()), (Kind::Symlink, 150));
}

#[test]
fn pax_records_override_the_header() {
    let stream = [
        pax(&[
            ("path", b"new\xff"),
            ("size", b"3"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.user.k", b"v"),
            ("uid", b"70000"),
        ]),
        raw_header(b"old", b'0', b"00000000000\0", |_| {}),
        padded(b"abc".to_vec()),
        raw_header(b"next", b'0', b"00000000000\0", |_| {}),
    ]
    .concat();
    let found = entries(&stream).unwrap();
    assert_eq!(
        (found[0].0.path.as_slice(), found[0].1.as_slice()),
        (b"new\xff".as_slice(), b"abc".as_slice())
    );
    assert_eq!(
        found[0].0.mtime,
        Timestamp {
            seconds: -2,
            nanoseconds: 500_000_000
        }
    );
    assert_eq!((found[0].0.uid, found[0].0.xattrs.len()), (70_000, 1));
    assert_eq!(found[1].0.path, b"next");
    assert!(found[1].0.xattrs.is_empty(), "records hold for one entry");
}

#[test]
fn sparse_files_of_every_kind() {
    let expected = vec![
        Extent {
            offset: 1024,
            length: 3,
        },
        Extent {
            offset: 4096,
            length: 2,
        },
    ];
    let gnu = [
        raw_header(b"s", b'S', b"00000000005\0", |block| {
            block[257..265].copy_from_slice(b"ustar  \0");
            block[386..410].copy_from_slice(b"00000002000\x0000000000003\0");
            block[482] = 1;
            block[483..495].copy_from_slice(b"00000020000\0");
        }),
        padded([b"00000010000\x0000000000002\0".to_vec(), vec![0; 488]].concat()),
        padded(b"abcde".to_vec()),
    ]
    .concat();
    let v00 = [
        pax(&[
            ("GNU.sparse.size", b"8192"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"1024"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", b"4096"),
            ("GNU.sparse.numbytes", b"2"),
        ]),
        raw_header(b"s", b'0', b"00000000005\0", |_| {}),
        padded(b"abcde".to_vec()),
    ]
    .concat();
    let v01 = [
        pax(&[
            ("GNU.sparse.size", b"8192"),
            ("GNU.sparse.map", b"1024,3,4096,2"),
            ("GNU.sparse.name", b"s"),
        ]),
        raw_header(b"GNUSparseFile.0/s", b'0', b"00000000005\0", |_| {}),
        padded(b"abcde".to_vec()),
    ]
    .concat();
    let v10 = [
        pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"8192"),
            ("GNU.sparse.name", b"s"),
        ]),
        raw_header(b"GNUSparseFile.0/s", b'0', b"00000001005\0", |_| {}),
        padded(b"2\n1024\n3\n4096\n2\n".to_vec()),
        padded(b"abcde".to_vec()),
    ]
    .concat();
    for stream in [gnu, v00, v01, v10] {
        let stream = [stream, raw_header(b"next", b'0', b"00000000000\0", |_| {})].concat();
        let found = entries(&stream).unwrap();
        let (entry, data) = &found[0];
        assert_eq!(
            (entry.path.as_slice(), entry.size, entry.stored),
            (b"s".as_slice(), 8192, 5)
        );
        assert_eq!(
            (entry.extents.as_ref(), data.as_slice()),
            (Some(&expected), b"abcde".as_slice())
        );
        assert_eq!(found[1].0.path, b"next");
    }
}

#[test]
fn bad_streams_are_refused() {
    let check = |bytes: &[u8], expected: &str| {
        let error = entries(bytes).unwrap_err();
        let text = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let text: Vec<_> = text.map(ToString::to_string).collect();
        assert!(
            text.join(": ").contains(expected),
            "{text:?} should contain {expected:?}"
        );
    };
    check(&[b'x'; 512], "checksum");
    check(&[b'x'; 100], "in the middle of a block");
    check(
        &raw_header(b"a", b'0', b"00000001000\0", |_| {}),
        "middle of an entry's data",
    );
    check(&raw_header(b"a", b'V', b"00000000000\0", |_| {}), "type 'V'");
    check(
        &raw_header(
            b"a",
            b'0',
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            |_| {},
        ),
        "size is out of range",
    );
    check(&raw_header(b"a", b'0', b"zz", |_| {}), "size is not a number");
    check(
        &raw_header(b"a", b'x', b"77777777777\0", |_| {}),
        "extended tar header",
    );
    let lying = [
        pax(&[("size", b"18446744073709551615")]),
        raw_header(b"a", b'0', b"00000000000\0", |_| {}),
    ];
    check(&lying.concat(), "middle of an entry's data");
}

#[test]
fn an_end_mark_ends_the_archive() {
    let entry = raw_header(b"a", b'0', b"00000000000\0", |_| {});
    assert_eq!(entries(&entry).unwrap().len(), 1);
    assert_eq!(entries(&[entry.clone(), vec![0; 512]].concat()).unwrap().len(), 1);
    assert_eq!(
        entries(&[entry.clone(), vec![0; 1024], entry].concat())
            .unwrap()
            .len(),
        1
    );
    assert!(entries(&[]).unwrap().is_empty());
}
