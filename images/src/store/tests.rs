//! Archives made by hand, loaded, resolved, removed; and archives that must leave nothing behind.

mod pull;
mod push;
mod verbs;

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::layer::digest;

/// A tar of these files.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(u64::try_from(data.len()).unwrap());
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn config(layers: &[Vec<u8>], created: &str) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": created,
        "config": {"Cmd": ["sh"], "Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    config.to_string().into_bytes()
}

fn docker_archive(layers: &[Vec<u8>], tags: &[&str], created: &str) -> Vec<u8> {
    let config = config(layers, created);
    let config_name = format!("{}.json", digest(&config).hex());
    let names: Vec<String> = (0..layers.len())
        .map(|index| format!("{index}/layer.tar"))
        .collect();
    let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]).to_string();
    let mut files: Vec<(&str, &[u8])> = vec![(&config_name, &config), ("manifest.json", manifest.as_bytes())];
    files.extend(
        names
            .iter()
            .zip(layers)
            .map(|(name, layer)| (name.as_str(), layer.as_slice())),
    );
    tar(&files)
}

/// Files of an OCI layout with gzip layers.
fn oci_files(layers: &[Vec<u8>], name: &str, created: &str) -> Vec<(String, Vec<u8>)> {
    let config = config(layers, created);
    let blobs: Vec<Vec<u8>> = layers.iter().map(|layer| gzip(layer)).collect();
    let descriptor =
        |bytes: &[u8], kind: &str| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let layer_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": document::MEDIA_MANIFEST,
        "config": descriptor(&config, document::MEDIA_CONFIG),
        "layers": blobs.iter().map(|blob| descriptor(blob, layer_type)).collect::<Vec<Value>>(),
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = descriptor(&manifest, document::MEDIA_MANIFEST);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    let mut files = vec![
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), index.to_string().into_bytes()),
    ];
    for blob in blobs.iter().chain([&config, &manifest]) {
        files.push((format!("blobs/sha256/{}", digest(blob).hex()), blob.clone()));
    }
    files
}

fn oci_archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    tar(&files
        .iter()
        .map(|(name, data)| (name.as_str(), data.as_slice()))
        .collect::<Vec<_>>())
}

fn two_layers() -> Vec<Vec<u8>> {
    vec![
        tar(&[("etc/hostname", b"one\n"), ("etc/gone", b"")]),
        tar(&[("etc/.wh.gone", b""), ("bin/sh", b"#!")]),
    ]
}

struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    Fixture { directory, store }
}

impl Fixture {
    fn load(&self, archive: &[u8]) -> Result<Vec<Loaded>, Error> {
        self.store.load(
            Source::Stream(Box::new(Cursor::new(archive.to_vec()))),
            &mut |_| {},
        )
    }

    fn files(&self, below: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.directory.path().join(below))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn assert_empty(&self) {
        for directory in ["images/staging", "images/blobs/sha256", "layers/sha256"] {
            assert!(
                self.files(directory).is_empty(),
                "{directory}: {:?}",
                self.files(directory)
            );
        }
        assert!(self.store.list().unwrap().is_empty());
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

const UNUSED: &dyn Fn(&Digest) -> Option<String> = &|_| None;

#[test]
fn every_form_of_archive_gives_the_same_image() {
    let layers = two_layers();
    let docker = docker_archive(&layers, &["debian:bookworm"], "2026-01-01T00:00:00Z");
    let files = oci_files(
        &layers,
        "docker.io/library/debian:bookworm",
        "2026-01-01T00:00:00Z",
    );
    let oci = oci_archive(&files);
    let on_disk = tempfile::tempdir().unwrap();
    fs::create_dir_all(on_disk.path().join("blobs/sha256")).unwrap();
    for (name, data) in &files {
        fs::write(on_disk.path().join(name), data).unwrap();
    }
    fs::write(on_disk.path().join("file.tar"), &docker).unwrap();
    let stream = |bytes: Vec<u8>| Source::Stream(Box::new(Cursor::new(bytes)));
    for input in [
        stream(docker.clone()),
        stream(gzip(&docker)),
        stream(zstd::encode_all(oci.as_slice(), 1).unwrap()),
        stream(oci),
        Source::Path(on_disk.path().join("file.tar")),
        Source::Path(on_disk.path().to_owned()),
    ] {
        let fixture = fixture();
        let loaded = fixture.store.load(input, &mut |_| {}).unwrap();
        assert_eq!(loaded[0].references, ["docker.io/library/debian:bookworm"]);
        assert_eq!(loaded[0].id, digest(&config(&layers, "2026-01-01T00:00:00Z")));
        let image = fixture.store.resolve("debian:bookworm").unwrap();
        assert_eq!(
            image.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>(),
            [digest(&layers[0]), digest(&layers[1])]
        );
        assert_eq!(
            image.config.config().as_ref().unwrap().cmd().as_ref().unwrap(),
            &["sh"]
        );
        assert!(
            image
                .layers
                .iter()
                .all(|layer| layer.bytes % 4096 == 0 && layer.path.exists())
        );
        assert_eq!(
            image.root,
            RootDirectory {
                mode: 0o755,
                uid: 0,
                gid: 0
            }
        );
        assert!(fixture.files("images/staging").is_empty());
    }
}

#[test]
fn loading_again_reads_no_layer() {
    let fixture = fixture();
    let files = oci_files(&two_layers(), "debian:bookworm", "2026-01-01T00:00:00Z");
    let first = fixture.load(&oci_archive(&files)).unwrap();
    let (blobs, layers) = (
        fixture.files("images/blobs/sha256"),
        fixture.files("layers/sha256"),
    );
    // Damaged layers would be noticed if they were read.
    let archive: Vec<_> = files
        .iter()
        .map(|(name, data)| match data.as_slice() {
            [0x1f, 0x8b, rest @ ..] => (
                name.clone(),
                [&[0x1f, 0x8b], vec![0xff; rest.len()].as_slice()].concat(),
            ),
            _ => (name.clone(), data.clone()),
        })
        .collect();
    assert_eq!(fixture.load(&oci_archive(&archive)).unwrap(), first);
    // The same image from an archive without manifests: nothing is added.
    let docker = docker_archive(&two_layers(), &["other:tag"], "2026-01-01T00:00:00Z");
    assert_eq!(fixture.load(&docker).unwrap()[0].id, first[0].id);
    assert_eq!(
        (
            fixture.files("images/blobs/sha256"),
            fixture.files("layers/sha256")
        ),
        (blobs, layers)
    );
    let names: Vec<_> = fixture
        .store
        .list()
        .unwrap()
        .into_iter()
        .map(|line| line.repository.unwrap())
        .collect();
    assert_eq!(names, ["debian", "other"]);
}

#[test]
fn names_and_ids_are_resolved_as_docker_does() {
    let fixture = fixture();
    let one = fixture
        .load(&docker_archive(
            &two_layers(),
            &["a:1", "reg.example:5000/b"],
            "1",
        ))
        .unwrap()[0]
        .id;
    let two = fixture.load(&docker_archive(&two_layers(), &[], "2")).unwrap()[0].id;
    let check =
        |text: &str, expected| assert_eq!(fixture.store.resolve(text).unwrap().id, expected, "{text}");
    check("a:1", one);
    check("docker.io/library/a:1", one);
    check("reg.example:5000/b", one);
    check(&one.to_string(), one);
    check(&one.hex(), one);
    check(&two.short(), two);
    check(
        &format!("a@{}", fixture.store.resolve("a:1").unwrap().manifest),
        one,
    );
    let refused = |text: &str| fixture.store.resolve(text).unwrap_err();
    assert!(matches!(refused("a"), Error::NotFound(_)));
    assert!(matches!(refused("c0ffee"), Error::NotFound(_)));
    assert!(matches!(refused("A B"), Error::Reference(_)));
    assert!(matches!(refused(""), Error::Reference(_)));
    assert_eq!(
        fixture.store.resolve("a:1").unwrap().reference.as_deref(),
        Some("docker.io/library/a:1")
    );
}

#[test]
fn a_name_moves_to_the_newer_image() {
    let fixture = fixture();
    let old = fixture
        .load(&docker_archive(&two_layers(), &["a:1"], "2025"))
        .unwrap()[0]
        .id;
    let new = fixture
        .load(&docker_archive(&two_layers(), &["a:1"], "2026"))
        .unwrap()[0]
        .id;
    assert_eq!(fixture.store.resolve("a:1").unwrap().id, new);
    let list: Vec<_> = fixture
        .store
        .list()
        .unwrap()
        .into_iter()
        .map(|line| (line.id, line.tag))
        .collect();
    assert_eq!(list, [(new, Some("1".to_owned())), (old, None)]);
    // The old one gets its name back, and its entry without a name goes.
    fixture
        .load(&docker_archive(&two_layers(), &["a:1"], "2025"))
        .unwrap();
    let list: Vec<_> = fixture
        .store
        .list()
        .unwrap()
        .into_iter()
        .map(|line| (line.id, line.tag))
        .collect();
    assert_eq!(list, [(new, None), (old, Some("1".to_owned()))]);
}

#[test]
fn removing_follows_dockers_rules() {
    let fixture = fixture();
    let id = fixture
        .load(&docker_archive(&two_layers(), &["a:1", "b:1"], "1"))
        .unwrap()[0]
        .id;
    let store = &fixture.store;
    let in_use = |_: &Digest| Some("container x is using it".to_owned());
    assert!(matches!(
        store.remove(&id.short(), UNUSED, false),
        Err(Error::SeveralNames { .. })
    ));
    // Taking away one of two names deletes nothing, so use does not matter.
    let removed = store.remove("b:1", &in_use, false).unwrap();
    assert_eq!(
        (removed.untagged, removed.deleted),
        (vec!["b:1".to_owned()], vec![])
    );
    for force in [false, true] {
        assert!(matches!(
            store.remove("a:1", &in_use, force),
            Err(Error::InUse { .. })
        ));
    }
    let removed = store.remove("a:1", UNUSED, false).unwrap();
    assert_eq!(
        (removed.untagged, removed.deleted),
        (vec!["a:1".to_owned()], vec![id])
    );
    assert!(removed.freed_bytes > 0);
    fixture.assert_empty();
    assert!(matches!(
        store.remove("a:1", UNUSED, false),
        Err(Error::NotFound(_))
    ));
    // By ID with force, all names go.
    fixture
        .load(&docker_archive(&two_layers(), &["a:1", "b:1"], "1"))
        .unwrap();
    assert_eq!(
        store.remove(&id.hex(), UNUSED, true).unwrap().untagged,
        ["a:1", "b:1"]
    );
    fixture.assert_empty();
}

#[test]
fn shared_layers_stay_as_long_as_one_image_has_them() {
    let fixture = fixture();
    let layers = two_layers();
    fixture
        .load(&docker_archive(&layers[..1], &["base"], "1"))
        .unwrap();
    fixture.load(&docker_archive(&layers, &["full"], "2")).unwrap();
    fixture.store.remove("full", UNUSED, false).unwrap();
    let image = fixture.store.resolve("base").unwrap();
    assert!(image.layers.iter().all(|layer| layer.path.exists()));
    assert_eq!(fixture.files("layers/sha256").len(), 1);
    fixture.store.remove("base", UNUSED, false).unwrap();
    fixture.assert_empty();
}

#[test]
fn bad_archives_leave_nothing_behind() {
    let layers = two_layers();
    let files = oci_files(&layers, "a:1", "1");
    let good = oci_archive(&files);
    let check = |archive: &[u8], expected: &str| {
        let fixture = fixture();
        let error = fixture.load(archive).unwrap_err();
        assert!(
            chain(&error).contains(expected),
            "{} should contain {expected}",
            chain(&error)
        );
        fixture.assert_empty();
    };
    check(b"", "neither a docker-archive");
    check(b"not a tar", "ends at byte 0");
    check(&[b'x'; 1024], "checksum");
    check(&tar(&[("a", b"")]), "neither a docker-archive");
    check(&tar(&[("../manifest.json", b"")]), "leads out of the archive");
    check(&tar(&[("/manifest.json", b"")]), "leads out of the archive");
    check(&good[..good.len() / 2], "ends at byte");
    check(&gzip(&good)[..300], "cannot read the archive");
    check(&tar(&[("manifest.json", b"[]")]), "has no image");
    check(&tar(&[("manifest.json", b"{")]), "is not valid");
    let manifest = br#"[{"Config":"../../etc/passwd","Layers":[]}]"#;
    check(&tar(&[("manifest.json", manifest)]), "leads out of the archive");
    check(
        &tar(&[("manifest.json", br#"[{"Config":"c","Layers":[]}]"#)]),
        "does not contain it",
    );
    // One byte of any file changed: its digest does not fit any more.
    for damaged in 2..files.len() {
        let mut files = files.clone();
        let middle = files[damaged].1.len() / 2;
        files[damaged].1[middle] ^= 1;
        check(&oci_archive(&files), "has the digest");
    }
    // A file shorter than its descriptor says.
    for damaged in 2..files.len() {
        let mut files = files.clone();
        files[damaged].1.pop();
        check(&oci_archive(&files), "bytes, not");
    }
    let mut wrong = docker_archive(&layers, &["a:1"], "1");
    let position = wrong.windows(4).position(|window| window == b"one\n").unwrap();
    wrong[position] = b'x';
    check(&wrong, "content has the digest");
    check(
        &docker_archive(&[tar(&[("../x", b"")])], &["a:1"], "1"),
        "contains a .. component",
    );
    check(
        &docker_archive(&[tar(&[("/x", b"")])], &["a:1"], "1"),
        "it is absolute",
    );
    check(&docker_archive(&layers, &["A"], "1"), "bad name for the image");
    // Links that lead to each other.
    let mut circle = ::tar::Builder::new(Vec::new());
    for (name, target) in [("manifest.json", "other"), ("other", "manifest.json")] {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(::tar::EntryType::Symlink);
        header.set_size(0);
        circle.append_link(&mut header, name, target).unwrap();
    }
    check(&circle.into_inner().unwrap(), "does not contain it");
    let mut too_large = tar(&[("manifest.json", b"")]);
    too_large.truncate(512);
    let mut header = ::tar::Header::from_byte_slice(&too_large).clone();
    header.set_size(5 << 20);
    header.set_cksum();
    let too_large = [header.as_bytes().as_slice(), &vec![b' '; 5 << 20], &[0; 1024]].concat();
    check(&too_large, "more than 4194304");
}

#[test]
fn platforms_are_chosen() {
    let layers = two_layers();
    let files = oci_files(&layers, "ignored", "1");
    let inner: Value = serde_json::from_slice(&files[1].1).unwrap();
    let build = |platforms: &[(&str, &str)]| {
        let manifests: Vec<Value> = platforms
            .iter()
            .map(|(os, architecture)| {
                let mut entry = inner["manifests"][0].clone();
                entry["platform"] = json!({"os": os, "architecture": architecture});
                entry
            })
            .collect();
        let nested = json!({"schemaVersion": 2, "manifests": manifests})
            .to_string()
            .into_bytes();
        let outer = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": document::MEDIA_INDEX, "digest": digest(&nested), "size": nested.len(),
            "annotations": {"io.containerd.image.name": "docker.io/library/multi:1", "org.opencontainers.image.ref.name": "1"},
        }]});
        let mut files = files.clone();
        files[1].1 = outer.to_string().into_bytes();
        files.push((format!("blobs/sha256/{}", digest(&nested).hex()), nested));
        oci_archive(&files)
    };
    let fixture = fixture();
    fixture
        .load(&build(&[
            ("linux", "arm64"),
            ("linux", "amd64"),
            ("unknown", "unknown"),
        ]))
        .unwrap();
    assert_eq!(fixture.store.resolve("multi:1").unwrap().layers.len(), 2);
    let error = fixture.load(&build(&[("linux", "arm64")])).unwrap_err();
    assert!(
        chain(&error).contains("only for linux/arm64"),
        "{}",
        chain(&error)
    );
}

#[test]
fn an_image_for_another_machine_is_refused() {
    let config =
        json!({"architecture": "arm64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    let manifest = json!([{"Config": "config.json", "RepoTags": ["arm:1"], "Layers": []}]).to_string();
    let archive = tar(&[
        ("config.json", config.to_string().as_bytes()),
        ("manifest.json", manifest.as_bytes()),
    ]);
    let error = fixture().load(&archive).unwrap_err();
    assert!(chain(&error).contains("for linux/arm64"), "{}", chain(&error));
}

#[test]
fn documents_of_an_archive_have_a_common_budget() {
    let mut config = config(&[], "1");
    config.resize(1 << 20, b' ');
    let image = json!({"Config": "config.json", "RepoTags": [], "Layers": []});
    let archive = |images: usize| {
        let manifest = Value::from(vec![image.clone(); images]).to_string();
        tar(&[("config.json", &config), ("manifest.json", manifest.as_bytes())])
    };
    fixture().load(&archive(15)).unwrap();
    let error = fixture().load(&archive(16)).unwrap_err();
    assert!(chain(&error).contains("16777216"), "{}", chain(&error));
}

#[test]
fn a_bare_tag_is_put_behind_the_files_name() {
    let fixture = fixture();
    let archive = oci_archive(&oci_files(&two_layers(), "bookworm", "1"));
    // Without a file there is no name to put it behind.
    assert!(fixture.load(&archive).unwrap()[0].references.is_empty());
    let path = fixture.directory.path().join("debian.tar");
    fs::write(&path, &archive).unwrap();
    let loaded = fixture.store.load(Source::Path(path), &mut |_| {}).unwrap();
    assert_eq!(loaded[0].references, ["docker.io/library/debian:bookworm"]);
}

#[test]
fn what_a_killed_command_left_is_removed() {
    let fixture = fixture();
    fixture
        .load(&docker_archive(&two_layers(), &["a:1"], "1"))
        .unwrap();
    let expected = fixture.files("images/blobs/sha256");
    let images = fixture.directory.path().join("images");
    // A load that died while it converted, one that died between rename and index, and one that lives.
    fs::create_dir(images.join("staging/load-dead")).unwrap();
    fs::write(images.join("staging/load-dead/0.erofs"), b"half").unwrap();
    fs::write(images.join("staging/load-dead/lock"), b"").unwrap();
    fs::write(images.join("staging/.new-index"), b"{").unwrap();
    fs::write(images.join("unfinished"), b"").unwrap();
    fs::write(
        images.join("blobs/sha256").join(digest(b"orphan").hex()),
        b"orphan",
    )
    .unwrap();
    let alive = fixture.store.staging().unwrap();
    let names = fixture.files("images/staging");
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(fixture.files("images/blobs/sha256"), expected);
    assert!(!images.join("unfinished").exists());
    drop(alive);
    assert!(fixture.files("images/staging").is_empty());
    // Opening the store is enough, and leaves a load alone that lives.
    let _alive = fixture.store.staging().unwrap();
    fs::create_dir(images.join("staging/load-dead")).unwrap();
    Store::open(fixture.directory.path()).unwrap();
    let names = fixture.files("images/staging");
    assert_eq!(names.len(), 1, "{names:?}");
    assert_ne!(names, ["load-dead"]);
    assert_eq!(fixture.store.resolve("a:1").unwrap().layers.len(), 2);
}

#[test]
fn a_lost_layer_image_is_made_again() {
    let fixture = fixture();
    fixture
        .load(&oci_archive(&oci_files(&two_layers(), "a:1", "1")))
        .unwrap();
    let before = fixture.store.resolve("a:1").unwrap().layers;
    let content = fs::read(&before[1].path).unwrap();
    fs::remove_file(&before[1].path).unwrap();
    assert_eq!(fixture.store.resolve("a:1").unwrap().layers, before);
    assert_eq!(fs::read(&before[1].path).unwrap(), content);
}

#[test]
fn a_newer_store_is_refused() {
    let fixture = fixture();
    let root: &Path = fixture.directory.path();
    fs::write(
        root.join("images/version.json"),
        r#"{"version": 2, "new": "field"}"#,
    )
    .unwrap();
    let error = Store::open(root).unwrap_err();
    assert!(chain(&error).contains("has version 2"), "{}", chain(&error));
}

#[test]
fn progress_is_reported() {
    let fixture = fixture();
    let archive = docker_archive(&two_layers(), &["a:1"], "1");
    let mut events = Vec::new();
    let input = Source::Stream(Box::new(Cursor::new(archive)));
    fixture
        .store
        .load(input, &mut |event| events.push(event))
        .unwrap();
    assert!(matches!(events[0], Progress::Spooling { bytes } if bytes > 0));
    for wanted in 0..2 {
        let complete = |event: &Progress| matches!(event, Progress::Layer { index, layers: 2, done, total, .. } if *index == wanted && done == total);
        assert!(events.iter().any(complete), "{events:?}");
    }
}
