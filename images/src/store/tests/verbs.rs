//! Tags, archives that are written, new images, pruning, measuring, checking.

use super::*;

/// One image, loaded.
fn loaded() -> Fixture {
    let fixture = fixture();
    let files = oci_files(
        &two_layers(),
        "docker.io/library/debian:bookworm",
        "2026-01-01T00:00:00Z",
    );
    fixture.load(&oci_archive(&files)).unwrap();
    fixture
}

impl Fixture {
    fn tag(&self, source: &str, target: &str) -> Result<(), Error> {
        self.store.tag(source, &target.parse().unwrap())
    }

    fn names(&self) -> Vec<String> {
        let summaries = self.store.list().unwrap().into_iter();
        summaries
            .map(|image| {
                format!(
                    "{}:{}",
                    image.repository.unwrap_or_default(),
                    image.tag.unwrap_or_default()
                )
            })
            .collect()
    }

    fn save(&self, references: &[&str], kind: ArchiveKind) -> Vec<u8> {
        let references: Vec<String> = references.iter().map(|name| (*name).to_owned()).collect();
        let mut archive = Vec::new();
        self.store.save(&references, kind, &mut archive).unwrap();
        archive
    }

    fn make(&self, new: &NewImage<'_>, layer: &[u8]) -> Result<Digest, Error> {
        let layer = Source::Stream(Box::new(Cursor::new(layer.to_vec())));
        self.store.make(new, layer, &mut |_| {})
    }

    fn check(&self, repair: bool) -> Checked {
        self.store.check(repair, &mut |_| {}).unwrap()
    }
}

/// Members of an archive by name.
fn members(archive: &[u8]) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut archive = ::tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    });
    entries.collect()
}

fn new_image<'a>() -> NewImage<'a> {
    NewImage {
        base: None,
        reference: None,
        changes: Vec::new(),
        created: "2026-02-03T04:05:06Z".to_owned(),
        author: None,
        created_by: None,
        comment: Some("imported".to_owned()),
    }
}

#[test]
fn a_tag_is_another_name_and_moves() {
    let fixture = loaded();
    fixture.tag("debian:bookworm", "mine:1").unwrap();
    fixture.tag("debian:bookworm", "mine:1").unwrap();
    assert_eq!(fixture.names(), ["debian:bookworm", "mine:1"]);
    let id = fixture.store.resolve("debian:bookworm").unwrap().id;
    assert_eq!(fixture.store.resolve("mine:1").unwrap().id, id);

    let other = docker_archive(&[tar(&[("x", b"y")])], &["other"], "2026-01-02T00:00:00Z");
    fixture.load(&other).unwrap();
    fixture.tag("other", "mine:1").unwrap();
    assert_ne!(fixture.store.resolve("mine:1").unwrap().id, id);
    // The last name of an image may be taken from it too.
    fixture.tag("other", "debian:bookworm").unwrap();
    assert_eq!(
        fixture.names(),
        ["debian:bookworm", "mine:1", "other:latest", ":"]
    );
    assert_eq!(fixture.store.resolve(&id.hex()).unwrap().id, id);

    assert!(matches!(fixture.tag("nothing", "x"), Err(Error::NotFound(_))));
    let digest = format!("debian@{id}");
    assert!(matches!(
        fixture.tag("other", &digest),
        Err(Error::TagWithDigest(_))
    ));
}

#[test]
fn details_name_every_tag() {
    let fixture = loaded();
    fixture.tag("debian:bookworm", "mine:1").unwrap();
    let details = fixture.store.details("mine:1").unwrap();
    assert_eq!(details.names, ["debian:bookworm", "mine:1"]);
    assert!(details.digests.is_empty());
    assert_eq!(details.document["config"]["Cmd"], json!(["sh"]));
    assert!(details.layers.iter().all(|layer| layer.bytes.is_some()));
}

#[test]
fn an_oci_archive_has_the_blobs_that_came() {
    let layers = two_layers();
    let files = oci_files(
        &layers,
        "docker.io/library/debian:bookworm",
        "2026-01-01T00:00:00Z",
    );
    let fixture = loaded();
    let saved = members(&fixture.save(&["debian:bookworm"], ArchiveKind::Oci));
    for (name, content) in files.iter().filter(|(name, _)| name.starts_with("blobs/")) {
        assert_eq!(saved.get(name), Some(content), "{name}");
    }
    assert_eq!(saved.len(), files.len());
    let again = super::fixture();
    again
        .load(&fixture.save(&["debian:bookworm"], ArchiveKind::Oci))
        .unwrap();
    assert_eq!(again.store.list().unwrap(), fixture.store.list().unwrap());
}

#[test]
fn a_docker_archive_has_plain_layers() {
    let layers = two_layers();
    let fixture = loaded();
    fixture.tag("debian:bookworm", "localhost:5000/mine:1").unwrap();
    let other = docker_archive(&layers[..1], &["other"], "2026-01-02T00:00:00Z");
    fixture.load(&other).unwrap();
    let id = fixture.store.resolve("other").unwrap().id;
    let names = ["debian:bookworm", "localhost:5000/mine:1", &id.hex()[..12]];
    let archive = fixture.save(&names, ArchiveKind::Docker);
    let saved = members(&archive);
    for layer in &layers {
        assert_eq!(saved.get(&format!("{}.tar", digest(layer).hex())), Some(layer));
    }
    let manifest: Value = serde_json::from_slice(&saved["manifest.json"]).unwrap();
    assert_eq!(
        manifest[0]["RepoTags"],
        json!(["debian:bookworm", "localhost:5000/mine:1"])
    );
    assert_eq!(manifest[1]["RepoTags"], Value::Null, "asked for by its ID");
    assert_eq!(saved.len(), 2 + 2 + 1, "what is shared is there once");
    let again = super::fixture();
    again.load(&archive).unwrap();
    assert_eq!(again.names(), [":", "debian:bookworm", "localhost:5000/mine:1"]);
}

#[test]
fn a_repository_is_saved_with_all_its_tags() {
    let fixture = loaded();
    fixture.tag("debian:bookworm", "debian:stable").unwrap();
    fixture.tag("debian:bookworm", "other:1").unwrap();
    let newer = docker_archive(&two_layers()[..1], &["debian:trixie"], "2026-01-02T00:00:00Z");
    fixture.load(&newer).unwrap();
    for kind in [ArchiveKind::Docker, ArchiveKind::Oci] {
        let again = super::fixture();
        again.load(&fixture.save(&["debian"], kind)).unwrap();
        let mut names = again.names();
        names.sort();
        assert_eq!(
            names,
            ["debian:bookworm", "debian:stable", "debian:trixie"],
            "{kind:?}"
        );
    }
    let saved = |name: &str| {
        fixture
            .store
            .save(&[name.to_owned()], ArchiveKind::Docker, std::io::sink())
    };
    assert!(matches!(saved("debian:latest"), Err(Error::NotFound(_))));
    assert!(matches!(saved("absent"), Err(Error::NotFound(_))));
}

#[test]
fn a_damaged_blob_is_not_saved() {
    let fixture = loaded();
    let layers = two_layers();
    let blob = digest(&gzip(&layers[0]));
    let path = fixture.store.layout.blob_path(&blob);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&path, bytes).unwrap();
    for kind in [ArchiveKind::Docker, ArchiveKind::Oci] {
        let saved = fixture
            .store
            .save(&["debian:bookworm".to_owned()], kind, std::io::sink());
        assert!(matches!(saved, Err(Error::Save(_))), "{kind:?}: {saved:?}");
    }
}

#[test]
fn a_root_file_system_becomes_an_image() {
    let root = tar(&[("bin/sh", b"#!")]);
    for stream in [
        root.clone(),
        gzip(&root),
        zstd::encode_all(root.as_slice(), 1).unwrap(),
    ] {
        let fixture = fixture();
        let changes = [r#"CMD ["sh"]"#, "ENV A=b"].map(|change| change.parse().unwrap());
        let new = NewImage {
            reference: Some("root:1".parse().unwrap()),
            changes: changes.to_vec(),
            ..new_image()
        };
        let id = fixture.make(&new, &stream).unwrap();
        let image = fixture.store.resolve("root:1").unwrap();
        assert_eq!((image.id, image.layers[0].diff_id), (id, digest(&root)));
        let details = fixture.store.details("root:1").unwrap();
        assert_eq!(details.document["config"], json!({"Cmd": ["sh"], "Env": ["A=b"]}));
        assert_eq!(
            details.document["history"],
            json!([{"created": "2026-02-03T04:05:06Z", "comment": "imported"}])
        );
        assert!(
            fixture.store.layout.blob_path(&digest(&stream)).exists(),
            "the blob is what came"
        );
    }
}

#[test]
fn a_layer_is_put_on_top_of_an_image() {
    let fixture = loaded();
    let new = NewImage {
        base: Some("debian:bookworm"),
        author: Some("somebody".to_owned()),
        ..new_image()
    };
    let top = tar(&[("top", b"x")]);
    let id = fixture.make(&new, &top).unwrap();
    let image = fixture.store.resolve(&id.hex()).unwrap();
    let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id).collect();
    let layers = two_layers();
    assert_eq!(diff_ids, [digest(&layers[0]), digest(&layers[1]), digest(&top)]);
    let details = fixture.store.details(&id.hex()).unwrap();
    assert_eq!(details.document["config"]["Env"], json!(["A=b"]));
    assert_eq!(details.document["author"], "somebody");
}

#[test]
fn what_is_no_layer_leaves_nothing() {
    let fixture = fixture();
    for stream in [&b"no tar at all, and long enough to be looked at"[..], b"BZh91AY"] {
        let error = fixture.make(&new_image(), stream).unwrap_err();
        assert!(matches!(error, Error::Make(_)), "{}", chain(&error));
    }
    fixture.assert_empty();
}

#[test]
fn pruning_spares_names_and_users() {
    let fixture = loaded();
    let id = fixture.store.resolve("debian:bookworm").unwrap().id;
    let other = docker_archive(
        &[tar(&[("x", b"y")])],
        &["debian:bookworm"],
        "2026-01-02T00:00:00Z",
    );
    fixture.load(&other).unwrap();
    let prune = |all, used: &[Digest], before: &str| {
        fixture
            .store
            .prune(
                all,
                &|image| image.created.as_deref().is_some_and(|created| created < before),
                &|id| used.contains(id),
            )
            .unwrap()
            .deleted
    };
    assert_eq!(prune(false, &[id], "9"), []);
    assert_eq!(prune(false, &[], "2026-01-01T00:00:00Z"), []);
    assert_eq!(prune(false, &[], "9"), [id], "it had lost its name");
    assert_eq!(fixture.names(), ["debian:bookworm"]);
    assert_eq!(prune(true, &[], "9").len(), 1);
    fixture.assert_empty();
}

#[test]
fn what_images_share_is_counted_once() {
    let fixture = loaded();
    let layers = two_layers();
    let other = [layers[0].clone(), tar(&[("other", b"x")])];
    let files = oci_files(&other, "docker.io/library/other:1", "2026-01-02T00:00:00Z");
    fixture.load(&oci_archive(&files)).unwrap();
    let used = fixture.store.resolve("other:1").unwrap().id;
    let usage = fixture.store.usage(&|id| *id == used).unwrap();
    assert_eq!((usage.count, usage.used), (2, 1));
    assert_eq!((usage.cached, usage.cached_used), (3, 2));
    let [one, two] = &usage.images[..] else {
        panic!("{usage:?}")
    };
    // The shared layer is a blob and an image.
    let shared = one.bytes - one.unique;
    assert_eq!(two.bytes - two.unique, shared);
    assert!(shared > 0);
    assert_eq!(
        usage.blobs.bytes + usage.cache.bytes,
        one.unique + two.unique + shared
    );
    assert_eq!(usage.blobs.reclaimable + usage.cache.reclaimable, two.unique);
}

#[test]
fn a_sound_store_has_no_faults() {
    let fixture = loaded();
    let checked = fixture.check(false);
    assert_eq!(checked.faults, []);
    assert_eq!((checked.blobs, checked.layers), (4, 2));
}

#[test]
fn a_flipped_bit_of_the_cache_is_found_and_repaired() {
    let fixture = loaded();
    let image = fixture.store.resolve("debian:bookworm").unwrap();
    let path = &image.layers[0].path;
    let sound = fs::read(path).unwrap();
    let position = sound
        .windows(4)
        .position(|window| window == b"one\n")
        .expect("the file's content");
    let mut bytes = sound.clone();
    bytes[position] ^= 1;
    fs::write(path, &bytes).unwrap();
    let checked = fixture.check(false);
    assert_eq!(checked.faults.len(), 1);
    assert_eq!(checked.faults[0].what, path.display().to_string());
    assert_eq!(fs::read(path).unwrap(), bytes, "looked at only");
    assert_eq!(fixture.check(true).faults.len(), 1);
    assert_eq!(fs::read(path).unwrap(), sound);
    fs::remove_file(path).unwrap();
    assert_eq!(fixture.check(true).faults, [], "a cache need not be whole");
    assert_eq!(fs::read(path).unwrap(), sound);
    assert!(fixture.files("images/staging").is_empty());
}

#[test]
fn a_damaged_blob_is_found_and_can_be_loaded_again() {
    let layers = two_layers();
    let files = oci_files(
        &layers,
        "docker.io/library/debian:bookworm",
        "2026-01-01T00:00:00Z",
    );
    let archive = oci_archive(&files);
    let blobs = [
        digest(&gzip(&layers[1])),
        digest(&config(&layers, "2026-01-01T00:00:00Z")),
    ];
    for blob in blobs {
        let fixture = loaded();
        let path = fixture.store.layout.blob_path(&blob);
        fs::write(&path, b"something else").unwrap();
        let faults = fixture.check(false).faults;
        assert!(
            faults
                .iter()
                .any(|fault| fault.what == path.display().to_string()),
            "{faults:?}"
        );
        fixture.check(true);
        assert!(!path.exists());
        fixture.load(&archive).unwrap();
        assert_eq!(fixture.check(false).faults, []);
        fixture.store.resolve("debian:bookworm").unwrap();
    }
}
