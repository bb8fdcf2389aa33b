//! Reading images out of archives: docker-archive and OCI archive tars (plain, gzip or zstd), OCI layout directories.
//!
//! A tar is indexed once, then every part of it can be read at its place, by several threads. What is compressed, or
//! comes from a pipe, is copied to a temporary file first. Names in an archive are keys into that index and never
//! paths on this machine; in a layout directory the only names are those of image-spec and digests.

mod docker;
#[cfg(any(test, feature = "fuzzing"))]
#[expect(
    clippy::unwrap_used,
    reason = "a harness whose files cannot be made has to stop"
)]
pub(crate) mod fuzz;
mod oci;

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rvm_tar as tar;

use crate::document::{self, Config};
use crate::layer::{BlobId, Compression, Limited};
use crate::layout::Staging;
use crate::reference::{Reference, ReferenceError};
use crate::store::{Progress, Source};
use crate::{Digest, layout, limits};

/// Links followed from one member of an archive to another: old `docker save` made them for repeated layers.
const MAX_LINKS: usize = 8;

/// Why no image can be read from the input.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    #[error("cannot write a temporary copy of the archive")]
    Spool(#[source] io::Error),
    #[error("the archive is compressed with {0}, which is not supported: gzip, zstd and none are")]
    Compression(&'static str),
    #[error("the archive is damaged or not a tar")]
    Tar(#[from] tar::Error),
    #[error("the archive's member {0:?} has a name that leads out of the archive")]
    MemberName(String),
    #[error(
        "a member of the archive has a name of more than {} bytes",
        limits::PATH_BYTES
    )]
    MemberNameLength,
    #[error(
        "the documents that the archive's images name have more than {} bytes",
        limits::DOCUMENTS_BYTES
    )]
    Documents,
    #[error("the archive has more than {} members", limits::ARCHIVE_MEMBERS)]
    Members,
    #[error(
        "this is neither a docker-archive (manifest.json) nor an OCI image layout (oci-layout, index.json)"
    )]
    Unknown,
    #[error("the archive names {0:?} but does not contain it")]
    Missing(String),
    #[error("{name:?} has {bytes} bytes, more than {limit}")]
    TooLarge { name: String, bytes: u64, limit: u64 },
    #[error("{name:?} cannot be used")]
    Document { name: String, source: document::Error },
    #[error("the blob {digest} has {actual} bytes, not {expected} as the manifest says")]
    BlobSize {
        digest: Digest,
        expected: u64,
        actual: u64,
    },
    #[error("the archive has no image")]
    Empty,
    #[error("the archive has more than {} images", limits::IMAGES)]
    Images,
    #[error("the image is not there for linux/amd64, only for {0}")]
    Platform(String),
    #[error("the indexes of the image are nested too deeply")]
    Nesting,
    #[error("the archive has a bad name for the image")]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Store(#[from] layout::Error),
}

/// An image found in an archive. Its documents are verified, its layers not yet read.
pub(crate) struct Candidate {
    /// The manifest's bytes and media type; none in a docker-archive.
    pub(crate) manifest: Option<(Vec<u8>, String)>,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) config: Config,
    /// Lowest first; as many as the configuration has diff IDs.
    pub(crate) layers: Vec<LayerInput>,
    pub(crate) references: Vec<Reference>,
}

/// A layer's blob in the archive.
pub(crate) struct LayerInput {
    /// What the manifest promises; none in a docker-archive.
    pub(crate) blob: Option<BlobId>,
    pub(crate) compression: Compression,
    pub(crate) data: Section,
}

/// Finds all images of an input.
pub(crate) fn open(
    input: Source,
    staging: &Staging,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Candidate>, Error> {
    let (container, stem) = Container::open(input, staging, progress)?;
    // Archives of newer Dockers are both; the layout has the manifests as they were pulled.
    let candidates = if container.has("oci-layout") && container.has("index.json") {
        oci::candidates(&container, stem.as_deref())?
    } else if matches!(container.pieces, Pieces::Tar { .. }) && container.has("manifest.json") {
        // Never in a directory: the names in this manifest may lead anywhere, and only a tar keeps them inside.
        docker::candidates(&container)?
    } else {
        return Err(Error::Unknown);
    };
    match candidates.len() {
        0 => Err(Error::Empty),
        count if count > limits::IMAGES => Err(Error::Images),
        _ => Ok(candidates),
    }
}

/// A range of a file, read from its beginning. Copies share the file but not the position.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Section {
    pub(crate) fn whole(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            position: 0,
            end,
        })
    }

    pub(crate) fn remaining(&self) -> u64 {
        self.end.saturating_sub(self.position)
    }

    fn range(&self, offset: u64, length: u64) -> Self {
        let position = self.position.saturating_add(offset).min(self.end);
        let end = position.saturating_add(length).min(self.end);
        Self {
            file: Arc::clone(&self.file),
            position,
            end,
        }
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.remaining())
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position = self
            .position
            .saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }
}

/// Reads headers through a buffer and passes over data without reading them.
struct Seeking(BufReader<Section>);

impl Read for Seeking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl tar::Input for Seeking {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let buffered = u64::try_from(self.0.buffer().len()).unwrap_or(u64::MAX);
        if count <= buffered {
            self.0.consume(usize::try_from(count).unwrap_or(usize::MAX));
            return Ok(());
        }
        let beyond = count - buffered;
        let section = self.0.get_ref();
        if beyond > section.remaining() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let rest = section.range(beyond, u64::MAX);
        self.0 = BufReader::with_capacity(HEADER_BUFFER_BYTES, rest);
        Ok(())
    }
}

/// A few headers' worth: members are large.
const HEADER_BUFFER_BYTES: usize = 4096;

/// An archive or directory, and how much of it was read into memory.
struct Container {
    pieces: Pieces,
    documents: Cell<u64>,
}

/// Named pieces of bytes.
enum Pieces {
    Tar {
        data: Section,
        members: HashMap<Vec<u8>, Member>,
    },
    Directory(PathBuf),
}

enum Member {
    File { offset: u64, length: u64 },
    Link { target: Vec<u8> },
}

impl Container {
    /// The container, and the input's name without its extensions.
    fn open(
        input: Source,
        staging: &Staging,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Self, Option<String>), Error> {
        let (data, stem) = match input {
            Source::Path(path) => {
                let opening = |source| Error::Open {
                    path: path.clone(),
                    source,
                };
                let stem = stem(&path);
                let metadata = std::fs::metadata(&path).map_err(opening)?;
                if metadata.is_dir() {
                    return Ok((Self::new(Pieces::Directory(path)), stem));
                }
                let file = File::open(&path).map_err(opening)?;
                if metadata.is_file() {
                    (
                        plain(Section::whole(file).map_err(opening)?, staging, progress)?,
                        stem,
                    )
                } else {
                    (spool(file, staging, progress)?, None)
                }
            }
            Source::Stream(stream) => (spool(stream, staging, progress)?, None),
        };
        let members = index(&data)?;
        Ok((Self::new(Pieces::Tar { data, members }), stem))
    }

    fn new(pieces: Pieces) -> Self {
        Self {
            pieces,
            documents: Cell::new(0),
        }
    }

    fn has(&self, name: &str) -> bool {
        match &self.pieces {
            Pieces::Tar { members, .. } => members.contains_key(name.as_bytes()),
            Pieces::Directory(directory) => directory.join(name).is_file(),
        }
    }

    /// A member's bytes. In a directory the name is one of image-spec's or made of a digest.
    fn section(&self, name: &str) -> Result<Section, Error> {
        let missing = || Error::Missing(name.to_owned());
        match &self.pieces {
            Pieces::Directory(directory) => {
                let path = directory.join(name);
                if !path.is_file() {
                    return Err(missing());
                }
                let open = File::open(&path).and_then(Section::whole);
                open.map_err(|source| Error::Open { path, source })
            }
            Pieces::Tar { data, members } => {
                let mut name = normal(name.as_bytes())?;
                for _ in 0..MAX_LINKS {
                    match members.get(&name).ok_or_else(missing)? {
                        Member::File { offset, length } => return Ok(data.range(*offset, *length)),
                        Member::Link { target } => name.clone_from(target),
                    }
                }
                Err(missing())
            }
        }
    }

    /// Reads a document.
    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let mut section = self.section(name)?;
        let bytes = section.remaining();
        if bytes > limit {
            return Err(Error::TooLarge {
                name: name.to_owned(),
                bytes,
                limit,
            });
        }
        let documents = self.documents.get().saturating_add(bytes);
        if documents > limits::DOCUMENTS_BYTES {
            return Err(Error::Documents);
        }
        self.documents.set(documents);
        let mut content = Vec::new();
        section.read_to_end(&mut content).map_err(Error::Read)?;
        Ok(content)
    }
}

impl LayerInput {
    /// Recognises the compression, and checks the size.
    pub(crate) fn new(data: Section, blob: Option<BlobId>) -> Result<Self, Error> {
        if let Some(BlobId {
            digest,
            bytes: expected,
        }) = blob
            && data.remaining() != expected
        {
            return Err(Error::BlobSize {
                digest,
                expected,
                actual: data.remaining(),
            });
        }
        let compression = Compression::detect(&prefix(data.clone())?).map_err(Error::Compression)?;
        Ok(Self {
            blob,
            compression,
            data,
        })
    }
}

/// The first bytes, enough to recognise a compression.
fn prefix(input: impl Read) -> Result<Vec<u8>, Error> {
    let mut prefix = Vec::new();
    input.take(8).read_to_end(&mut prefix).map_err(Error::Read)?;
    Ok(prefix)
}

/// A tar that can be read at any place: the file itself, or a decompressed copy.
fn plain(data: Section, staging: &Staging, progress: &mut dyn FnMut(Progress)) -> Result<Section, Error> {
    match Compression::detect(&prefix(data.clone())?).map_err(Error::Compression)? {
        Compression::None => Ok(data),
        _ => spool(data, staging, progress),
    }
}

/// Copies a stream to a temporary file, decompressed.
fn spool(input: impl Read, staging: &Staging, progress: &mut dyn FnMut(Progress)) -> Result<Section, Error> {
    const CHUNK_BYTES: usize = 1 << 20;
    let compressed = Cell::new(0);
    let mut input = BufReader::with_capacity(
        CHUNK_BYTES,
        Counting {
            input,
            seen: &compressed,
        },
    );
    let compression =
        Compression::detect(input.fill_buf().map_err(Error::Read)?).map_err(Error::Compression)?;
    let decoder = compression.decoder(input).map_err(Error::Read)?;
    let mut decoder = Limited {
        input: decoder,
        compressed: &compressed,
        produced: 0,
    };
    let mut file = staging.scratch()?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = match decoder.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::Read(error)),
        };
        file.write_all(&chunk[..count]).map_err(Error::Spool)?;
        progress(Progress::Spooling {
            bytes: decoder.produced,
        });
    }
    Section::whole(file).map_err(Error::Read)
}

struct Counting<'a, R> {
    input: R,
    seen: &'a Cell<u64>,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.seen.set(
            self.seen
                .get()
                .saturating_add(u64::try_from(count).unwrap_or(u64::MAX)),
        );
        Ok(count)
    }
}

/// Where every member of a tar is. Of two with the same name the later one counts, as for tar itself.
fn index(data: &Section) -> Result<HashMap<Vec<u8>, Member>, Error> {
    let mut members = HashMap::new();
    let mut tar = tar::Reader::new(Seeking(BufReader::with_capacity(
        HEADER_BUFFER_BYTES,
        data.clone(),
    )));
    while let Some(entry) = tar.next_entry()? {
        let name = normal(&entry.path)?;
        let member = match entry.kind {
            tar::Kind::File if entry.extents.is_none() => Member::File {
                offset: tar.offset(),
                length: entry.stored,
            },
            tar::Kind::HardLink => Member::Link {
                target: normal(&entry.link)?,
            },
            tar::Kind::Symlink => Member::Link {
                target: beside(&name, &entry.link)?,
            },
            _ => continue,
        };
        members.insert(name, member);
        if members.len() > limits::ARCHIVE_MEMBERS {
            return Err(Error::Members);
        }
    }
    Ok(members)
}

/// A member's name without `.` and doubled slashes; one that leads upwards or to the root is refused.
fn normal(name: &[u8]) -> Result<Vec<u8>, Error> {
    if name.len() > limits::PATH_BYTES {
        return Err(Error::MemberNameLength);
    }
    let bad = || Error::MemberName(name.escape_ascii().to_string());
    if name.starts_with(b"/") {
        return Err(bad());
    }
    resolve(&[], name).ok_or_else(bad)
}

/// The member that a symbolic link in the archive leads to.
fn beside(link: &[u8], target: &[u8]) -> Result<Vec<u8>, Error> {
    if target.len() > limits::PATH_BYTES {
        return Err(Error::MemberNameLength);
    }
    let bad = || Error::MemberName(link.escape_ascii().to_string());
    if target.starts_with(b"/") {
        return Err(bad());
    }
    let directory = link
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(&[][..], |slash| &link[..slash]);
    resolve(directory, target).ok_or_else(bad)
}

/// Joins lexically; nothing if it would leave the archive. `..` is for links only, which old `docker save` writes as
/// `../ID/layer.tar`.
fn resolve(directory: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = directory
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty())
        .collect();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

/// `debian` of `/some/where/debian.tar.gz`.
fn stem(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let name = name
        .trim_end_matches(".gz")
        .trim_end_matches(".zst")
        .trim_end_matches(".tar");
    Some(name.trim_end_matches(".oci").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(
                normal(name.as_bytes()).ok().as_deref(),
                expected.map(str::as_bytes),
                "{name}"
            );
        };
        check("./blobs//sha256/x", Some("blobs/sha256/x"));
        check("a/../../x", None);
        check("../x", None);
        check("/x", None);
        let link = |name: &str, target: &str| {
            beside(name.as_bytes(), target.as_bytes())
                .ok()
                .map(|name| String::from_utf8(name).unwrap())
        };
        assert_eq!(
            link("two/layer.tar", "../one/layer.tar").as_deref(),
            Some("one/layer.tar")
        );
        assert_eq!(link("two/layer.tar", "../../etc/passwd"), None);
        assert_eq!(link("two/layer.tar", "/etc/passwd"), None);
    }

    #[test]
    fn stems() {
        let check = |path: &str, expected| assert_eq!(stem(Path::new(path)).as_deref(), Some(expected));
        check("/x/debian.tar.gz", "debian");
        check("debian", "debian");
        check("app.oci.tar", "app");
    }
}
