//! What a container can send that lies, and what it is for. As any user: owners and devices need root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use tar::{EntryType, Header};

use super::*;

/// A tar: kind, name, link or content.
fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, name, content) in entries {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(if *kind == EntryType::Directory {
            0o750
        } else {
            0o640
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(7);
        let is_file = *kind == EntryType::Regular;
        header.set_size(if is_file { content.len() as u64 } else { 0 });
        if !is_file {
            header.set_link_name_literal(content).unwrap();
        }
        header.set_cksum();
        bytes.extend(header.as_bytes());
        if is_file {
            bytes.extend(content.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
    }
    bytes.extend([0; 1024]);
    bytes
}

const DIRECTORY: EntryType = EntryType::Directory;
const FILE: EntryType = EntryType::Regular;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

struct Place {
    top: tempfile::TempDir,
}

impl Place {
    /// A directory `to` with something in it, beside one that nobody may write to.
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        for path in ["to/kept", "outside"] {
            fs::create_dir_all(top.path().join(path)).unwrap();
        }
        fs::write(top.path().join("outside/secret"), "secret").unwrap();
        fs::write(top.path().join("to/own"), "own").unwrap();
        symlink("../outside", top.path().join("to/away")).unwrap();
        Self { top }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.top.path().join(path)
    }

    fn unpack(&self, top: Option<(&str, &str)>, bytes: &[u8]) -> Result<(), String> {
        let unpack = Unpack {
            owners: false,
            place: UnpackPlace::Machine,
            top: top.map(|(top, instead)| (top.into(), instead.into())),
        };
        let directory = fs::File::open(self.path("to")).unwrap();
        let outcome = unpack.unpack(&directory, &mut &*bytes);
        let outside: Vec<_> = fs::read_dir(self.path("outside")).unwrap().collect();
        assert_eq!(outside.len(), 1);
        assert_eq!(fs::read(self.path("outside/secret")).unwrap(), b"secret");
        assert_eq!(fs::read_dir(self.top.path()).unwrap().count(), 2);
        outcome.map_err(|error| error.to_string())
    }
}

#[test]
fn files_arrive_with_modes_and_times() {
    let place = Place::new();
    let bytes = archive(&[
        (DIRECTORY, "d/", ""),
        (FILE, "d/f", "content"),
        (HARD, "d/again", "d/f"),
        (LINK, "d/l", "../../outside/secret"),
        (EntryType::Fifo, "d/p", ""),
        (FILE, "d/deep/without/parents", "x"),
    ]);
    place.unpack(Some(("d", "e")), &bytes).unwrap();
    // Once more, over what is there.
    place.unpack(Some(("d", "e")), &bytes).unwrap();
    let file = fs::metadata(place.path("to/e/f")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.mtime(), file.nlink()), (0o640, 7, 2));
    let directory = fs::metadata(place.path("to/e")).unwrap();
    assert_eq!(
        (directory.permissions().mode() & 0o7777, directory.mtime()),
        (0o750, 7)
    );
    let link = fs::read_link(place.path("to/e/l")).unwrap();
    assert_eq!(link, Path::new("../../outside/secret"));
}

#[test]
fn nobody_gets_the_rights_of_who_copies() {
    let entry = |kind, mode, xattrs: &[(&str, &str)]| {
        let mut bytes = archive(&[(kind, "x", "")]);
        let mut header = Header::from_byte_slice(&bytes[..512]).clone();
        header.set_mode(mode);
        // The owner is whoever runs this.
        header.set_uid(rustix::process::getuid().as_raw().into());
        header.set_gid(rustix::process::getgid().as_raw().into());
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        let mut builder = tar::Builder::new(Vec::new());
        let records = xattrs.iter().map(|(name, value)| (*name, value.as_bytes()));
        builder.append_pax_extensions(records).unwrap();
        let mut extended = builder.get_ref().clone();
        extended.extend(bytes);
        extended
    };
    let cases = [
        (FILE, UnpackPlace::Machine, false, 0o7755, 0o755),
        (FILE, UnpackPlace::Machine, true, 0o7755, 0o7755),
        (FILE, UnpackPlace::Container, false, 0o7755, 0o7755),
        (FILE, UnpackPlace::Machine, false, 0o666, 0o666),
        (EntryType::Fifo, UnpackPlace::Machine, false, 0o7700, 0o700),
        (DIRECTORY, UnpackPlace::Machine, false, 0o7777, 0o1777),
        (DIRECTORY, UnpackPlace::Container, false, 0o7777, 0o7777),
    ];
    for (kind, place, owners, mode, expected) in cases {
        let top = Place::new();
        let directory = fs::File::open(top.path("to")).unwrap();
        let bytes = entry(kind, mode, &[]);
        let unpack = Unpack {
            owners,
            place,
            top: None,
        };
        unpack.unpack(&directory, &mut &*bytes).unwrap();
        let made = fs::metadata(top.path("to/x")).unwrap().mode() & 0o7777;
        assert_eq!(made, expected, "{kind:?} {place:?} {owners}: {made:o}");
    }
    // One that the kernel refuses: it is not even tried.
    let place = Place::new();
    let bytes = entry(
        FILE,
        0o755,
        &[("SCHILY.xattr.security.capability", "no capability")],
    );
    place.unpack(None, &bytes).unwrap();
}

/// What stands for the top, what comes, and what is said of it.
type Case<'a> = (
    Option<(&'a str, &'a str)>,
    &'a [(EntryType, &'a str, &'a str)],
    Result<(), &'a str>,
);

#[test]
fn liars_do_not_get_out() {
    let outside = Err("does not belong");
    let blocked = Err("cannot make");
    let cases: [Case<'_>; 14] = [
        (None, &[(FILE, "../outside/x", "")], outside),
        (None, &[(FILE, "a/../../outside/x", "")], outside),
        (None, &[(FILE, "away/x", "")], blocked),
        (
            None,
            &[(DIRECTORY, "away/", ""), (FILE, "away/x", "")],
            Err("cannot overwrite non-directory"),
        ),
        (None, &[(LINK, "l", "../outside"), (FILE, "l/x", "")], blocked),
        (None, &[(LINK, "l", "/"), (FILE, "l/tmp/x", "")], blocked),
        // A link is replaced, not written through.
        (None, &[(LINK, "l", "../outside/secret"), (FILE, "l", "")], Ok(())),
        (
            None,
            &[(HARD, "h", "../outside/secret"), (FILE, "h", "changed")],
            outside,
        ),
        (
            None,
            &[(HARD, "h", "away/secret"), (FILE, "h", "changed")],
            blocked,
        ),
        // A file that was there before.
        (None, &[(HARD, "h", "own")], Err("links to \"own\"")),
        // What was not asked for is left alone.
        (Some(("a", "b")), &[(FILE, "own", "changed")], outside),
        (Some(("a", "b")), &[(HARD, "a", "own")], outside),
        (
            Some(("a", "own")),
            &[(DIRECTORY, "a", "")],
            Err("cannot overwrite non-directory \"own\" with directory"),
        ),
        (
            Some(("a", "kept")),
            &[(FILE, "a", "")],
            Err("cannot overwrite directory \"kept\" with non-directory"),
        ),
    ];
    for (top, entries, expected) in cases {
        let place = Place::new();
        let outcome = place.unpack(top, &archive(entries));
        match (&outcome, expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{entries:?}: {error}"),
            _ => panic!("{entries:?}: {outcome:?}"),
        }
        assert_eq!(fs::read(place.path("to/own")).unwrap(), b"own");
    }
    let place = Place::new();
    let device = archive(&[(EntryType::Block, "sda", "")]);
    assert!(place.unpack(None, &device).unwrap_err().contains("is a device"));
}

#[test]
fn an_absolute_name_is_a_relative_one() {
    let place = Place::new();
    place.unpack(None, &archive(&[(FILE, "/./x//y", "1")])).unwrap();
    place
        .unpack(
            Some((".", "new")),
            &archive(&[(DIRECTORY, "./", ""), (FILE, "./z", "2")]),
        )
        .unwrap();
    assert_eq!(fs::read(place.path("to/x/y")).unwrap(), b"1");
    assert_eq!(fs::read(place.path("to/new/z")).unwrap(), b"2");
}

#[test]
fn what_is_not_whole_is_an_error() {
    let bytes = archive(&[(FILE, "f", "some content")]);
    for length in [100, 512, 520, 1000] {
        let place = Place::new();
        let error = place.unpack(None, &bytes[..length]).unwrap_err();
        assert!(error.contains("damaged"), "{length}: {error}");
    }
    /// Fails where the end would be.
    struct Broken<'a>(&'a [u8]);
    impl Read for Broken<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::Error::other("cut")),
                count => Ok(count),
            }
        }
    }
    let place = Place::new();
    let unpack = Unpack {
        owners: false,
        place: UnpackPlace::Machine,
        top: None,
    };
    let directory = fs::File::open(place.path("to")).unwrap();
    let outcome = unpack.unpack(&directory, &mut Broken(&bytes));
    assert!(matches!(outcome, Err(UnpackError::Rest(_))), "{outcome:?}");
}
