//! Layers converted and looked at through the reader, and by fsck.erofs.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use super::lower::Found;
use super::*;
use crate::erofs::{FileType, Reader};
use rvm_tar as tar;

mod damage;

/// Entries of a layer, written by the `tar` crate.
pub(super) struct Layer(::tar::Builder<Vec<u8>>);

impl Layer {
    pub(super) fn new() -> Self {
        Self(::tar::Builder::new(Vec::new()))
    }

    fn header(kind: ::tar::EntryType, mode: u32, size: usize) -> ::tar::Header {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(u64::try_from(size).unwrap());
        header
    }

    /// Any name, even those that the `tar` crate would refuse to write.
    fn append(mut self, mut header: ::tar::Header, path: &str, data: &[u8]) -> Self {
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(super) fn file(self, path: &str, data: &[u8]) -> Self {
        self.append(
            Self::header(::tar::EntryType::Regular, 0o644, data.len()),
            path,
            data,
        )
    }

    pub(super) fn directory(self, path: &str, mode: u32) -> Self {
        self.append(Self::header(::tar::EntryType::Directory, mode, 0), path, &[])
    }

    pub(super) fn symlink(self, path: &str, target: &str) -> Self {
        let mut header = Self::header(::tar::EntryType::Symlink, 0o777, 0);
        header.set_link_name_literal(target).unwrap();
        self.append(header, path, &[])
    }

    pub(super) fn link(self, path: &str, target: &str) -> Self {
        let mut header = Self::header(::tar::EntryType::Link, 0o644, 0);
        header.set_link_name_literal(target).unwrap();
        self.append(header, path, &[])
    }

    pub(super) fn device(self, path: &str, kind: ::tar::EntryType, major: u32, minor: u32) -> Self {
        let mut header = Self::header(kind, 0o600, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.append(header, path, &[])
    }

    pub(super) fn xattr(mut self, key: &str, value: &[u8]) -> Self {
        self.0
            .append_pax_extensions([(format!("SCHILY.xattr.{key}").as_str(), value)])
            .unwrap();
        self
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// One converted layer: its image, checked by fsck.erofs, and whether it stands alone.
fn convert_on(stream: &[u8], lower: &Lower) -> Result<(tempfile::NamedTempFile, bool), Error> {
    let image = tempfile::NamedTempFile::new().unwrap();
    let mut reader = tar::Reader::new(tar::Forward(stream));
    let unfinished = read_layer(&mut reader, image.reopen().unwrap())?;
    let alone = unfinished.stands_alone();
    unfinished.finish(lower)?.flush().unwrap();
    let check = std::process::Command::new("fsck.erofs")
        .arg(image.path())
        .output()
        .expect("erofs-utils is needed");
    assert!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stderr)
    );
    Ok((image, alone))
}

/// Converts a stack of layers, lowest first.
pub(super) fn stack(layers: Vec<Layer>) -> Result<Lower, Error> {
    let mut images: Vec<tempfile::NamedTempFile> = Vec::new();
    let open = |images: &[tempfile::NamedTempFile]| {
        Lower::new(
            images
                .iter()
                .map(|image| Arc::new(Reader::new(image.reopen().unwrap()).unwrap()))
                .collect(),
        )
    };
    for layer in layers {
        let (image, _) = convert_on(&layer.bytes(), &open(&images))?;
        images.push(image);
    }
    Ok(open(&images))
}

/// Everything in the merged tree: path, and kind with what matters of it.
fn listing(lower: &Lower) -> BTreeMap<String, String> {
    let mut listing = BTreeMap::new();
    let mut queue = vec![(Vec::<Vec<u8>>::new(), lower.root().unwrap())];
    while let Some((path, merged)) = queue.pop() {
        let names = lower.list(&merged).unwrap();
        for name in names {
            let child = [path.as_slice(), std::slice::from_ref(&name)].concat();
            let text = String::from_utf8_lossy(&child.join(&b'/')).into_owned();
            match lower.child(&merged, &name).unwrap() {
                Found::Missing => {}
                Found::Directory(next) => {
                    let metadata = lower.metadata(&next).unwrap().unwrap();
                    listing.insert(format!("{text}/"), format!("{:o}", metadata.mode));
                    queue.push((child, next));
                }
                Found::Other { layer, inode } => {
                    let reader = lower.reader(layer).unwrap();
                    let described = match inode.kind {
                        FileType::Symlink => {
                            format!("-> {}", String::from_utf8_lossy(&reader.symlink(&inode).unwrap()))
                        }
                        FileType::File => {
                            let mut data = vec![0; usize::try_from(inode.size()).unwrap()];
                            reader.read(&inode, 0, &mut data).unwrap();
                            let shown = String::from_utf8_lossy(&data[..data.len().min(20)]).into_owned();
                            format!("{shown} x{}", inode.links())
                        }
                        kind => format!("{kind:?} {:?}", inode.device_numbers()),
                    };
                    listing.insert(text, described);
                }
            }
        }
    }
    listing
}

fn check(layers: Vec<Layer>, expected: &[(&str, &str)]) {
    let found = listing(&stack(layers).unwrap());
    let expected: BTreeMap<String, String> = expected
        .iter()
        .map(|(path, what)| ((*path).to_owned(), (*what).to_owned()))
        .collect();
    assert_eq!(found, expected);
}

fn refused(layers: Vec<Layer>, expected: &str) {
    let error = stack(layers).unwrap_err();
    let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    let text = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    assert!(text.contains(expected), "{text:?} should contain {expected:?}");
}

#[test]
fn one_layer() {
    let big = vec![b'b'; 10_000];
    check(
        vec![
            Layer::new()
                .directory("./", 0o755)
                .directory("./d/", 0o1777)
                .file("./d/small", b"hello")
                .file("./d/empty", b"")
                .file("./d/block", &[b'x'; 4096])
                .file("./d/big", &big)
                .link("./hard", "./d/small")
                .symlink("./soft", "d/small")
                .device("./null", ::tar::EntryType::Char, 1, 3)
                .device("./disk", ::tar::EntryType::Block, 259, 70_000)
                .device("./pipe", ::tar::EntryType::Fifo, 0, 0),
        ],
        &[
            ("d/", "1777"),
            ("d/small", "hello x2"),
            ("d/empty", " x1"),
            ("d/block", "xxxxxxxxxxxxxxxxxxxx x1"),
            ("d/big", "bbbbbbbbbbbbbbbbbbbb x1"),
            ("hard", "hello x2"),
            ("soft", "-> d/small"),
            ("null", "CharacterDevice (1, 3)"),
            ("disk", "BlockDevice (259, 70000)"),
            ("pipe", "Fifo (0, 0)"),
        ],
    );
}

#[test]
fn later_entries_of_a_layer_replace_earlier_ones() {
    check(
        vec![
            Layer::new()
                .file("a", b"old")
                .link("b", "a")
                .file("a", b"new")
                .file("d/x", b"x")
                .directory("d", 0o700)
                .file("gone/x", b"")
                .file("gone", b"file now"),
        ],
        &[
            ("a", "new x1"),
            ("b", "old x1"),
            ("d/", "700"),
            ("d/x", "x x1"),
            ("gone", "file now x1"),
        ],
    );
}

#[test]
fn whiteouts_speak_of_lower_layers_only() {
    let base = || {
        Layer::new()
            .directory("d", 0o755)
            .file("d/a", b"1")
            .file("d/b", b"1")
            .file("d/s/x", b"1")
    };
    check(
        vec![base(), Layer::new().file("d/.wh.a", b"")],
        &[("d/", "755"), ("d/b", "1 x1"), ("d/s/", "755"), ("d/s/x", "1 x1")],
    );
    // Before and after an entry of the same name.
    check(
        vec![
            base(),
            Layer::new()
                .file("d/a", b"2")
                .file("d/.wh.a", b"")
                .file("d/.wh.b", b"")
                .file("d/b", b"2"),
        ],
        &[
            ("d/", "755"),
            ("d/a", "2 x1"),
            ("d/b", "2 x1"),
            ("d/s/", "755"),
            ("d/s/x", "1 x1"),
        ],
    );
    // A directory that is removed and made anew is empty.
    let expected = [
        ("d/", "755"),
        ("d/a", "1 x1"),
        ("d/b", "1 x1"),
        ("d/s/", "711"),
        ("d/s/y", "2 x1"),
    ];
    check(
        vec![
            base(),
            Layer::new()
                .file("d/.wh.s", b"")
                .directory("d/s", 0o711)
                .file("d/s/y", b"2"),
        ],
        &expected,
    );
    check(
        vec![
            base(),
            Layer::new()
                .directory("d/s", 0o711)
                .file("d/s/y", b"2")
                .file("d/.wh.s", b""),
        ],
        &expected,
    );
    check(
        vec![
            base(),
            Layer::new()
                .directory("d/s", 0o711)
                .file("d/s/y", b"2")
                .file("d/s/.wh..wh..opq", b""),
        ],
        &expected,
    );
}

#[test]
fn whiteouts_of_nothing_leave_no_trace() {
    let lower = stack(vec![
        Layer::new().directory("d", 0o755),
        Layer::new()
            .file("d/.wh.a", b"")
            .file("e/f/.wh.g", b"")
            .file("e/.wh..wh..opq", b"")
            .file(".wh.h", b""),
    ]);
    let lower = lower.unwrap();
    assert_eq!(
        listing(&lower),
        BTreeMap::from([("d/".to_owned(), "755".to_owned())])
    );
    let names = lower.names(1, |_| true).unwrap();
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn an_opaque_root_hides_everything_below() {
    let base = Layer::new()
        .directory("d", 0o755)
        .file("d/a", b"1")
        .file("f", b"1");
    let layer = Layer::new()
        .directory("d", 0o711)
        .file("new", b"2")
        .file(".wh..wh..opq", b"");
    check(vec![base, layer], &[("d/", "711"), ("new", "2 x1")]);
}

#[test]
fn implied_directories_keep_what_they_have_below() {
    check(
        vec![
            Layer::new()
                .directory("a", 0o700)
                .directory("a/b", 0o1777)
                .file("f", b"file"),
            Layer::new()
                .file("a/b/c/new", b"n")
                .file("x/y", b"n")
                .file("f/z", b"n"),
            Layer::new().file("a/b/c/newer", b"n"),
        ],
        &[
            ("a/", "700"),
            ("a/b/", "1777"),
            ("a/b/c/", "755"),
            ("a/b/c/new", "n x1"),
            ("a/b/c/newer", "n x1"),
            ("x/", "755"),
            ("x/y", "n x1"),
            ("f/", "755"),
            ("f/z", "n x1"),
        ],
    );
}

#[test]
fn a_directory_removed_below_does_not_shine_through() {
    check(
        vec![
            Layer::new().directory("d", 0o700).file("d/a", b"1"),
            Layer::new().file(".wh.d", b""),
            Layer::new().file("d/b", b"3"),
        ],
        &[("d/", "755"), ("d/b", "3 x1")],
    );
    check(
        vec![
            Layer::new().directory("d", 0o700).file("d/a", b"1"),
            Layer::new().file("d", b"file"),
            Layer::new().directory("d", 0o711),
        ],
        &[("d/", "711")],
    );
    // Within one layer too: the file was there for a moment.
    check(
        vec![
            Layer::new().directory("d", 0o700).file("d/a", b"1"),
            Layer::new().file("d", b"file").directory("d", 0o711),
        ],
        &[("d/", "711")],
    );
}

#[test]
fn lower_symbolic_links_are_followed_within_the_root() {
    let base = || {
        Layer::new()
            .directory("usr", 0o755)
            .directory("usr/bin", 0o711)
            .file("usr/bin/old", b"1")
            .symlink("bin", "usr/bin")
            .symlink("up", "/../../bin")
            .symlink("dangling", "not/there")
            .symlink("loop", "loop")
    };
    let links: [(&str, &str); 4] = [
        ("bin", "-> usr/bin"),
        ("up", "-> /../../bin"),
        ("dangling", "-> not/there"),
        ("loop", "-> loop"),
    ];
    let layer = Layer::new()
        .file("bin/new", b"2")
        .file("up/s/deep", b"2")
        .file("dangling/x", b"2");
    let mut expected = vec![
        ("usr/", "755"),
        ("usr/bin/", "711"),
        ("usr/bin/new", "2 x1"),
        ("usr/bin/s/", "755"),
        ("usr/bin/s/deep", "2 x1"),
        ("not/", "755"),
        ("not/there/", "755"),
        ("not/there/x", "2 x1"),
    ];
    expected.extend(links);
    check(vec![base(), layer.file("bin/.wh.old", b"")], &expected);
    // An entry for the directory itself replaces the link.
    check(
        vec![
            Layer::new().symlink("bin", "b").directory("b", 0o755),
            Layer::new().directory("bin", 0o700),
        ],
        &[("b/", "755"), ("bin/", "700")],
    );
    refused(
        vec![base(), Layer::new().file("loop/x", b"")],
        "too many symbolic links",
    );
    refused(
        vec![base(), Layer::new().file("bin/x", b"").file("usr/bin/x", b"")],
        "the same file",
    );
}

#[test]
fn hard_links_reach_into_lower_layers() {
    let base = || {
        Layer::new()
            .file("d/a", b"data")
            .link("d/b", "d/a")
            .file("c", b"c")
            .symlink("s", "d")
    };
    check(
        vec![
            base(),
            Layer::new()
                .link("new", "d/a")
                .link("newer", "s/b")
                .link("e/c", "c"),
        ],
        &[
            ("d/", "755"),
            ("d/a", "data x4"),
            ("d/b", "data x4"),
            ("new", "data x4"),
            ("newer", "data x4"),
            ("c", "c x2"),
            ("e/", "755"),
            ("e/c", "c x2"),
            ("s", "-> d"),
        ],
    );
    // Names that this layer removes or replaces do not come back.
    check(
        vec![
            base(),
            Layer::new()
                .link("new", "d/a")
                .file("d/.wh.a", b"")
                .file("d/b", b"other"),
        ],
        &[
            ("d/", "755"),
            ("d/b", "other x1"),
            ("new", "data x1"),
            ("c", "c x1"),
            ("s", "-> d"),
        ],
    );
    // A target that is replaced after the link was made: the link keeps the old content.
    check(
        vec![
            Layer::new().file("a", b"1"),
            Layer::new().link("b", "a").file("a", b"2"),
        ],
        &[("a", "2 x1"), ("b", "1 x1")],
    );
    refused(vec![base(), Layer::new().link("x", "nowhere")], "leads nowhere");
    refused(
        vec![base(), Layer::new().link("x", "d")],
        "hard link to a directory",
    );
    refused(vec![Layer::new().link("x", "y").file("y", b"")], "leads nowhere");
}

#[test]
fn entries_that_could_escape_are_refused() {
    let one = |layer: Layer, expected: &str| refused(vec![layer], expected);
    one(Layer::new().file("../x", b""), "contains a .. component");
    one(Layer::new().file("a/../../x", b""), "contains a .. component");
    one(Layer::new().file("/etc/x", b""), "it is absolute");
    one(Layer::new().link("x", "/etc/passwd"), "it is absolute");
    one(Layer::new().link("x", "../etc/passwd"), "contains a .. component");
    one(
        Layer::new().symlink("l", "/etc").file("l/x", b""),
        "beneath \"l\", which is a symbolic link",
    );
    one(
        Layer::new().symlink("l", "/etc").link("x", "l/passwd"),
        "beneath \"l\", which is a symbolic link",
    );
    one(Layer::new().file("f", b"").file("f/x", b""), "not a directory");
    one(Layer::new().file("./", b""), "replace the root");
    one(Layer::new().link("x", "x"), "link to itself");
    one(Layer::new().file("d/.wh.", b""), "whiteout of no name");
    one(Layer::new().file("d/.wh...", b""), "whiteout of no name");
    one(
        Layer::new().device("w", ::tar::EntryType::Char, 0, 0),
        "device 0:0",
    );
    one(
        Layer::new().device("w", ::tar::EntryType::Char, 4096, 0),
        "no device number",
    );
    one(Layer::new().symlink("l", ""), "not between 1 and");
}

#[test]
fn attributes_are_kept_except_those_that_steer() {
    let mut all = BTreeMap::new();
    for (key, value) in [
        ("security.capability", b"\x01\0\0\x02\0\x04\0\0".as_slice()),
        ("user.note", b""),
        ("trusted.overlay.opaque", b"y"),
        ("trusted.overlay.redirect", b"/etc"),
        ("user.overlay.whiteout", b"y"),
        ("security.selinux", b"system_u"),
        ("system.nfs4_acl", b"x"),
    ] {
        all.insert(format!("SCHILY.xattr.{key}"), value);
    }
    let mut layer = Layer::new();
    layer
        .0
        .append_pax_extensions(all.iter().map(|(key, value)| (key.as_str(), *value)))
        .unwrap();
    let lower = stack(vec![layer.directory("d", 0o755).file("d/x", b"")]).unwrap();
    let Found::Directory(found) = lower.lookup(&["d"]).unwrap() else {
        panic!("no directory")
    };
    let metadata = lower.metadata(&found).unwrap().unwrap();
    let names: Vec<_> = metadata
        .xattrs
        .keys()
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    assert_eq!(names, ["security.capability", "user.note"]);
    assert_eq!(metadata.mtime.seconds, 1_600_000_000);
}

#[test]
fn directories_of_any_size() {
    let mut layer = Layer::new();
    let names: Vec<String> = (0..3000)
        .map(|number| format!("d/{number}-{}", "x".repeat(number % 90)))
        .collect();
    for name in &names {
        layer = layer.file(name, name.as_bytes());
    }
    let lower = stack(vec![
        layer.file("!before-dot", b"").file("-x", b"").file("\n", b""),
    ])
    .unwrap();
    for name in &names {
        let parts: Vec<&str> = name.split('/').collect();
        let Found::Other { layer, inode } = lower.lookup(&parts).unwrap() else {
            panic!("{name} is missing")
        };
        let mut data = vec![0; name.len()];
        lower.reader(layer).unwrap().read(&inode, 0, &mut data).unwrap();
        assert_eq!(data, name.as_bytes());
    }
    assert!(matches!(lower.lookup(&["d", "nothing"]).unwrap(), Found::Missing));
    assert!(matches!(
        lower.lookup(&["!before-dot"]).unwrap(),
        Found::Other { .. }
    ));
}

#[test]
fn which_layers_stand_alone() {
    let check = |layer: Layer, expected| {
        let (_, alone) = convert_on(&layer.bytes(), &Lower::default()).unwrap();
        assert_eq!(alone, expected);
    };
    check(Layer::new().directory("d", 0o755).file("d/x", b""), true);
    check(Layer::new().file("x", b""), true);
    check(
        Layer::new().directory("d", 0o755).file("d/.wh..wh..opq", b""),
        true,
    );
    check(Layer::new().file("d/x", b""), false);
    check(Layer::new().file("d/x", b"").directory("d", 0o755), true);
    check(Layer::new().file(".wh.x", b""), false);
}

#[test]
fn the_same_stream_gives_the_same_image() {
    let stream = Layer::new().file("d/x", b"hello").symlink("l", "d").bytes();
    let image = || std::fs::read(convert_on(&stream, &Lower::default()).unwrap().0.path()).unwrap();
    assert_eq!(image(), image());
}
