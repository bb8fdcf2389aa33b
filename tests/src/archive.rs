//! Hostile images, made byte by byte: what no tool writes.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::tree;

/// A layer's tar stream, or an archive's.
#[derive(Debug, Default)]
pub struct Tar {
    bytes: Vec<u8>,
}

/// Block size of the format.
const BLOCK: usize = 512;

impl Tar {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a regular file; `name` is written as it is, whatever it is.
    #[must_use]
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.claiming(name, content, content.len())
    }

    /// Adds a regular file whose header claims `size` bytes of content, of which only `content` follows.
    #[must_use]
    pub fn claiming(self, name: &str, content: &[u8], size: usize) -> Self {
        let mut tar = self.header(name, b'0', "", size);
        tar.bytes.extend_from_slice(content);
        tar.bytes.resize(tar.bytes.len().next_multiple_of(BLOCK), 0);
        tar
    }

    /// Adds a directory.
    #[must_use]
    pub fn directory(self, name: &str) -> Self {
        self.header(name, b'5', "", 0)
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.header(name, b'2', target, 0)
    }

    /// Adds a hard link.
    #[must_use]
    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.header(name, b'1', target, 0)
    }

    /// The stream with its end mark.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }

    fn header(mut self, name: &str, kind: u8, link: &str, size: usize) -> Self {
        let mut header = [0_u8; BLOCK];
        let mut put = |offset: usize, text: &str| {
            header[offset..offset + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, name);
        put(100, if kind == b'5' { "0000755" } else { "0000644" });
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{size:011o}"));
        put(136, "00000000000");
        put(148, "        ");
        put(157, link);
        put(257, "ustar");
        put(263, "00");
        header[156] = kind;
        let sum = header.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        self
    }
}

/// An OCI image layout, file by file, before it is packed.
#[derive(Debug)]
pub struct Layout {
    /// Content by path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Paths of the layers' blobs, the lowest first.
    pub layers: Vec<String>,
}

impl Layout {
    /// A correct image called `name` of uncompressed layers.
    ///
    /// # Errors
    /// If JSON cannot be written.
    pub fn new(name: &str, layers: &[Vec<u8>]) -> Result<Self> {
        Self::with(name, layers, |_| {})
    }

    /// The same, with a manifest that `change` has changed before its digest is taken.
    ///
    /// # Errors
    /// If JSON cannot be written.
    pub fn with(name: &str, layers: &[Vec<u8>], change: impl FnOnce(&mut Value)) -> Result<Self> {
        let mut layout = Self {
            files: BTreeMap::new(),
            layers: Vec::new(),
        };
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in layers {
            let descriptor = layout.blob("application/vnd.oci.image.layer.v1.tar", layer.clone())?;
            let digest = descriptor["digest"].as_str().context("no digest")?.to_owned();
            layout.layers.push(blob_path(&digest));
            diff_ids.push(digest);
            descriptors.push(descriptor);
        }
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/probe"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = layout.blob(
            "application/vnd.oci.image.config.v1+json",
            serde_json::to_vec(&config)?,
        )?;
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": descriptors,
        });
        change(&mut manifest);
        let mut manifest = layout.blob(
            "application/vnd.oci.image.manifest.v1+json",
            serde_json::to_vec(&manifest)?,
        )?;
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        layout
            .files
            .insert("index.json".to_owned(), serde_json::to_vec(&index)?);
        layout.files.insert(
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        );
        Ok(layout)
    }

    /// The layout as an archive.
    #[must_use]
    pub fn pack(&self) -> Vec<u8> {
        self.files
            .iter()
            .fold(Tar::new(), |tar, (path, content)| tar.file(path, content))
            .finish()
    }

    fn blob(&mut self, media_type: &str, content: Vec<u8>) -> Result<Value> {
        let digest = format!("sha256:{}", tree::sha256(content.as_slice())?);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": content.len()});
        self.files.insert(blob_path(&digest), content);
        Ok(descriptor)
    }
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tar_reader_reads_it() {
        let layout = Layout::new("x:y", &[Tar::new().directory("d/").file("d/f", b"text").finish()]).unwrap();
        let packed = layout.pack();
        let mut archive = tar::Archive::new(packed.as_slice());
        let names = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect::<Vec<_>>();
        assert_eq!(names.len(), 5);
        assert!(names.contains(&"index.json".to_owned()) && names.contains(&layout.layers[0]));

        let layer = &layout.files[&layout.layers[0]];
        let mut archive = tar::Archive::new(layer.as_slice());
        let kinds = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().header().entry_type())
            .collect::<Vec<_>>();
        assert_eq!(kinds, [tar::EntryType::Directory, tar::EntryType::Regular]);
    }
}
