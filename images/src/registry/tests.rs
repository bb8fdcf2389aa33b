//! What a client says to registries that are not what they should be.

mod upload;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::blob::{Place, Places, RemoteBlob};
use super::client::{Client, Identity, Request, TRIES};
use super::config::Registries;
use super::endpoint::Endpoint;
use super::error::Error;
use super::manifest::resolve;
use super::server::{Content, Received, Server, TIMING, blob, client, head, reply, stall};
use crate::document::{MEDIA_CONFIG, MEDIA_INDEX, MEDIA_MANIFEST};
use crate::layer::{self, BlobId};
use crate::platform::Platform;

const HTML: &str = "Content-Type: text/html; charset=utf-8";

fn manifest() -> Vec<u8> {
    let config = json!({"mediaType": MEDIA_CONFIG, "digest": layer::digest(b"{}"), "size": 2});
    json!({"schemaVersion": 2, "mediaType": MEDIA_MANIFEST, "config": config, "layers": []})
        .to_string()
        .into_bytes()
}

/// What comes of asking a server for `a/b:latest`.
fn ask(server: &Server, client: &Client) -> Result<(), Error> {
    let reference = format!("{}/a/b", server.authority()).parse().unwrap();
    let endpoint = Endpoint::of(&server.authority(), &client.registries);
    resolve(client, &endpoint, &reference, &Platform::default()).map(drop)
}

fn refused(server: &Server, client: &Client, expected: &str) {
    let text = ask(server, client).expect_err("must be refused").to_string();
    assert!(text.contains(expected), "{text:?} should contain {expected:?}");
}

/// A server of which only the answers for manifests are bad.
fn bad(answer: impl Fn(&Received, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Server {
    Server::start(move |request, stream| {
        if request.path == "/v2/" {
            reply(stream, "200 OK", &[], b"{}")
        } else {
            answer(request, stream)
        }
    })
}

fn document(media_type: &str, bytes: Vec<u8>) -> Server {
    let header = format!("Content-Type: {media_type}");
    bad(move |_, stream| reply(stream, "200 OK", &[&header], &bytes))
}

#[test]
fn a_good_registry_is_understood() {
    let mut content = Content::default();
    content.manifest("latest", MEDIA_MANIFEST, &manifest());
    let server = Server::start(move |request, stream| content.answer(request, stream));
    ask(&server, &client()).unwrap();
    let request = server.requests().remove(0);
    assert_eq!(
        (request.method.as_str(), request.path.as_str()),
        ("GET", "/v2/a/b/manifests/latest")
    );
    assert!(request.header("accept").unwrap().contains(MEDIA_INDEX));
    assert_eq!(request.header("authorization"), None);
}

#[test]
fn documents_are_what_they_say() {
    let outline = |text: &str| document(MEDIA_MANIFEST, text.as_bytes().to_vec());
    refused(&document("text/html", b"<html>".to_vec()), &client(), "web page");
    refused(&outline("no json"), &client(), "cannot be used");
    refused(&outline(r#"{"schemaVersion":1}"#), &client(), "first schema");
    refused(
        &outline(r#"{"layers":[],"manifests":[]}"#),
        &client(),
        "something else",
    );
    refused(
        &outline(&format!(r#"{{"mediaType":"{MEDIA_INDEX}","layers":[]}}"#)),
        &client(),
        "says that it is",
    );
    refused(&document(MEDIA_INDEX, manifest()), &client(), "says that it is");
    refused(
        &document("application/x", b"{}".to_vec()),
        &client(),
        "no image but",
    );
    let chart = json!({"schemaVersion": 2, "layers": [],
        "config": {"mediaType": "application/helm", "digest": layer::digest(b""), "size": 0}});
    refused(&outline(&chart.to_string()), &client(), "application/helm");
    let layer = json!({"digest": layer::digest(b""), "size": 0});
    let many = json!({"schemaVersion": 2, "config": layer, "layers": vec![layer; 30_000]});
    let error = ask(&outline(&many.to_string()), &client()).err().unwrap();
    assert!(matches!(
        error,
        Error::Document {
            source: crate::document::Error::Layers { count: 30_000 },
            ..
        }
    ));
    let claimed = format!("Docker-Content-Digest: {}", layer::digest(b"other"));
    let kind = format!("Content-Type: {MEDIA_MANIFEST}");
    let server = bad(move |_, stream| reply(stream, "200 OK", &[&kind, &claimed], &manifest()));
    refused(&server, &client(), "the registry says");
}

#[test]
fn what_a_digest_names_is_checked() {
    let server = document(MEDIA_MANIFEST, manifest());
    let client = client();
    let endpoint = Endpoint::of(&server.authority(), &client.registries);
    let get = |digest| {
        let reference = format!("{}/a@{digest}", server.authority()).parse().unwrap();
        resolve(&client, &endpoint, &reference, &Platform::default())
    };
    assert!(get(layer::digest(&manifest())).is_ok());
    assert!(matches!(get(layer::digest(b"x")), Err(Error::Document { .. })));
}

#[test]
fn indexes_lead_to_one_image_or_none() {
    let check = |platform: serde_json::Value, expected: &str| {
        let manifest = manifest();
        let mut content = Content::default();
        let digest = content.manifest("inner", MEDIA_MANIFEST, &manifest);
        let entry = json!({"mediaType": MEDIA_MANIFEST, "digest": digest, "size": manifest.len(), "platform": platform});
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        content.manifest("latest", MEDIA_INDEX, index.as_bytes());
        let server = Server::start(move |request, stream| content.answer(request, stream));
        match ask(&server, &client()) {
            Ok(()) => assert_eq!(expected, ""),
            Err(error) => assert!(
                error.to_string().contains(expected) && !expected.is_empty(),
                "{error}"
            ),
        }
    };
    check(json!({"os": "linux", "architecture": "amd64"}), "");
    check(
        json!({"os": "linux", "architecture": "arm64", "variant": "v8"}),
        "only for linux/arm64/v8",
    );
    check(json!({"os": "linux", "architecture": "s390x"}), "linux/s390x");
    // An index that another one names, and so on; each would have to have the digest of the next.
    let mut content = Content::default();
    let mut inner = content.manifest("inner", MEDIA_MANIFEST, &manifest());
    let mut size = manifest().len();
    for name in ["5", "4", "3", "2", "latest"] {
        let media_type = if name == "5" { MEDIA_MANIFEST } else { MEDIA_INDEX };
        let entry = json!({"mediaType": media_type, "digest": inner, "size": size});
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        size = index.len();
        inner = content.manifest(name, MEDIA_INDEX, index.as_bytes());
    }
    let server = Server::start(move |request, stream| content.answer(request, stream));
    refused(&server, &client(), "nested too deeply");
}

#[test]
fn nothing_is_read_without_end() {
    let pour = |stream: &mut TcpStream| loop {
        stream.write_all(&[b' '; 65536])?;
    };
    let kind = format!("Content-Type: {MEDIA_MANIFEST}");
    let server = bad(move |_, stream| {
        head(stream, "200 OK", &[&kind], 100 << 20)?;
        pour(stream)
    });
    refused(&server, &client(), "more than 4194304 bytes");
    let server = bad(move |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")?;
        pour(stream)
    });
    refused(&server, &client(), "more than 4194304 bytes");
    let server = bad(move |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
        loop {
            stream.write_all(&[b'X'; 4096])?;
        }
    });
    refused(&server, &client(), "cannot reach");
}

#[test]
fn redirects_are_followed_with_care() {
    let storage = Server::start(|_, stream| {
        reply(
            stream,
            "200 OK",
            &[&format!("Content-Type: {MEDIA_MANIFEST}")],
            &manifest(),
        )
    });
    let to = |location: String| {
        bad(move |request, stream| {
            if request.header("authorization").is_none() {
                return reply(
                    stream,
                    "401 Unauthorized",
                    &["WWW-Authenticate: Basic realm=\"x\""],
                    b"",
                );
            }
            reply(
                stream,
                "307 Temporary Redirect",
                &[&format!("Location: {location}")],
                b"",
            )
        })
    };
    let check = |location: &str, expected: &str| {
        let server = to(location.to_owned());
        let (client, _directory) = with_password(&server);
        match ask(&server, &client) {
            Ok(()) => assert_eq!(expected, "", "{location}"),
            Err(error) => assert!(
                error.to_string().contains(expected) && !expected.is_empty(),
                "{location}: {error}"
            ),
        }
    };
    check(&format!("http://{}/blob?signature=1", storage.authority()), "");
    let seen = storage.requests().remove(0);
    assert_eq!(
        (seen.path.as_str(), seen.header("authorization")),
        ("/blob?signature=1", None)
    );
    check("/again", "redirects more than 5 times");
    check("file:///etc/passwd", "away from HTTP");
    check("http://registry.example/x", "plain HTTP");
    check("https://[", "malformed");
}

#[test]
fn trouble_is_waited_out_and_told() {
    let count = Arc::new(AtomicUsize::new(0));
    let after = |failures: usize, status: &'static str, headers: &'static [&'static str]| {
        let count = Arc::new(AtomicUsize::new(0));
        bad(move |_, stream| {
            if count.fetch_add(1, Ordering::SeqCst) < failures {
                return reply(
                    stream,
                    status,
                    headers,
                    br#"{"errors":[{"message":"slow down"}]}"#,
                );
            }
            reply(
                stream,
                "200 OK",
                &[&format!("Content-Type: {MEDIA_MANIFEST}")],
                &manifest(),
            )
        })
    };
    for status in ["429 Too Many Requests", "503 Service Unavailable", "500 Oops"] {
        let server = after(2, status, &[]);
        ask(&server, &client()).unwrap();
        assert_eq!(server.requests().len(), 3);
    }
    let server = after(usize::MAX, "503 Busy", &[]);
    refused(&server, &client(), "answered 503: slow down");
    assert_eq!(server.requests().len(), TRIES as usize);
    let server = after(1, "429 Too Many Requests", &["Retry-After: 1"]);
    let started = Instant::now();
    ask(&server, &client()).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    refused(
        &after(9, "429 Too Many Requests", &["Retry-After: 3600"]),
        &client(),
        "wait for 3600 seconds",
    );
    let server = after(1, "404 Not Found", &[]);
    refused(&server, &client(), "has no image");
    assert_eq!(server.requests().len(), 1, "that is no trouble");
    // One that says nothing at all.
    let silent = bad(move |_, stream| {
        count.fetch_add(1, Ordering::SeqCst);
        stall(stream)
    });
    refused(&silent, &client(), "did not answer in time");
}

/// A client with the password "me:secret" for a server.
fn with_password(server: &Server) -> (Client, tempfile::TempDir) {
    with_entry(server, &json!({"auth": "bWU6c2VjcmV0"}))
}

fn with_entry(server: &Server, entry: &serde_json::Value) -> (Client, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, json!({"auths": {server.authority(): entry}}).to_string()).unwrap();
    (
        Client::with(Registries::default(), TIMING, Identity::File(path)),
        directory,
    )
}

/// A registry whose tokens a server at the same address gives out.
fn with_tokens(
    token: impl Fn(&Received, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
) -> Server {
    bad(move |request, stream| {
        if request.path.starts_with("/token") {
            return token(request, stream);
        }
        if request.header("authorization") == Some("Bearer good") {
            return reply(
                stream,
                "200 OK",
                &[&format!("Content-Type: {MEDIA_MANIFEST}")],
                &manifest(),
            );
        }
        let host = request.header("host").unwrap_or_default();
        let challenge =
            format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"a registry\"");
        reply(
            stream,
            "401 Unauthorized",
            &[&challenge],
            br#"{"errors":[{"message":"who are you"}]}"#,
        )
    })
}

#[test]
fn tokens_are_asked_for_once() {
    let server = with_tokens(|_, stream| reply(stream, "200 OK", &[], br#"{"token":"good"}"#));
    let (client, _directory) = with_password(&server);
    ask(&server, &client).unwrap();
    ask(&server, &client).unwrap();
    let questions = server.requests_for("/token");
    assert_eq!(questions.len(), 1);
    assert_eq!(
        questions[0].path,
        "/token?service=a%20registry&scope=repository:a/b:pull&account=me"
    );
    assert_eq!(questions[0].header("authorization"), Some("Basic bWU6c2VjcmV0"));
    // A refresh token goes to the token server alone, in a form.
    let (client, _directory) = with_entry(&server, &json!({"identitytoken": "refresh", "auth": ""}));
    ask(&server, &client).unwrap();
    let question = server.requests_for("/token").remove(1);
    assert_eq!(
        (question.method.as_str(), question.path.as_str()),
        ("POST", "/token")
    );
    assert!(
        question
            .body
            .contains("grant_type=refresh_token&refresh_token=refresh"),
        "{}",
        question.body
    );
}

#[test]
fn bad_token_servers() {
    let check =
        |answer: &'static str, status: &'static str, headers: &'static [&'static str], expected: &str| {
            let server = with_tokens(move |_, stream| reply(stream, status, headers, answer.as_bytes()));
            refused(&server, &client(), expected);
            let (client, _directory) = with_password(&server);
            assert!(ask(&server, &client).is_err());
        };
    check(
        r#"{"token":"bad"}"#,
        "200 OK",
        &[],
        "does not give access: who are you",
    );
    check("{}", "200 OK", &[], "no usable token");
    check(r#"{"token":"a\r\nHost: x"}"#, "200 OK", &[], "no usable token");
    check("<html>", "200 OK", &[HTML], "web page");
    check("", "401 Unauthorized", &[], "does not give access");
    check(
        "",
        "307 Temporary Redirect",
        &["Location: file:///etc/passwd"],
        "away from HTTP",
    );
    let server = with_tokens(|_, stream| {
        head(stream, "200 OK", &[], 1 << 30)?;
        loop {
            stream.write_all(&[b' '; 65536])?;
        }
    });
    refused(&server, &client(), "more than 65536 bytes");
    let server = with_tokens(|_, stream| stall(stream));
    refused(&server, &client(), "did not answer in time");
}

#[test]
fn challenges_that_cannot_be_met() {
    let with =
        |challenge: &'static str| bad(move |_, stream| reply(stream, "401 Unauthorized", &[challenge], b""));
    let check = |challenge: &'static str, expected: &str| {
        let server = with(challenge);
        refused(&server, &client(), expected);
        assert!(server.requests().len() <= 2, "it was asked again and again");
    };
    check("WWW-Authenticate: Basic realm=\"x\"", "does not give access");
    check("WWW-Authenticate: Negotiate", "kind of authentication");
    check("X-Nothing: here", "kind of authentication");
    check(
        "WWW-Authenticate: Bearer realm=\"http://tokens.example/\"",
        "plain HTTP",
    );
    check(
        "WWW-Authenticate: Bearer realm=\"file:///etc/passwd\"",
        "no address",
    );
    check("WWW-Authenticate: Bearer realm=\"\"", "no address");
    let server = with("WWW-Authenticate: Basic realm=\"x\"");
    let (client, _directory) = with_password(&server);
    refused(&server, &client, "does not accept the credentials");
    assert_eq!(server.requests().len(), 2);
}

fn bytes() -> Vec<u8> {
    (0..100_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn place(server: &Server, client: &Client) -> Place {
    Place {
        endpoint: Arc::new(Endpoint::of(&server.authority(), &client.registries)),
        repository: "a/b".to_owned(),
    }
}

fn only(server: &Server, client: &Client) -> Places {
    Places {
        first: place(server, client),
        then: None,
    }
}

/// Reads a whole blob from a server.
fn fetch(server: &Server, offset: u64) -> io::Result<Vec<u8>> {
    let client = Arc::new(client());
    let bytes = bytes();
    let id = BlobId {
        digest: layer::digest(&bytes),
        bytes: u64::try_from(bytes.len()).unwrap(),
    };
    let remote = RemoteBlob::new(&client, &only(server, &client), id);
    let mut all = bytes[..usize::try_from(offset).unwrap()].to_vec();
    remote
        .read(offset, &AtomicBool::new(false), &|| ())
        .read_to_end(&mut all)?;
    Ok(all)
}

#[test]
fn a_blob_survives_broken_connections() {
    let all = bytes();
    // Each connection brings a part and then ends, or stalls.
    for stalls in [false, true] {
        let content = all.clone();
        let count = AtomicUsize::new(0);
        let server = bad(move |request, stream| {
            let range = request
                .header("range")
                .and_then(|range| range.strip_prefix("bytes="));
            let first = range.map_or(0, |range| range.trim_end_matches('-').parse::<usize>().unwrap());
            if count.fetch_add(1, Ordering::SeqCst) >= 2 {
                return blob(request, stream, &content);
            }
            let range = format!(
                "Content-Range: bytes {first}-{}/{}",
                content.len() - 1,
                content.len()
            );
            let status = if first == 0 {
                "200 OK"
            } else {
                "206 Partial Content"
            };
            head(stream, status, &[&range], content.len() - first)?;
            stream.write_all(&content[first..first + 100_000])?;
            if stalls { stall(stream) } else { Ok(()) }
        });
        assert!(fetch(&server, 0).unwrap() == all);
        let ranges: Vec<_> = server
            .requests()
            .iter()
            .map(|request| request.header("range").map(str::to_owned))
            .collect();
        assert_eq!(
            ranges,
            [
                None,
                Some("bytes=100000-".to_owned()),
                Some("bytes=200000-".to_owned())
            ]
        );
    }
}

#[test]
fn a_blob_is_begun_anew_where_there_are_no_ranges() {
    let all = bytes();
    for status in ["200 OK", "416 Range Not Satisfiable"] {
        let content = all.clone();
        let server = bad(move |request, stream| match request.header("range") {
            Some(_) if status != "200 OK" => reply(stream, status, &[], b""),
            _ => reply(stream, "200 OK", &[], &content),
        });
        assert!(fetch(&server, 150_000).unwrap() == all);
    }
}

#[test]
fn bad_blobs() {
    let check = |answer: fn(&mut TcpStream) -> io::Result<()>, expected: &str| {
        let error = fetch(&bad(move |_, stream| answer(stream)), 4096)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error:?} should contain {expected:?}");
    };
    check(|stream| reply(stream, "200 OK", &[HTML], b"<html>"), "web page");
    check(
        |stream| reply(stream, "200 OK", &[], b"short"),
        "has 5 bytes, not 400000",
    );
    check(
        |stream| head(stream, "200 OK", &[], 1 << 40),
        "has 1099511627776 bytes",
    );
    check(
        |stream| {
            head(
                stream,
                "206 Partial",
                &["Content-Range: bytes 0-399999/400000"],
                400_000,
            )
        },
        "another part",
    );
    check(
        |stream| head(stream, "206 Partial", &[], 400_000 - 4096),
        "another part",
    );
    check(|stream| reply(stream, "404 Not Found", &[], b""), "answered 404");
    check(|stream| reply(stream, "204 No Content", &[], b""), "answered 204");
    // It ends at once, every time.
    check(
        |stream| {
            head(
                stream,
                "206 Partial",
                &["Content-Range: bytes 4096-399999/400000"],
                400_000 - 4096,
            )
        },
        "broke",
    );
    // More than the manifest says is not read.
    let server = bad(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        stream.write_all(&bytes())?;
        loop {
            stream.write_all(&[0; 65536])?;
        }
    });
    assert!(fetch(&server, 0).unwrap() == bytes());
}

#[test]
fn a_blob_that_a_mirror_lacks_is_elsewhere() {
    let all = bytes();
    let lacks = bad(|_, stream| reply(stream, "404 Not Found", &[], b""));
    let cuts = bad(|request, stream| match request.header("range") {
        None => {
            head(stream, "200 OK", &[], bytes().len())?;
            stream.write_all(&bytes()[..100_000])
        }
        Some(_) => reply(stream, "403 Forbidden", &[], b""),
    });
    let has = bad(|request, stream| blob(request, stream, &bytes()));
    let client = Arc::new(client());
    let id = BlobId {
        digest: layer::digest(&all),
        bytes: u64::try_from(all.len()).unwrap(),
    };
    let read = |first: &Server, then: &Server| {
        let places = Places {
            first: place(first, &client),
            then: Some(place(then, &client)),
        };
        let remote = RemoteBlob::new(&client, &places, id);
        let mut read = Vec::new();
        let stop = AtomicBool::new(false);
        let result = remote.read(0, &stop, &|| ()).read_to_end(&mut read);
        result.map(|_| read)
    };
    assert!(read(&lacks, &has).unwrap() == all);
    assert!(read(&cuts, &has).unwrap() == all);
    let ranges: Vec<_> = has
        .requests()
        .iter()
        .map(|request| request.header("range").map(str::to_owned))
        .collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".to_owned())]);
    // The last one's error is the one that counts.
    let error = read(&cuts, &lacks).unwrap_err().to_string();
    assert!(error.contains("answered 404"), "{error}");
}

#[test]
fn a_reader_that_was_stopped_asks_nothing() {
    let server = bad(|_, stream| reply(stream, "200 OK", &[], &bytes()));
    let client = Arc::new(client());
    let id = BlobId {
        digest: layer::digest(b""),
        bytes: 1,
    };
    let remote = RemoteBlob::new(&client, &only(&server, &client), id);
    let stop = AtomicBool::new(true);
    let error = remote.read(0, &stop, &|| ()).read(&mut [0; 9]).unwrap_err();
    assert!(error.to_string().contains("another layer"), "{error}");
    assert!(server.requests().is_empty());
}

#[test]
fn nobody_is_there() {
    let server = Server::start(|_, stream| reply(stream, "200 OK", &[], b""));
    let authority = server.authority();
    drop(server);
    let client = client();
    let endpoint = Endpoint::of(&authority, &client.registries);
    let error = client.send(&endpoint, &Request::get("", "")).err().unwrap();
    assert!(error.to_string().contains("refused"), "{error}");
}
