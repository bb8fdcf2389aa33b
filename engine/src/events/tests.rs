//! Events that are told, kept, cut, renamed, heard and chosen.

use super::*;

fn journal(directory: &Path) -> Journal {
    Journal {
        directory: directory.to_owned(),
    }
}

fn told(journal: &Journal, name: &str, action: &str) {
    journal.image("sha256:1", name, action, &BTreeMap::new());
}

/// Actions that are kept.
fn past(directory: &Path) -> Vec<String> {
    let mut listener = Listener::at(directory).unwrap();
    std::iter::from_fn(|| listener.next_past().unwrap())
        .map(|event| event.action)
        .collect()
}

/// Makes the file that grows as long as one that is full.
fn fill(directory: &Path) {
    let mut file = OpenOptions::new()
        .append(true)
        .open(directory.join(NAME))
        .unwrap();
    let filler = vec![b'x'; usize::try_from(FULL).unwrap()];
    file.write_all(&filler).unwrap();
    file.write_all(b"\n").unwrap();
}

#[test]
fn a_line_has_docker_s_names() {
    let directory = tempfile::tempdir().unwrap();
    let labels = BTreeMap::from([("tier".to_owned(), "front\n".to_owned())]);
    journal(directory.path()).image("debian:1", "debian", "pull", &labels);
    let text = fs::read_to_string(directory.path().join(NAME)).unwrap();
    let (beginning, times) = text.split_once(r#","time":"#).unwrap();
    assert_eq!(
        beginning,
        r#"{"status":"pull","id":"debian:1","Type":"image","Action":"pull","Actor":{"ID":"debian:1","Attributes":{"name":"debian","tier":"front\n"}},"scope":"local""#
    );
    assert!(
        times.contains(r#","timeNano":"#) && times.ends_with("}\n"),
        "{times}"
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(directory.path().join(NAME)).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_listener_hears_what_comes_across_rotations() {
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    told(&journal, "x", "before");
    let mut listener = Listener::at(directory.path()).unwrap();
    assert_eq!(listener.next_past().unwrap().unwrap().action, "before");
    assert_eq!(listener.next_past().unwrap(), None);
    for round in 0..3 {
        for action in [format!("a{round}"), format!("b{round}")] {
            told(&journal, "x", &action);
            assert_eq!(listener.next(None).unwrap().unwrap().action, action);
        }
        told(&journal, "x", "last");
        fill(directory.path());
        told(&journal, "x", "first");
        assert_eq!(listener.next(None).unwrap().unwrap().action, "last");
        assert_eq!(listener.next(None).unwrap().unwrap().action, "first");
    }
    assert_eq!(listener.next(Some(Instant::now())).unwrap(), None);
    assert_eq!(past(directory.path()), ["first", "a2", "b2", "last", "first"]);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn a_line_that_was_cut_short_is_skipped_and_takes_no_other_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let journal = journal(directory.path());
    let path = directory.path().join(NAME);
    told(&journal, "x", "one");
    told(&journal, "x", "two");
    let bytes = fs::read(&path).unwrap();
    for cut in [1, 2, 100] {
        fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
        assert_eq!(past(directory.path()), ["one"]);
        told(&journal, "x", "three");
        let expected: &[&str] = if cut == 1 {
            // All of it was there but for its end.
            &["one", "two", "three"]
        } else {
            &["one", "three"]
        };
        assert_eq!(past(directory.path()), expected, "{cut}");
    }
    fs::write(&path, b"\xff\n{}\n[]\n").unwrap();
    assert!(past(directory.path()).is_empty());
}

#[test]
fn many_writers_lose_nothing_while_files_are_renamed() {
    let directory = tempfile::tempdir().unwrap();
    let mut listener = Listener::at(directory.path()).unwrap();
    let name = "n".repeat(900);
    // More than fills a file, and less than two.
    let (writers, each) = (8, 180);
    thread::scope(|scope| {
        for writer in 0..writers {
            let (journal, name) = (journal(directory.path()), name.as_str());
            scope.spawn(move || {
                for number in 0..each {
                    told(&journal, name, &format!("{writer}/{number}"));
                }
            });
        }
    });
    let mut heard: Vec<Event> = Vec::new();
    while let Some(event) = listener.next(Some(Instant::now())).unwrap() {
        heard.push(event);
    }
    assert!(rotated::path(directory.path(), NAME, 1).exists());
    assert_eq!(heard.len(), writers * each);
    assert!(heard.is_sorted_by_key(|event| event.time_nano));
    for writer in 0..writers {
        let own = heard
            .iter()
            .filter_map(|event| event.action.strip_prefix(&format!("{writer}/")));
        assert!(own.eq((0..each).map(|number| number.to_string())));
    }
}

#[test]
fn who_cannot_write_goes_on() {
    told(&journal(Path::new("/nonexistent")), "x", "lost");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(NAME);
    let held = OpenOptions::new().create(true).append(true).open(&path).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let begun = Instant::now();
    told(&journal(directory.path()), "x", "lost");
    assert!(begun.elapsed() >= LOCK_LIMIT && past(directory.path()).is_empty());
}

#[test]
fn what_is_long_is_cut() {
    let directory = tempfile::tempdir().unwrap();
    let labels = BTreeMap::from([("long".to_owned(), "x".repeat(MOST_LINE))]);
    journal(directory.path()).image("1", &"ä".repeat(MOST_LINE), &"x".repeat(MOST_LINE), &labels);
    let event = Listener::at(directory.path())
        .unwrap()
        .next_past()
        .unwrap()
        .unwrap();
    let attributes = &event.actor.attributes;
    assert_eq!(
        (event.action.len(), attributes["name"].len(), attributes.len()),
        (MOST_VALUE, MOST_VALUE, 1)
    );
}

#[test]
fn filters_of_one_kind_are_alternatives() {
    let event = |kind: &str, id: &str, action: &str, attributes: &[(&str, &str)]| {
        let mut event = Event::new(kind, id, action);
        let attributes = attributes
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        event.actor.attributes = attributes.collect();
        event
    };
    let exec = event(
        "container",
        "abcdef",
        "exec_create: ps",
        &[("image", "r:5000/debian:1"), ("name", "web"), ("tier", "front")],
    );
    let pull = event("image", "debian:1", "pull", &[("name", "debian")]);
    let check = |filters: &[&str], fits: [bool; 2]| {
        let conditions = filters.iter().map(|text| text.parse().unwrap()).collect();
        let filters = Filters::new(conditions);
        assert_eq!([filters.fit(&exec), filters.fit(&pull)], fits, "{filters:?}");
    };
    check(&[], [true, true]);
    check(&["type=container"], [true, false]);
    check(&["type=container", "type=image"], [true, true]);
    check(&["type=container", "event=pull"], [false, false]);
    check(&["event=exec_create"], [true, false]);
    check(&["event=exec_create: ps"], [true, false]);
    check(&["event=exec"], [false, false]);
    check(&["container=abc"], [true, false]);
    check(&["container=/web"], [true, false]);
    check(&["container=we"], [false, false]);
    check(&["container=x", "container=web"], [true, false]);
    check(&["image=debian"], [false, true]);
    check(&["image=debian:1"], [false, true]);
    check(&["image=r:5000/debian"], [true, false]);
    check(&["image=r:5000/debian:1"], [true, false]);
    check(&["label=tier"], [true, false]);
    check(&["label=tier=front", "type=image"], [false, false]);
    check(&["label=tier", "label=colour"], [false, false]);
    for text in ["type=x", "colour=red", "event"] {
        assert!(text.parse::<Condition>().is_err(), "{text}");
    }
}
