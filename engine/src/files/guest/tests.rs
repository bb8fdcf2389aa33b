//! What a guest can send that lies: through a supervisor's socket, as it would come.

use std::io::{Cursor, Write as _};
use std::thread::{self, JoinHandle};

use rvm_images::{NewImage, Source};
use rvm_protocol::{read_frame, write_frame};

use super::*;
use crate::control::{Event, Hello, Request, SOCKET, VERSION};
use crate::files::Commit;
use crate::record::{self, ImageReference, Isolation, State};
use crate::restart::Restarts;
use crate::supervisor::ClientStreams;
use crate::{Layout, socket};

/// A container that somebody owns, with a supervisor who gives out a connection on which `sent` comes.
struct Fixture {
    _directory: tempfile::TempDir,
    engine: Engine,
    _owned: Owned,
    supervisor: JoinHandle<()>,
}

fn serve(stream: &UnixStream, sent: &[u8]) {
    let _: Hello = read_frame(stream).unwrap();
    write_frame(stream, &Event::Welcome { version: VERSION }).unwrap();
    let request: Request = read_frame(stream).unwrap();
    assert!(matches!(request, Request::Archive { .. }), "{request:?}");
    let (mut guest, command) = UnixStream::pair().unwrap();
    // An event that is no answer may come first.
    write_frame(stream, &Event::Started).unwrap();
    write_frame(stream, &Event::Done).unwrap();
    let streams = ClientStreams {
        stdout: Some(command),
        ..ClientStreams::default()
    };
    streams.send(stream).unwrap();
    drop(streams);
    // The reader may have seen enough before all is sent.
    let _ = guest.write_all(sent);
}

fn fixture(sent: Vec<u8>) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let place = |name| Some(directory.path().join(name));
    let engine = Engine::new(Layout::new(place("root"), place("run")).unwrap());
    let mut tar = tar_of("etc/base", b"base");
    tar.extend([0; 1024]);
    let new = NewImage {
        base: None,
        reference: None,
        changes: Vec::new(),
        created: "2026-01-01T00:00:00Z".into(),
        author: None,
        created_by: None,
        comment: None,
    };
    let layer = Source::Stream(Box::new(Cursor::new(tar)));
    let image = engine.images().unwrap().make(&new, layer, &mut |_| {}).unwrap();
    let reservation = engine.store().reserve(Some("liar")).unwrap();
    let record = Record {
        version: record::VERSION,
        id: reservation.id.clone(),
        name: reservation.name.clone(),
        isolation: Isolation::Vm,
        image: ImageReference {
            id: image.to_string(),
            name: "base".into(),
        },
        layers: Vec::new(),
        command: vec!["true".into()],
        created_ms: 1,
        auto_remove: false,
        open_stdin: false,
        machine: None,
        settings: record::Settings::default(),
        mounts: crate::mounts::Mounts::default(),
        restarts: Restarts::default(),
        stopped: false,
        state: State::Running {
            supervisor_pid: 1,
            pid: 1,
            started_ms: 1,
            paused: false,
        },
    };
    reservation.owned.write_record(&record).unwrap();
    let run_directory = engine.store().run_directory(&record.id);
    layout::create_private(&run_directory).unwrap();
    let listener = socket::bind(&run_directory.join(SOCKET)).unwrap();
    let supervisor = thread::spawn(move || serve(&listener.accept().unwrap().0, &sent));
    Fixture {
        _directory: directory,
        engine,
        _owned: reservation.owned,
        supervisor,
    }
}

/// One file as tar, without the end mark.
fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |offset: usize, text: &str| {
        header[offset..offset + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    put(148, "        0");
    put(257, "ustar");
    put(263, "00");
    let sum = header.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn pieces(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap();
    [&length.to_le_bytes(), bytes].concat()
}

const COMPLETE: &[u8] = b"\0\0\0\0\x0a\0\0\0\"complete\"";

fn commit(fixture: &Fixture) -> Result<rvm_images::Digest, Error> {
    let commit = Commit {
        container: "liar".into(),
        reference: Some("made:1".parse().unwrap()),
        changes: Vec::new(),
        author: None,
        comment: None,
        created: "2026-01-01T00:00:00Z".into(),
        pauses: false,
    };
    fixture.engine.commit(&commit, &mut |_| {})
}

fn chain(error: &dyn std::error::Error) -> String {
    crate::supervisor::chain(error)
}

#[test]
fn what_is_whole_becomes_an_image() {
    let mut tar = tar_of("etc/new", b"new");
    tar.extend([0; 1024]);
    let fixture = fixture([pieces(&tar), COMPLETE.to_vec()].concat());
    let id = commit(&fixture).unwrap();
    let image = fixture.engine.images().unwrap().resolve("made:1").unwrap();
    assert_eq!((image.id, image.layers.len()), (id, 2));
    fixture.supervisor.join().unwrap();
}

#[test]
fn what_is_not_leaves_no_image() {
    let mut tar = tar_of("etc/new", b"new");
    tar.extend([0; 1024]);
    let failed = br#"{"failed":{"kind":"other","message":"disk on fire"}}"#;
    let cases = [
        (pieces(&tar), "broke off"),
        ([pieces(&tar), vec![0; 4]].concat(), "broke off"),
        (pieces(&tar)[..700].to_vec(), "broke off"),
        (
            [pieces(&tar), vec![0; 4], pieces(failed)].concat(),
            "disk on fire",
        ),
        (
            [pieces(&tar_of("../out", b"x")), COMPLETE.to_vec()].concat(),
            "..",
        ),
        (
            [pieces(&[0xff; 4096]), COMPLETE.to_vec()].concat(),
            "its checksum is wrong",
        ),
        (vec![0xff; 9000], "broke off"),
    ];
    for (sent, expected) in cases {
        let fixture = fixture(sent);
        let error = commit(&fixture).unwrap_err();
        assert!(chain(&error).contains(expected), "{expected}: {}", chain(&error));
        let images = fixture.engine.images().unwrap();
        assert!(images.resolve("made:1").is_err());
        assert_eq!(images.list().unwrap().len(), 1, "the base is all there is");
        fixture.supervisor.join().unwrap();
    }
}

#[test]
fn an_export_says_that_it_is_not_whole() {
    let fixture = fixture(pieces(b"some bytes"));
    let mut export = fixture.engine.export("liar").unwrap();
    let mut bytes = Vec::new();
    let error = export.read_to_end(&mut bytes).unwrap_err();
    assert!(error.to_string().contains("broke off"), "{error}");
    assert_eq!(bytes, b"some bytes");
    fixture.supervisor.join().unwrap();
}
