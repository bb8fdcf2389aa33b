//! A layer's way from a blob to its EROFS image, in one pass over the bytes.
//!
//! While the tar stream is converted, the blob is hashed (its digest), copied to the store if it is new there, and its
//! decompressed form hashed (the diff ID). Nothing of it counts before both digests are what was promised.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};

use rvm_tar as tar;
use sha2::{Digest as _, Sha256};

use crate::rootfs::{self, Unfinished};
use crate::{Digest, limits};

/// Bytes read at once from a blob.
pub(crate) const BUFFER_BYTES: usize = 128 << 10;

/// Why a layer cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    #[error("cannot write the layer's blob")]
    WriteBlob(#[source] io::Error),
    #[error("the layer is compressed with {0}, which is not supported: gzip, zstd and none are")]
    Compression(&'static str),
    #[error("the layer's blob has the digest {actual}, not {expected} as the manifest says")]
    BlobDigest { expected: Digest, actual: Digest },
    #[error("the layer's blob has {actual} bytes, not {expected} as the manifest says")]
    BlobSize { expected: u64, actual: u64 },
    #[error("the layer's content has the digest {actual}, not {expected} as the configuration says")]
    DiffId { expected: Digest, actual: Digest },
    #[error("cannot convert the layer")]
    Convert(#[from] rootfs::Error),
}

impl Error {
    /// Whether the same bytes will give the same error again.
    pub(crate) fn is_about_content(&self) -> bool {
        !matches!(self, Self::Read(_) | Self::WriteBlob(_))
    }
}

/// What a manifest promises of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobId {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
}

/// How a stream is compressed, as its first bytes tell. Media types are not asked: tools have written wrong ones, and
/// Docker never looked at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// The compression of a stream that begins so, or the name of one that is not supported.
    pub(crate) fn detect(prefix: &[u8]) -> Result<Self, &'static str> {
        match prefix {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // A frame, or one of the sixteen kinds of skippable frame before it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Err("bzip2"),
            _ => Ok(Self::None),
        }
    }

    /// The decompressed stream. Concatenated members or frames are one stream, as everywhere else.
    pub(crate) fn decoder<'a>(self, input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::None => Box::new(input),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        })
    }
}

/// What is to be done with a layer.
pub(crate) struct Task<'a> {
    /// The digest of the decompressed stream.
    pub(crate) diff_id: Digest,
    /// What the manifest promises; none if there is no manifest (docker-archive).
    pub(crate) blob: Option<BlobId>,
    /// Where the blob goes, if it is new in the store.
    pub(crate) blob_file: Option<&'a File>,
    /// The empty file that the image goes to, if one is needed.
    pub(crate) image_file: Option<File>,
    /// Told the number of blob bytes read so far.
    pub(crate) progress: &'a dyn Fn(u64),
}

/// A layer whose digests are right.
pub(crate) struct Taken {
    pub(crate) blob: BlobId,
    pub(crate) image: Option<Unfinished>,
}

/// Reads a layer's blob to its end.
pub(crate) fn take(input: impl Read, task: Task<'_>) -> Result<Taken, Error> {
    let (actual, result) = read(input, task.blob_file, task.image_file, task.progress)?;
    if let Some(expected) = task.blob {
        if expected.bytes != actual.bytes {
            return Err(Error::BlobSize {
                expected: expected.bytes,
                actual: actual.bytes,
            });
        }
        if expected.digest != actual.digest {
            return Err(Error::BlobDigest {
                expected: expected.digest,
                actual: actual.digest,
            });
        }
    }
    let (image, diff_id) = result?;
    if diff_id != task.diff_id {
        return Err(Error::DiffId {
            expected: task.diff_id,
            actual: diff_id,
        });
    }
    if let Some(output) = task.blob_file {
        output.sync_data().map_err(Error::WriteBlob)?;
    }
    Ok(Taken { blob: actual, image })
}

/// What a layer is that no manifest describes: its blob, and the digest of its content.
pub(crate) fn identify(input: impl Read) -> Result<(BlobId, Digest), Error> {
    let (blob, result) = read(input, None, None, &|_| {})?;
    Ok((blob, result?.1))
}

/// What a stream was converted to, and the digest of its content.
type Converted = (Option<Unfinished>, Digest);

/// Reads a blob to its end; the inner error is that of its content.
fn read(
    input: impl Read,
    blob_file: Option<&File>,
    image_file: Option<File>,
    progress: &dyn Fn(u64),
) -> Result<(BlobId, Result<Converted, Error>), Error> {
    let seen = Cell::new(0);
    let blob = Tee {
        input,
        hasher: Sha256::new(),
        seen: &seen,
        output: blob_file,
        progress,
    };
    let mut blob = BufReader::with_capacity(BUFFER_BYTES, blob);
    let compression =
        Compression::detect(blob.fill_buf().map_err(Error::Read)?).map_err(Error::Compression)?;
    let result = decode(&mut blob, compression, &seen, image_file);
    // The blob is read to its end even if it cannot be converted: if it is damaged, that is the better message.
    io::copy(&mut blob, &mut io::sink()).map_err(Error::Read)?;
    let actual = BlobId {
        digest: finish(blob.into_inner().hasher),
        bytes: seen.get(),
    };
    let content = result.map(|(image, diff_id)| (image, diff_id.unwrap_or(actual.digest)));
    Ok((actual, content))
}

/// Converts the decompressed stream, and hashes it unless it is the blob itself.
fn decode(
    blob: &mut impl BufRead,
    compression: Compression,
    seen: &Cell<u64>,
    image_file: Option<File>,
) -> Result<(Option<Unfinished>, Option<Digest>), Error> {
    let decoder = compression.decoder(blob).map_err(Error::Read)?;
    let content = Content {
        input: Limited {
            input: decoder,
            compressed: seen,
            produced: 0,
        },
        hasher: (compression != Compression::None).then(Sha256::new),
    };
    // Tar headers are read 512 bytes at a time.
    let mut content = BufReader::with_capacity(BUFFER_BYTES, content);
    let image = match image_file {
        Some(file) => Some(rootfs::read_layer(
            &mut tar::Reader::new(tar::Forward(&mut content)),
            file,
        )?),
        None => None,
    };
    // What follows the tar's end mark belongs to the diff ID.
    io::copy(&mut content, &mut io::sink()).map_err(Error::Read)?;
    Ok((image, content.into_inner().hasher.map(finish)))
}

fn finish(hasher: Sha256) -> Digest {
    Digest::from_bytes(hasher.finalize().into())
}

/// A blob's decompressed content.
pub(crate) fn content<'a>(mut blob: impl BufRead + 'a) -> io::Result<Hashing<Box<dyn Read + 'a>>> {
    let compression = Compression::detect(blob.fill_buf()?).map_err(io::Error::other)?;
    Ok(Hashing::new(compression.decoder(blob)?))
}

/// The digest of bytes in memory.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

/// Hashes, counts and copies what is read through it.
struct Tee<'a, R> {
    input: R,
    hasher: Sha256,
    seen: &'a Cell<u64>,
    output: Option<&'a File>,
    progress: &'a dyn Fn(u64),
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        if let Some(mut output) = self.output {
            output.write_all(&buffer[..count])?;
        }
        self.seen.set(
            self.seen
                .get()
                .saturating_add(u64::try_from(count).unwrap_or(u64::MAX)),
        );
        (self.progress)(self.seen.get());
        Ok(count)
    }
}

/// Hashes what is read through it.
pub(crate) struct Hashing<R> {
    input: R,
    hasher: Sha256,
}

impl<R> Hashing<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            hasher: Sha256::new(),
        }
    }

    /// The digest of what was read.
    pub(crate) fn finish(self) -> Digest {
        finish(self.hasher)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

struct Content<R> {
    input: R,
    hasher: Option<Sha256>,
}

impl<R: Read> Read for Content<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        Ok(count)
    }
}

/// Ends a stream that grows out of proportion to what it was made from.
pub(crate) struct Limited<'a, R> {
    pub(crate) input: R,
    pub(crate) compressed: &'a Cell<u64>,
    pub(crate) produced: u64,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.produced = self
            .produced
            .saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        let by_ratio = self.compressed.get().saturating_mul(limits::UNPACKED_RATIO);
        if self.produced > by_ratio.clamp(limits::UNPACKED_FREE_BYTES, limits::UNPACKED_BYTES) {
            let message = format!(
                "it unpacks to more than {} bytes, which looks like a bomb",
                self.produced
            );
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_stream() -> Vec<u8> {
        let mut builder = ::tar::Builder::new(Vec::new());
        let mut header = ::tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        builder
            .append_data(&mut header, "file", b"hello".as_slice())
            .unwrap();
        builder.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn task(diff_id: Digest, blob: &[u8]) -> Task<'static> {
        Task {
            diff_id,
            blob: Some(BlobId {
                digest: digest(blob),
                bytes: u64::try_from(blob.len()).unwrap(),
            }),
            blob_file: None,
            image_file: Some(tempfile::tempfile().unwrap()),
            progress: &|_| {},
        }
    }

    #[test]
    fn every_compression_gives_the_same_layer() {
        let stream = tar_stream();
        let (first, second) = stream.split_at(700);
        for blob in [
            stream.clone(),
            gzip(&stream),
            [gzip(first), gzip(second)].concat(),
            zstd::encode_all(stream.as_slice(), 1).unwrap(),
            // A skippable frame in front, as zstd:chunked and seekable archives have.
            [
                b"\x5e\x2a\x4d\x18\x03\0\0\0abc".to_vec(),
                zstd::encode_all(stream.as_slice(), 1).unwrap(),
            ]
            .concat(),
        ] {
            let taken = take(blob.as_slice(), task(digest(&stream), &blob)).unwrap();
            assert_eq!(taken.blob.digest, digest(&blob));
            assert!(taken.image.unwrap().stands_alone());
        }
    }

    #[test]
    fn damage_is_named() {
        let stream = tar_stream();
        let blob = gzip(&stream);
        let check = |input: &[u8], task: Task<'_>, expected: &str| {
            let error = take(input, task).err().expect("must be refused");
            assert!(
                error.to_string().contains(expected),
                "{error} should contain {expected}"
            );
        };
        let mut flipped = blob.clone();
        flipped[40] ^= 0xff;
        check(&flipped, task(digest(&stream), &blob), "blob has the digest");
        check(&blob[..blob.len() - 4], task(digest(&stream), &blob), "blob has");
        check(&blob, task(digest(b"other"), &blob), "content has the digest");
        let promised = BlobId {
            digest: digest(&blob),
            bytes: 1 << 40,
        };
        check(
            &blob,
            Task {
                blob: Some(promised),
                ..task(digest(&stream), &blob)
            },
            "not 1099511627776",
        );
        check(b"BZh91AY", task(digest(b""), b"BZh91AY"), "bzip2");
        let cut = gzip(&stream[..600]);
        check(&cut, task(digest(&stream[..600]), &cut), "cannot convert");
    }

    #[test]
    fn a_bomb_is_stopped() {
        let compressed = Cell::new(1);
        let mut bomb = Limited {
            input: io::repeat(0),
            compressed: &compressed,
            produced: limits::UNPACKED_FREE_BYTES,
        };
        let error = io::copy(&mut bomb, &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("bomb"), "{error}");
    }
}
