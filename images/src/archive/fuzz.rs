//! Archives and documents under attack: what is accepted keeps to every limit and reads back as what it is.

use std::collections::HashMap;
use std::io::{Read, Write};

use super::{Candidate, Container, Member, Pieces, Section, docker, index, oci};
use crate::document::{self, Config, Index, Kind, Manifest, chain_ids};
use crate::fuzz::{scratch_file, with_checksums};
use crate::platform::Platform;
use crate::{layer, limits, registry};

/// Any bytes as an archive.
pub(crate) fn archive(data: &[u8]) {
    let data = section(&with_checksums(data));
    let Ok(members) = index(&data) else { return };
    assert!(members.len() <= limits::ARCHIVE_MEMBERS);
    for name in members.keys() {
        assert!(!name.starts_with(b"/") && !name.split(|byte| *byte == b'/').any(|part| part == b".."));
    }
    images(&Container::new(Pieces::Tar { data, members }));
}

/// Documents, with a byte between them that none can have. An `@` with a letter stands for digest and size of an earlier
/// one, so that they can name each other; the last is the index and the manifest of an archive that has them all, by number
/// and by digest.
pub(crate) fn documents(data: &[u8]) {
    let mut finished: Vec<Vec<u8>> = Vec::new();
    for text in data.split(|byte| *byte == 0xff).take(16) {
        let document = named(text, &finished);
        read_alone(&document);
        finished.push(document);
    }
    let (mut members, mut content) = (HashMap::new(), Vec::new());
    for (number, document) in finished.iter().enumerate() {
        let mut enter = |name: String| {
            let place = Member::File {
                offset: u64::try_from(content.len()).unwrap(),
                length: u64::try_from(document.len()).unwrap(),
            };
            members.insert(name.into_bytes(), place);
        };
        enter(number.to_string());
        enter(format!("blobs/sha256/{}", layer::digest(document).hex()));
        enter("index.json".to_owned());
        enter("manifest.json".to_owned());
        content.extend_from_slice(document);
    }
    let data = section(&content);
    images(&Container::new(Pieces::Tar { data, members }));
}

fn section(bytes: &[u8]) -> Section {
    let mut file = scratch_file();
    file.write_all(bytes).unwrap();
    Section::whole(file).unwrap()
}

/// Puts digest and size in the place of names.
fn named(text: &[u8], earlier: &[Vec<u8>]) -> Vec<u8> {
    let mut document = Vec::new();
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'@' {
            document.push(byte);
            continue;
        }
        let number = bytes.next().unwrap_or_default().wrapping_sub(b'a');
        if let Some(other) = earlier.get(usize::from(number)) {
            let text = format!(r#""digest":"{}","size":{}"#, layer::digest(other), other.len());
            document.extend_from_slice(text.as_bytes());
        }
    }
    document
}

/// Looks for images as in both kinds of archive, and reads all that they name.
fn images(container: &Container) {
    for candidates in [
        oci::candidates(container, Some("stem")),
        docker::candidates(container),
    ] {
        container.documents.set(0);
        for candidate in candidates.into_iter().flatten() {
            image(candidate);
        }
    }
}

fn image(candidate: Candidate) {
    let Candidate {
        config,
        layers,
        references,
        ..
    } = candidate;
    assert_eq!(config.diff_ids.len(), layers.len());
    assert!(layers.len() <= limits::LAYERS);
    config.check_platform().unwrap();
    for reference in references {
        assert_eq!(reference.to_string().parse().as_ref(), Ok(&reference));
    }
    for layer in layers {
        let expected = layer.data.remaining();
        let mut content = Vec::new();
        layer.data.clone().read_to_end(&mut content).unwrap();
        assert_eq!(u64::try_from(content.len()).unwrap(), expected);
        assert!(layer.blob.is_none_or(|blob| blob.bytes == expected));
    }
}

/// One document as everything that it may be taken for.
fn read_alone(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        assert!(manifest.layers.len() <= limits::LAYERS);
        let again = Manifest::parse(&document::to_bytes(&manifest).unwrap()).unwrap();
        assert_eq!(
            (again.config.blob(), again.layers.len()),
            (manifest.config.blob(), manifest.layers.len())
        );
    }
    if let Ok(index) = document::parse::<Index>(bytes) {
        let again: Index = document::parse(&document::to_bytes(&index).unwrap()).unwrap();
        assert_eq!(again.manifests.len(), index.manifests.len());
        for (again, entry) in again.manifests.iter().zip(&index.manifests) {
            assert_eq!(
                (again.blob(), again.name(), &again.platform),
                (entry.blob(), entry.name(), &entry.platform)
            );
        }
        document::platforms(&index.manifests);
        let chosen = Platform::default().choices(&index.manifests);
        assert!(
            chosen
                .iter()
                .all(|entry| entry.platform.as_ref().is_none_or(document::Platform::runs_here))
        );
    }
    for layers in 0..3 {
        if let Ok(config) = Config::parse(bytes, layers) {
            assert_eq!(chain_ids(&config.diff_ids).len(), layers);
        }
    }
    what_a_registry_sends(bytes);
}

/// A registry's answer is one thing or nothing, whatever it is declared as.
fn what_a_registry_sends(bytes: &[u8]) {
    for declared in ["", "text/plain", document::MEDIA_INDEX, document::MEDIA_MANIFEST] {
        let Ok((kind, media_type)) = registry::kind("url", declared, bytes) else {
            continue;
        };
        assert_eq!(document::kind(&media_type), kind);
        // What is not looked at yet may be no text.
        let Ok(value) = document::parse::<serde_json::Value>(bytes) else {
            continue;
        };
        let has = |field: &str| value.get(field).is_some_and(|value| !value.is_null());
        match kind {
            Kind::Index => assert!(has("manifests") && !has("config") && !has("layers")),
            Kind::Manifest => assert!(!has("manifests")),
            Kind::Config | Kind::Other => panic!("{kind:?} is no answer"),
        }
    }
}
