//! Tests of the store: names, owners, and what is left by who was killed.

use super::*;
use crate::record::{ImageReference, Isolation, Settings, now_ms};
use crate::restart::Restarts;

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(
        Some(directory.path().join("root")),
        Some(directory.path().join("run")),
    )
    .unwrap();
    (directory, Store::new(layout))
}

fn record(reservation: &Reservation, auto_remove: bool, state: State) -> Record {
    Record {
        version: VERSION,
        id: reservation.id.clone(),
        name: reservation.name.clone(),
        isolation: Isolation::Container,
        image: ImageReference {
            id: "sha256:0".into(),
            name: "test".into(),
        },
        layers: Vec::new(),
        command: vec!["true".into()],
        created_ms: now_ms(),
        auto_remove,
        open_stdin: false,
        machine: None,
        settings: Settings::default(),
        mounts: crate::mounts::Mounts::default(),
        restarts: Restarts::default(),
        stopped: false,
        state,
    }
}

fn make(store: &Store, name: &str, auto_remove: bool, state: State) -> (String, Owned) {
    let reservation = store.reserve(Some(name)).unwrap();
    let record = record(&reservation, auto_remove, state);
    reservation.owned.write_record(&record).unwrap();
    (reservation.id, reservation.owned)
}

#[test]
fn a_name_is_taken_until_its_container_is_removed() {
    let (_directory, store) = store();
    let (id, owned) = make(&store, "web", false, State::Created);
    assert!(matches!(store.reserve(Some("web")), Err(Error::NameTaken(_))));
    assert!(matches!(store.reserve(Some("../x")), Err(Error::NameInvalid(_))));
    let record = store.find("web").unwrap();
    assert_eq!(record.id, id);
    store.remove(&owned, &record, false).unwrap();
    assert!(matches!(store.find("web"), Err(Error::NotFound(_))));
    store.reserve(Some("web")).unwrap();
}

#[test]
fn a_failed_reservation_leaves_nothing() {
    let (_directory, store) = store();
    let (_, _owned) = make(&store, "web", false, State::Created);
    assert!(store.reserve(Some("web")).is_err());
    assert_eq!(fs::read_dir(store.layout.containers()).unwrap().count(), 1);
}

#[test]
fn containers_are_found_by_unique_beginnings() {
    let (_directory, store) = store();
    let (first, _a) = make(&store, "one", false, State::Created);
    let (_, _b) = make(&store, "two", false, State::Created);
    assert_eq!(store.find(&first[..SHORT]).unwrap().name, "one");
    assert_eq!(store.find(&first).unwrap().name, "one");
    for nothing in ["", ".", "..", "three"] {
        assert!(
            matches!(store.find(nothing), Err(Error::NotFound(_))),
            "{nothing}"
        );
    }
    // A removal was killed halfway.
    fs::remove_file(store.layout.names().join("one")).unwrap();
    assert_eq!(store.find("one").unwrap().id, first);
    assert_eq!(store.entries().unwrap().len(), 2);
}
const SHORT: usize = names::SHORT_ID;

#[test]
fn a_half_made_container_disappears_with_its_name() {
    let (_directory, store) = store();
    let reservation = store.reserve(Some("half")).unwrap();
    assert_eq!(store.entries().unwrap().len(), 0);
    assert!(reservation.owned.directory().exists(), "its maker still lives");
    drop(reservation);
    assert_eq!(store.entries().unwrap().len(), 0);
    assert_eq!(fs::read_dir(store.layout.containers()).unwrap().count(), 0);
    assert_eq!(fs::read_dir(store.layout.names()).unwrap().count(), 0);
}

#[test]
fn a_container_without_owner_is_not_shown_as_running() {
    let (_directory, store) = store();
    let running = State::Running {
        supervisor_pid: 1,
        pid: 1,
        started_ms: 1,
        paused: false,
    };
    let (kept, owned) = make(&store, "kept", false, running.clone());
    let (_, owned_too) = make(&store, "gone", true, running);
    assert_eq!(store.entries().unwrap().len(), 2);
    drop((owned, owned_too));
    let records = store.entries().unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].id, kept);
    assert!(matches!(&records[0].state, State::Exited(exited) if exited.code == 137));
    store.reserve(Some("gone")).unwrap();
}

#[test]
fn a_renamed_container_has_one_name() {
    let (_directory, store) = store();
    let (id, owned) = make(&store, "old", false, State::Created);
    let (_, _other) = make(&store, "other", false, State::Created);
    let mut record = store.find("old").unwrap();
    let mut rename = |name: &str| store.rename(&owned, &mut record, name);
    assert!(matches!(rename("other"), Err(Error::NameTaken(_))));
    assert!(matches!(rename("old"), Err(Error::SameName(_))));
    assert!(matches!(rename("/"), Err(Error::NameInvalid(_))));
    rename("new").unwrap();
    assert_eq!(store.find("new").unwrap().id, id);
    assert!(matches!(store.find("old"), Err(Error::NotFound(_))));
    // Cut short before the old link was removed: the name is free all the same.
    symlink(&id, store.layout.names().join("old")).unwrap();
    store.reserve(Some("old")).unwrap();
    assert!(matches!(store.reserve(Some("new")), Err(Error::NameTaken(_))));
}

#[test]
fn a_container_that_was_never_started_stays() {
    let (_directory, store) = store();
    let (_, owned) = make(&store, "waiting", true, State::Created);
    drop(owned);
    assert_eq!(store.entries().unwrap().len(), 1);
}

#[test]
fn a_newer_record_is_refused() {
    let (_directory, store) = store();
    let (id, _owned) = make(&store, "new", false, State::Created);
    let path = store.directory(&id).join("container.json");
    let newer = fs::read_to_string(&path)
        .unwrap()
        .replace("\"version\":6", "\"version\":7,\"more\":true");
    fs::write(&path, newer).unwrap();
    assert!(matches!(store.entries(), Err(Error::Newer(_))));
}
