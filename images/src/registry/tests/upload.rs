//! What is sent to registries that are not what they should be.

use std::sync::Mutex;

use super::*;
use crate::Digest;
use crate::registry::server::{Shared, take};
use crate::registry::upload::{LocalBlob, Target};
use crate::store::SendStep;

/// A registry that does something else where `trouble` answers.
fn registry(
    trouble: impl Fn(&Shared, &Received, &mut TcpStream) -> Option<io::Result<()>> + Send + Sync + 'static,
) -> (Server, Shared) {
    let taken = Shared::default();
    let state = Arc::clone(&taken);
    let server = bad(move |request, stream| match trouble(&state, request, stream) {
        Some(result) => result,
        None => take(&state, request, stream),
    });
    (server, taken)
}

fn digest() -> Digest {
    layer::digest(&bytes())
}

fn local(source: Option<&str>) -> LocalBlob {
    let bytes = bytes();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    LocalBlob {
        blob: BlobId {
            digest: layer::digest(&bytes),
            bytes: bytes.len() as u64,
        },
        file,
        source: source.map(str::to_owned),
    }
}

/// Sends a blob; the last step that was told, or the error.
fn send_as(server: &Server, client: &Client, source: Option<&str>) -> Result<Vec<SendStep>, Error> {
    let endpoint = Endpoint::of(&server.authority(), &client.registries);
    let target = Target::new(client, &endpoint, "a/b".to_owned());
    let steps = Mutex::new(Vec::new());
    target.send(&local(source), &AtomicBool::new(false), &|step| {
        steps.lock().unwrap().push(step);
    })?;
    Ok(steps.into_inner().unwrap())
}

fn send(server: &Server) -> Result<Vec<SendStep>, Error> {
    send_as(server, &client(), None)
}

/// Methods and paths without queries, as they came.
fn conversation(server: &Server) -> Vec<String> {
    let requests = server.requests().into_iter();
    requests
        .map(|request| {
            let path = request.path.split('?').next().unwrap();
            let path = path
                .trim_start_matches("/v2/a/b/")
                .replace(&digest().to_string(), "X");
            format!("{} {path}", request.method)
        })
        .collect()
}

fn whole(taken: &Shared) -> bool {
    taken.lock().unwrap().blobs.get(&digest().to_string()) == Some(&bytes())
}

#[test]
fn a_blob_is_sent_once() {
    let (server, taken) = registry(|_, _, _| None);
    let steps = send(&server).unwrap();
    assert_eq!(steps.last(), Some(&SendStep::Done));
    assert!(steps.contains(&SendStep::Sending {
        done: 0,
        total: 400_000
    }));
    assert!(whole(&taken));
    let expected = [
        "HEAD blobs/X",
        "POST blobs/uploads/",
        "PATCH /sessions/0",
        "PUT /sessions/0",
    ];
    assert_eq!(conversation(&server), expected);
    let patch = server.requests().remove(2);
    assert_eq!(patch.header("content-length"), Some("400000"));
    assert_eq!(patch.header("content-range"), None, "it is a stream, not a chunk");
    assert_eq!(send(&server).unwrap(), [SendStep::Exists]);
    assert_eq!(taken.lock().unwrap().bytes, 400_000);
}

/// Takes a part of the first PATCH, and breaks the connection.
fn break_once(taken: &Shared, request: &Received, stream: &mut TcpStream) -> Option<io::Result<()>> {
    let mut state = taken.lock().unwrap();
    (request.method == "PATCH" && state.bytes == 0).then(|| {
        let part = request.receive(stream, 100_000)?;
        state.bytes = part.len() as u64;
        state.sessions[0] = part;
        Ok(())
    })
}

#[test]
fn a_broken_upload_is_gone_on_with() {
    let (server, taken) = registry(break_once);
    let steps = send(&server).unwrap();
    assert!(steps.contains(&SendStep::Retrying));
    assert!(whole(&taken));
    assert_eq!(taken.lock().unwrap().bytes, 400_000, "nothing was sent twice");
    let range = server.requests().iter().find_map(|request| {
        let range = request.header("content-range")?;
        Some(range.to_owned())
    });
    assert_eq!(range.as_deref(), Some("100000-399999"));
    assert_eq!(
        conversation(&server)
            .iter()
            .filter(|line| line.starts_with("POST"))
            .count(),
        1
    );
}

#[test]
fn a_lost_session_is_begun_anew() {
    let check = |method: &'static str, status: &'static str, headers: &'static [&'static str]| {
        let (server, taken) = registry(move |taken, request, stream| {
            break_once(taken, request, stream).or_else(|| {
                let first = request.path.starts_with("/sessions/0");
                let resumes = method != "PATCH" || request.header("content-range").is_some();
                (request.method == method && first && resumes).then(|| reply(stream, status, headers, b""))
            })
        });
        send(&server).unwrap();
        assert!(whole(&taken), "{method} {status}");
        let posts = conversation(&server)
            .iter()
            .filter(|line| line.starts_with("POST"))
            .count();
        assert_eq!(posts, 2, "{method} {status} {headers:?}");
    };
    check("GET", "404 Not Found", &[]);
    check("GET", "416 Range Not Satisfiable", &[]);
    check("PATCH", "416 Range Not Satisfiable", &[]);
    check("PATCH", "404 Not Found", &[]);
    // More than there is; and a part that it does not have, which the digest shows in the end.
    check("GET", "204 No Content", &["Range: 0-99999999"]);
    check("GET", "204 No Content", &["Range: 0-49999"]);
    check("PATCH", "202 Accepted", &["Range: 0-5"]);
    check("PATCH", "202 Accepted", &["Range: 0-99999999"]);
    // No offset at all: from the beginning, on top of what is there.
    check("GET", "204 No Content", &["Range: lots"]);
}

#[test]
fn trouble_with_an_upload_ends() {
    let tries = TRIES as usize;
    // Broken whatever happens, and with nothing kept.
    let (server, _) = registry(|_, request, _| (request.method == "PATCH").then_some(Ok(())));
    assert!(send(&server).is_err());
    let patches = conversation(&server)
        .iter()
        .filter(|line| line.starts_with("PATCH"))
        .count();
    assert_eq!(patches, tries);
    // A session that is always lost.
    let (server, _) = registry(|_, request, stream| {
        (request.method == "PATCH").then(|| reply(stream, "404 Not Found", &[], b""))
    });
    let error = send(&server).unwrap_err().to_string();
    assert!(error.contains("answered 404"), "{error}");
    // Busy for a moment: it goes on.
    let count = AtomicUsize::new(0);
    let (server, taken) = registry(move |_, request, stream| {
        (request.method == "PATCH" && count.fetch_add(1, Ordering::SeqCst) < 2)
            .then(|| reply(stream, "500 Oops", &[], b""))
    });
    send(&server).unwrap();
    assert!(whole(&taken));
    // The end is reached, and the answer lost.
    let count = AtomicUsize::new(0);
    let (server, taken) = registry(move |taken, request, stream| {
        if request.method == "GET" {
            return Some(reply(stream, "404 Not Found", &[], b""));
        }
        (request.method == "PUT" && count.fetch_add(1, Ordering::SeqCst) == 0).then(|| {
            let mut state = taken.lock().unwrap();
            let bytes = std::mem::take(&mut state.sessions[0]);
            state.blobs.insert(digest().to_string(), bytes);
            Ok(())
        })
    });
    send(&server).unwrap();
    assert_eq!(taken.lock().unwrap().bytes, 400_000, "it was not sent again");
}

#[test]
fn a_registry_that_does_not_want_a_blob_is_not_sent_it() {
    let check = |status: &'static str, body: &'static str, expected: &str, hint: &str| {
        let (server, taken) = registry(move |_, request, stream| {
            (request.method == "PATCH").then(|| reply(stream, status, &[], body.as_bytes()))
        });
        let error = send(&server).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.push_hint().unwrap_or_default().contains(hint), "{error}");
        assert_eq!(taken.lock().unwrap().bytes, 0);
        let patches = conversation(&server)
            .iter()
            .filter(|line| line.starts_with("PATCH"))
            .count();
        assert_eq!(patches, 1, "{status}");
    };
    check("413 Content Too Large", "", "answered 413", "limits how large");
    let denied = r#"{"errors":[{"code":"DENIED","message":"quota"}]}"#;
    check(
        "403 Forbidden",
        denied,
        "does not give access: quota",
        "rvm login 127.0.0.1",
    );
    check("302 Found", "", "answered 302", "");
}

#[test]
fn digests_decide_at_the_end() {
    let put = |status: &'static str, header: &'static str, body: &'static [u8]| {
        registry(move |_, request, stream| {
            (request.method == "PUT").then(|| reply(stream, status, &[header], body))
        })
    };
    let other =
        "Docker-Content-Digest: sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let (server, _) = put("201 Created", other, b"");
    assert!(matches!(send(&server), Err(Error::ClaimedDigest { .. })));
    let (server, taken) = put(
        "400 Bad Request",
        "X: y",
        br#"{"errors":[{"message":"provided digest did not match"}]}"#,
    );
    let error = send(&server).unwrap_err().to_string();
    assert!(error.contains("did not match"), "{error}");
    assert_eq!(
        taken.lock().unwrap().bytes,
        400_000,
        "it is not sent over and over"
    );
}

#[test]
fn sessions_are_where_they_may_be() {
    let to = |location: String| {
        registry(move |_, request, stream| {
            if request.header("authorization").is_none() {
                let challenge = "WWW-Authenticate: Basic realm=\"x\"";
                return Some(reply(stream, "401 Unauthorized", &[challenge], b""));
            }
            let header = format!("Location: {location}");
            (request.method == "POST").then(|| reply(stream, "202 Accepted", &[&header], b""))
        })
    };
    let (elsewhere, taken) = registry(|_, _, _| None);
    taken.lock().unwrap().sessions.push(Vec::new());
    let check = |location: &str, expected: &str| {
        let (server, _) = to(location.to_owned());
        let (client, _directory) = with_password(&server);
        match send_as(&server, &client, None) {
            Ok(_) => assert_eq!(expected, "", "{location}"),
            Err(error) => assert!(
                error.to_string().contains(expected) && !expected.is_empty(),
                "{location}: {error}"
            ),
        }
    };
    check("file:///etc/passwd", "away from HTTP");
    check("http://registry.example/upload", "plain HTTP");
    check("https://user:secret@registry.example/", "has credentials");
    check(
        &format!("http://{}/sessions/0?state=x", elsewhere.authority()),
        "",
    );
    assert!(whole(&taken));
    for request in elsewhere.requests() {
        assert_eq!(request.header("authorization"), None, "{}", request.method);
    }
    let (server, _) = registry(|_, request, stream| {
        (request.method == "POST").then(|| reply(stream, "202 Accepted", &[], b""))
    });
    assert!(matches!(send(&server), Err(Error::NoLocation(_))));
}

#[test]
fn a_redirect_of_an_upload_stays_an_upload() {
    let (elsewhere, taken) = registry(|_, _, _| None);
    taken.lock().unwrap().sessions.push(Vec::new());
    let location = format!("Location: http://{}/sessions/0?state=x", elsewhere.authority());
    let (server, _) = registry(move |_, request, stream| {
        (request.method == "PATCH").then(|| reply(stream, "307 Temporary Redirect", &[&location], b""))
    });
    let (client, _directory) = with_password(&server);
    send_as(&server, &client, None).unwrap();
    assert!(whole(&taken));
    assert!(
        elsewhere
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
}

#[test]
fn another_repository_s_blob_is_taken_over() {
    let check = |status: &'static str, expected: &SendStep, sent: u64| {
        let (server, taken) = registry(move |_, request, stream| {
            (request.path.contains("mount=") && status != "202 Accepted")
                .then(|| reply(stream, status, &[], b""))
        });
        let steps = send_as(&server, &client(), Some("c/d")).unwrap();
        assert_eq!(steps.last(), Some(expected), "{status}");
        assert_eq!(taken.lock().unwrap().bytes, sent, "{status}");
        let mount = server.requests_for("mount=").remove(0);
        let wanted = format!("/v2/a/b/blobs/uploads/?mount={}&from=c/d", digest());
        assert_eq!((mount.method.as_str(), mount.path), ("POST", wanted));
    };
    check("201 Created", &SendStep::Mounted, 0);
    check("202 Accepted", &SendStep::Done, 400_000);
    check("405 Method Not Allowed", &SendStep::Done, 400_000);
    check("403 Forbidden", &SendStep::Done, 400_000);
}

#[test]
fn a_token_is_for_pushing() {
    let server = with_tokens(|request, stream| {
        if request.path.contains("pull%2Cpush") {
            return reply(stream, "403 Forbidden", &[], br#"{"details":"read only"}"#);
        }
        reply(stream, "200 OK", &[], br#"{"token":"good"}"#)
    });
    let (client, _directory) = with_password(&server);
    let error = send_as(&server, &client, None).unwrap_err();
    assert!(
        error.to_string().contains("does not give access: read only"),
        "{error}"
    );
    let hint = error.push_hint().unwrap();
    assert!(
        hint.contains(&format!("rvm login {}", server.authority())),
        "{hint}"
    );
    // A token that is given and not enough.
    let server = with_tokens(|_, stream| reply(stream, "200 OK", &[], br#"{"token":"poor"}"#));
    assert!(matches!(
        send_as(&server, &super::client(), None),
        Err(Error::Denied { .. })
    ));
    let question = server.requests_for("/token").remove(0);
    assert!(
        question.path.contains("scope=repository:a/b:pull%2Cpush"),
        "{}",
        question.path
    );
}

#[test]
fn answers_to_uploads_are_not_read_without_end() {
    for method in ["HEAD", "POST", "PATCH", "PUT"] {
        let (server, _) = registry(move |_, request, stream| {
            (request.method == method).then(|| {
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n\r\n")?;
                loop {
                    stream.write_all(&[b' '; 65536])?;
                }
            })
        });
        let started = Instant::now();
        let result = send(&server);
        // To that question the status is the whole answer.
        assert_eq!(result.is_ok(), method == "HEAD", "{method}");
        assert!(started.elapsed() < Duration::from_secs(10), "{method}");
    }
    let (server, _) = registry(|_, request, stream| {
        (request.method == "PATCH").then(|| {
            request.receive(stream, u64::MAX)?;
            stall(stream)
        })
    });
    let error = send(&server).unwrap_err().to_string();
    assert!(error.contains("in time"), "{error}");
}

#[test]
fn an_upload_that_was_stopped_ends() {
    let (server, taken) = registry(|_, _, _| None);
    let client = client();
    let endpoint = Endpoint::of(&server.authority(), &client.registries);
    let target = Target::new(&client, &endpoint, "a/b".to_owned());
    let result = target.send(&local(None), &AtomicBool::new(true), &|_| ());
    assert!(matches!(result, Err(Error::Stopped)));
    assert!(!whole(&taken));
}

#[test]
fn manifests_are_taken_as_they_are() {
    let answer = |status: &'static str, header: &'static str, body: &'static [u8]| {
        let server = bad(move |_, stream| reply(stream, status, &[header], body));
        let client = client();
        let endpoint = Endpoint::of(&server.authority(), &client.registries);
        let target = Target::new(&client, &endpoint, "a/b".to_owned());
        let bytes = manifest();
        let result = target.put_manifest("1", MEDIA_MANIFEST, &layer::digest(&bytes), &bytes);
        (result, server.requests().remove(0))
    };
    let (result, request) = answer("201 Created", "X: y", b"");
    result.unwrap();
    assert_eq!(
        (request.method.as_str(), request.path.as_str()),
        ("PUT", "/v2/a/b/manifests/1")
    );
    assert_eq!(request.header("content-type"), Some(MEDIA_MANIFEST));
    assert_eq!(request.body.as_bytes(), manifest());
    let other =
        "Docker-Content-Digest: sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert!(matches!(
        answer("201 Created", other, b"").0,
        Err(Error::ClaimedDigest { .. })
    ));
    let unknown = br#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN"}]}"#;
    let error = answer("400 Bad Request", "X: y", unknown)
        .0
        .unwrap_err()
        .to_string();
    assert!(error.contains("MANIFEST_BLOB_UNKNOWN"), "{error}");
    assert!(matches!(answer("200 OK", HTML, b"<html>").0, Err(Error::Html(_))));
}
