//! Pulls from a registry in this process: good ones, cut ones, shared ones, and such as must leave nothing.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use super::*;
use crate::document::{MEDIA_INDEX, MEDIA_MANIFEST};
use crate::platform::Platform;
use crate::registry::Registries;
use crate::registry::server::{Content, Received, Server, client, head};

const CREATED: &str = "2026-01-01T00:00:00Z";

/// A registry that has an image of these layers as `latest`.
fn content(layers: &[Vec<u8>]) -> Content {
    let mut content = Content::default();
    for (name, data) in oci_files(layers, "x", CREATED) {
        if name.starts_with("blobs/") {
            content.blob(&data);
            if data.starts_with(b"{\"config\"") {
                content.manifest("latest", MEDIA_MANIFEST, &data);
            }
        }
    }
    content
}

fn serve(content: &Content) -> Server {
    let content = content.clone();
    Server::start(move |request, stream| content.answer(request, stream))
}

/// Layers large enough that a connection can break within one.
fn large_layers() -> Vec<Vec<u8>> {
    let noise = |seed: u32| -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        (0..300_000).map(|_| next()).collect()
    };
    (1..=3)
        .map(|seed| tar(&[(&format!("file{seed}"), &noise(seed))]))
        .collect()
}

fn request(server: &Server, platform: &str) -> PullRequest {
    PullRequest {
        reference: format!("{}/a/b", server.authority()).parse().unwrap(),
        platform: platform.parse().unwrap(),
        registries: Registries::default(),
    }
}

impl Fixture {
    fn pull(&self, server: &Server) -> Result<Pulled, Error> {
        self.store
            .pull_with(client(), &request(server, "linux/amd64"), &mut |_| {})
    }

    /// What is kept of blobs; locks are empty files.
    fn partials(&self) -> Vec<(String, u64)> {
        let directory = self.directory.path().join("images/partial");
        let files = self.files("images/partial").into_iter();
        let blobs = files.filter(|name| !name.ends_with(".image"));
        blobs
            .map(|name| (name.clone(), fs::metadata(directory.join(name)).unwrap().len()))
            .collect()
    }

    fn resolves(&self, server: &Server) -> Image {
        self.store
            .resolve(&format!("{}/a/b", server.authority()))
            .unwrap()
    }
}

#[test]
fn a_pulled_image_is_the_loaded_one() {
    let layers = two_layers();
    let content = content(&layers);
    let server = serve(&content);
    let (pulled, loaded) = (fixture(), fixture());
    let mut events = Vec::new();
    let answer = pulled
        .store
        .pull_with(client(), &request(&server, "linux/amd64"), &mut |event| {
            events.push(event)
        });
    let answer = answer.unwrap();
    assert!(answer.is_new);
    loaded
        .load(&oci_archive(&oci_files(&layers, "x", CREATED)))
        .unwrap();
    for directory in ["images/blobs/sha256", "layers/sha256", "images/staging"] {
        assert_eq!(pulled.files(directory), loaded.files(directory), "{directory}");
    }
    assert!(pulled.files("images/partial").is_empty());
    let image = pulled.resolves(&server);
    assert_eq!((image.id, image.manifest), (answer.id, answer.digest));
    let done = events.iter().filter(|event| {
        matches!(
            event,
            Progress::Fetch {
                step: FetchStep::Done,
                ..
            }
        )
    });
    assert_eq!(done.count(), 2);
    // Manifest, configuration and each layer: once.
    assert_eq!(server.requests().len(), 4);
    let again = pulled.pull(&server).unwrap();
    assert!(!again.is_new);
    assert_eq!(server.requests().len(), 5, "only the manifest is asked for again");
}

#[test]
fn shared_layers_are_not_fetched() {
    let mut layers = two_layers();
    let fixture = fixture();
    fixture.pull(&serve(&content(&layers))).unwrap();
    layers.push(tar(&[("new", b"new")]));
    let server = serve(&content(&layers));
    assert!(fixture.pull(&server).unwrap().is_new);
    assert_eq!(
        server.requests_for("/blobs/").len(),
        2,
        "the configuration and one layer"
    );
    assert_eq!(fixture.resolves(&server).layers.len(), 3);
}

#[test]
fn an_index_is_known_by_both_digests() {
    let mut content = content(&two_layers());
    let (_, manifest) = content.manifests["latest"].clone();
    let entry = |digest, os: &str, architecture: &str| {
        json!({"mediaType": MEDIA_MANIFEST, "digest": digest, "size": manifest.len(),
            "platform": {"os": os, "architecture": architecture}})
    };
    let index = json!({"schemaVersion": 2, "manifests": [
        entry(digest(b"other"), "linux", "arm64"), entry(digest(&manifest), "linux", "amd64")]});
    let index = content.manifest("latest", MEDIA_INDEX, index.to_string().as_bytes());
    let server = serve(&content);
    let fixture = fixture();
    let answer = fixture.pull(&server).unwrap();
    assert_eq!(answer.digest, index);
    let by = |digest| {
        let name = format!("{}/a/b@{digest}", server.authority());
        // By a digest an image is found that was pulled by a digest or a tag.
        fixture.store.resolve(&name).map(|image| image.id)
    };
    assert_eq!(by(index).unwrap(), answer.id);
    assert_eq!(by(digest(&manifest)).unwrap(), answer.id);
    assert!(by(digest(b"other")).is_err());
    let error = fixture
        .store
        .pull_with(client(), &request(&server, "linux/s390x"), &mut |_| {})
        .unwrap_err();
    assert!(
        chain(&error).contains("only for linux/arm64, linux/amd64"),
        "{}",
        chain(&error)
    );
}

#[test]
fn an_image_for_another_machine_is_kept_and_not_run() {
    let mut content = content(&[]);
    let config = String::from_utf8(config(&[], CREATED))
        .unwrap()
        .replace("amd64", "arm64")
        .into_bytes();
    let (_, manifest) = content.manifests["latest"].clone();
    let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
    manifest["config"]["digest"] = content.blob(&config).to_string().into();
    content.manifest("latest", MEDIA_MANIFEST, manifest.to_string().as_bytes());
    let (server, fixture) = (serve(&content), fixture());
    fixture
        .store
        .pull_with(client(), &request(&server, "linux/arm64"), &mut |_| {})
        .unwrap();
    assert_eq!(fixture.store.list().unwrap().len(), 1);
    let error = fixture
        .store
        .resolve(&format!("{}/a/b", server.authority()))
        .unwrap_err();
    assert!(chain(&error).contains("runs linux/amd64"), "{}", chain(&error));
}

/// A registry whose answer for one blob is another.
fn spoilt(content: &Content, blob: &Digest, answer: fn(&[u8], &mut TcpStream) -> io::Result<()>) -> Server {
    let (content, path) = (content.clone(), format!("/blobs/{blob}"));
    let bytes = content.blobs[&blob.to_string()].clone();
    Server::start(move |request, stream| {
        if request.path.ends_with(&path) {
            answer(&bytes, stream)
        } else {
            content.answer(request, stream)
        }
    })
}

#[test]
fn what_is_wrong_leaves_nothing() {
    let layers = large_layers();
    let content = content(&layers);
    let flipped = |bytes: &[u8], stream: &mut TcpStream| {
        let mut bytes = bytes.to_vec();
        bytes[5000] ^= 1;
        crate::registry::server::reply(stream, "200 OK", &[], &bytes)
    };
    for (blob, expected) in [
        (digest(&gzip(&layers[1])), "has the digest"),
        (digest(&config(&layers, CREATED)), "digest"),
    ] {
        let answer = if expected == "digest" {
            |bytes: &[u8], stream: &mut TcpStream| {
                crate::registry::server::reply(stream, "200 OK", &[], &vec![b' '; bytes.len()])
            }
        } else {
            flipped
        };
        let (server, fixture) = (spoilt(&content, &blob, answer), fixture());
        let error = fixture.pull(&server).unwrap_err();
        assert!(chain(&error).contains(expected), "{}", chain(&error));
        fixture.assert_empty();
        // Of what was wrong nothing is kept that a next pull would go on with.
        let wrong = fixture
            .partials()
            .into_iter()
            .find(|(name, _)| *name == blob.hex());
        assert_eq!(wrong.map_or(0, |(_, bytes)| bytes), 0);
    }
}

/// The bytes of a bomb are neither in memory nor on the disk when it is seen to be one.
#[test]
fn a_bomb_is_not_unpacked() {
    // Four times what it may unpack to: a file that has no holes for a while, and then nothing but zeros.
    let mut data = vec![b'x'; 1 << 20];
    data.resize(32 << 20, 0);
    let layer = tar(&[("bomb", &data)]);
    let packed = zstd::encode_all(layer.as_slice(), 19).unwrap();
    assert!(packed.len() < 5000, "{} bytes", packed.len());
    let mut content = Content::default();
    let config = config(&[layer], CREATED);
    let blob = |media_type: &str, bytes: &[u8]| serde_json::json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()});
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MEDIA_MANIFEST,
        "config": blob("application/vnd.oci.image.config.v1+json", &config),
        "layers": [blob("application/vnd.oci.image.layer.v1.tar+zstd", &packed)],
    });
    content.blob(&config);
    content.blob(&packed);
    content.manifest("latest", MEDIA_MANIFEST, manifest.to_string().as_bytes());
    let (server, fixture) = (serve(&content), fixture());
    let error = chain(&fixture.pull(&server).unwrap_err());
    assert!(error.contains("looks like a bomb"), "{error}");
    fixture.assert_empty();
    let kept: u64 = fixture.partials().into_iter().map(|(_, bytes)| bytes).sum();
    assert!(
        kept <= u64::try_from(packed.len()).unwrap(),
        "{kept} bytes are kept"
    );
}

#[test]
fn a_pull_that_broke_is_gone_on_with() {
    let layers = large_layers();
    let content = content(&layers);
    let blob = digest(&gzip(&layers[1]));
    let cut = spoilt(&content, &blob, |bytes, stream| {
        // Always only the beginning, and nothing by ranges.
        head(stream, "200 OK", &[], bytes.len())?;
        stream.write_all(&bytes[..100_000])
    });
    let fixture = fixture();
    let error = fixture.pull(&cut).unwrap_err();
    assert!(chain(&error).contains("broke"), "{}", chain(&error));
    fixture.assert_empty();
    let kept = fixture
        .partials()
        .into_iter()
        .find(|(name, _)| *name == blob.hex());
    let (_, kept) = kept.expect("what was fetched is kept");
    assert_eq!(kept, 100_000);
    // The same repository somewhere else that is well.
    let server = serve(&content);
    fixture.pull(&server).unwrap();
    let again = server.requests_for(&blob.to_string());
    assert_eq!(again[0].header("range"), Some("bytes=100000-"));
    assert!(fixture.partials().is_empty());
    assert_eq!(fixture.resolves(&server).layers.len(), 3);
}

#[test]
fn a_damaged_partial_is_thrown_away() {
    let layers = large_layers();
    let content = content(&layers);
    let blob = digest(&gzip(&layers[0]));
    let length = content.blobs[&blob.to_string()].len();
    for damage in [vec![0; 5000], vec![0; length], vec![0; length + 1]] {
        let fixture = fixture();
        fs::write(
            fixture.directory.path().join("images/partial").join(blob.hex()),
            &damage,
        )
        .unwrap();
        let server = serve(&content);
        fixture.pull(&server).unwrap();
        assert_eq!(fixture.resolves(&server).layers.len(), 3);
        assert!(fixture.partials().is_empty());
    }
}

#[test]
fn pulls_at_the_same_time_fetch_once() {
    let layers = large_layers();
    let one = content(&layers);
    let both = Barrier::new(2);
    let (server, fixture) = (serve(&one), fixture());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let store = Store::open(fixture.directory.path()).unwrap();
                both.wait();
                store
                    .pull_with(client(), &request(&server, "linux/amd64"), &mut |_| {})
                    .unwrap();
            });
        }
    });
    for layer in &layers {
        assert_eq!(server.requests_for(&digest(&gzip(layer)).to_string()).len(), 1);
    }
    assert!(fixture.files("images/partial").is_empty());
}

#[test]
fn images_that_share_a_layer_fetch_it_once() {
    let layers = large_layers();
    let shared = digest(&gzip(&layers[1]));
    // Each waits with the answer for its own first layer until the other has asked too, so that both are under way.
    let others = [
        vec![layers[0].clone(), layers[1].clone()],
        vec![layers[2].clone(), layers[1].clone()],
    ];
    let asked = Arc::new(Barrier::new(2));
    let counts = Arc::new(AtomicUsize::new(0));
    let servers: Vec<Server> = others
        .iter()
        .map(|layers| {
            let (content, own, asked) = (
                content(layers),
                digest(&gzip(&layers[0])).to_string(),
                Arc::clone(&asked),
            );
            let (shared, counts) = (shared.to_string(), Arc::clone(&counts));
            Server::start(move |request: &Received, stream: &mut TcpStream| {
                if request.path.ends_with(&own) {
                    asked.wait();
                }
                if request.path.ends_with(&shared) {
                    counts.fetch_add(1, Ordering::SeqCst);
                }
                content.answer(request, stream)
            })
        })
        .collect();
    let fixture = fixture();
    thread::scope(|scope| {
        for server in &servers {
            let store = Store::open(fixture.directory.path()).unwrap();
            scope.spawn(move || {
                store
                    .pull_with(client(), &request(server, "linux/amd64"), &mut |_| {})
                    .unwrap()
            });
        }
    });
    assert_eq!(counts.load(Ordering::SeqCst), 1);
    for server in &servers {
        assert_eq!(fixture.resolves(server).layers.len(), 2);
    }
}

#[test]
fn the_same_layer_twice_is_one_blob() {
    let layer = tar(&[("a", b"a")]);
    let server = serve(&content(&[layer.clone(), layer.clone(), layer.clone()]));
    let fixture = fixture();
    fixture.pull(&server).unwrap();
    assert_eq!(server.requests_for(&digest(&gzip(&layer)).to_string()).len(), 1);
    assert_eq!(fixture.resolves(&server).layers.len(), 3);
}

#[test]
fn a_mirror_is_asked_first_and_the_registry_if_it_fails() {
    let good = serve(&content(&two_layers()));
    let empty = serve(&Content::default());
    let config: std::collections::BTreeMap<&str, Value> = [(
        "registry.example",
        json!({"mirrors": [format!("http://{}", empty.authority()), format!("http://{}/cache", good.authority())]}),
    )]
    .into();
    let registries: Registries = serde_json::from_value(json!(config)).unwrap();
    let request = PullRequest {
        reference: "registry.example/a/b".parse().unwrap(),
        platform: Platform::default(),
        registries: registries.clone(),
    };
    let fixture = fixture();
    fixture.store.pull_with(client(), &request, &mut |_| {}).unwrap();
    assert_eq!(empty.requests()[0].path, "/v2/a/b/manifests/latest");
    assert_eq!(good.requests()[0].path, "/v2/cache/a/b/manifests/latest");
    assert!(fixture.store.resolve("registry.example/a/b").is_ok());
}
