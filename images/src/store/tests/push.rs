//! Pushes to a registry in this process: what is sent, in which order, and what is noted.

use super::*;
use crate::registry::Registries;
use crate::registry::server::{Server, Shared, client, reply, take};

const CREATED: &str = "2026-01-01T00:00:00Z";

fn registry() -> (Server, Shared) {
    let taken = Shared::default();
    let state = std::sync::Arc::clone(&taken);
    let server = Server::start(move |request, stream| match request.path.as_str() {
        "/v2/" => reply(stream, "200 OK", &[], b"{}"),
        _ => take(&state, request, stream),
    });
    (server, taken)
}

fn request(name: &str) -> PushRequest {
    PushRequest {
        reference: name.parse().unwrap(),
        all_tags: false,
        registries: Registries::default(),
    }
}

impl Fixture {
    fn push(&self, request: &PushRequest) -> Result<(Vec<Pushed>, Vec<Progress>), Error> {
        let mut events = Vec::new();
        let pushed = self
            .store
            .push_with(&client(), request, &mut |event| events.push(event))?;
        Ok((pushed, events))
    }

    /// Loads an image of OCI's kind, whose lowest layer is there twice.
    fn with_image(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let mut layers = two_layers();
        layers.push(layers[0].clone());
        let files = oci_files(&layers, name, CREATED);
        self.load(&oci_archive(&files)).unwrap();
        files
    }
}

#[test]
fn an_image_is_pushed_as_it_is() {
    let (server, taken) = registry();
    let fixture = fixture();
    let name = format!("{}/a/b:1", server.authority());
    let files = fixture.with_image(&name);
    let (pushed, events) = fixture.push(&request(&name)).unwrap();
    let (_, manifest) = files.last().unwrap();
    let expected = Pushed {
        tag: "1".to_owned(),
        digest: digest(manifest),
        bytes: u64::try_from(manifest.len()).unwrap(),
    };
    assert_eq!(pushed, [expected]);
    {
        let taken = taken.lock().unwrap();
        let (media_type, text) = &taken.manifests["1"];
        assert_eq!(
            (media_type.as_str(), text.as_bytes()),
            (document::MEDIA_MANIFEST, manifest.as_slice())
        );
        // Two different layers and the configuration.
        assert_eq!(taken.blobs.len(), 3);
    }
    let done = |event: &&Progress| {
        matches!(
            event,
            Progress::Send {
                step: SendStep::Done,
                ..
            }
        )
    };
    assert_eq!(events.iter().filter(done).count(), 2);
    let order: Vec<String> = server
        .requests()
        .iter()
        .map(|request| request.method.clone())
        .collect();
    let puts: Vec<_> = server
        .requests()
        .into_iter()
        .filter(|request| request.method == "PUT")
        .collect();
    assert!(puts.last().unwrap().path.ends_with("/manifests/1"), "{order:?}");
    let config = digest(&config(
        &[two_layers(), vec![two_layers()[0].clone()]].concat(),
        CREATED,
    ));
    assert!(
        puts[puts.len() - 2].path.ends_with(&format!("digest={config}")),
        "{order:?}"
    );
    // The registry has it under that digest, which is a name now.
    let by_digest = format!("{}/a/b@{}", server.authority(), digest(manifest));
    assert!(fixture.store.resolve(&by_digest).is_ok());
    let sent = taken.lock().unwrap().bytes;
    fixture.push(&request(&name)).unwrap();
    assert_eq!(taken.lock().unwrap().bytes, sent);
    // Another repository there gets it from the first; the same one elsewhere does not.
    let other = format!("{}/c:1", server.authority());
    fixture.with_image(&other);
    fixture.with_image("r.example/a/d:1");
    taken.lock().unwrap().blobs.clear();
    fixture.push(&request(&other)).unwrap();
    let mounts = server.requests_for("mount=");
    assert_eq!(mounts.len(), 3);
    assert!(mounts.iter().all(|request| request.path.ends_with("&from=a/b")));
}

#[test]
fn what_cannot_be_pushed_sends_nothing() {
    let (server, _) = registry();
    let fixture = fixture();
    let name = format!("{}/a/b:1", server.authority());
    let files = fixture.with_image(&name);
    let absent = format!("{}/a/b:2", server.authority());
    assert!(matches!(fixture.push(&request(&absent)), Err(Error::NotFound(_))));
    let by_digest = format!("{}/a/b@{}", server.authority(), digest(b""));
    assert!(matches!(
        fixture.push(&request(&by_digest)),
        Err(Error::PushDigest(_))
    ));
    let (blob, bytes) = &files[2];
    let path = fixture.directory.path().join("images").join(blob);
    fs::write(&path, &bytes[1..]).unwrap();
    assert!(matches!(fixture.push(&request(&name)), Err(Error::Store(_))));
    fs::remove_file(&path).unwrap();
    assert!(matches!(fixture.push(&request(&name)), Err(Error::Store(_))));
    assert!(server.requests().is_empty());
}

#[test]
fn all_tags_of_a_repository_are_pushed() {
    let (server, taken) = registry();
    let fixture = fixture();
    for tag in ["a/b:1", "a/b:2", "a/c:1"] {
        fixture.with_image(&format!("{}/{tag}", server.authority()));
    }
    let mut request = request(&format!("{}/a/b", server.authority()));
    request.all_tags = true;
    let (pushed, _) = fixture.push(&request).unwrap();
    let mut tags: Vec<_> = pushed.into_iter().map(|pushed| pushed.tag).collect();
    tags.sort();
    assert_eq!(tags, ["1", "2"]);
    assert!(server.requests_for("a/c").is_empty());
    assert_eq!(taken.lock().unwrap().manifests.len(), 2);
}

#[test]
fn a_failure_stops_and_says_for_which_image() {
    let server = Server::start(|request, stream| match request.method.as_str() {
        "POST" => reply(
            stream,
            "403 Forbidden",
            &[],
            br#"{"errors":[{"message":"read only"}]}"#,
        ),
        "HEAD" => reply(stream, "404 Not Found", &[], b""),
        _ => reply(stream, "200 OK", &[], b"{}"),
    });
    let fixture = fixture();
    let name = format!("{}/a/b:1", server.authority());
    fixture.with_image(&name);
    let error = fixture.push(&request(&name)).unwrap_err();
    let Error::Push { image, source } = error else {
        panic!("{error}");
    };
    assert_eq!(image, name);
    assert!(source.to_string().contains("read only"), "{source}");
    assert!(source.hint().unwrap().contains("rvm login"));
    assert!(server.requests().iter().all(|request| request.method != "PUT"));
}
