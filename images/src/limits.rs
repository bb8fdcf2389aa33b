//! Every cap on what comes from outside, each with its reason.
//!
//! A cap is a refusal with a clear message, never a truncation. They stand far above what real images need, so that
//! whoever meets one is looking at a broken or hostile image.

/// Bytes of a manifest or index. Registries cap manifests at 4 MiB as well.
pub(crate) const MANIFEST_BYTES: u64 = 4 << 20;

/// Bytes of an image configuration; the largest seen in use are some tens of kilobytes. In memory one can take thirty times
/// as much.
pub(crate) const CONFIG_BYTES: u64 = 1 << 20;

/// Layers of an image: Docker's own limit, and well below overlayfs's 500.
pub(crate) const LAYERS: usize = 127;

/// Images of one archive or layout; each costs a manifest and a configuration in memory.
pub(crate) const IMAGES: usize = 128;

/// Bytes of all indexes, manifests and configurations that are read of one archive or layout, however often the same one
/// is named: some thousand times those of a usual image.
pub(crate) const DOCUMENTS_BYTES: u64 = 16 << 20;

/// Members of an archive (not of a layer): 127 layers with a few files each for a great many images.
pub(crate) const ARCHIVE_MEMBERS: usize = 1 << 18;

/// Entries of a layer. Each costs some 100 bytes of memory until the layer is complete.
pub(crate) const LAYER_ENTRIES: u64 = 4 << 20;

/// A directory costs as much memory as this many other entries.
pub(crate) const DIRECTORY_ENTRIES: usize = 4;

/// Bytes of all names of a layer and of the extended attributes of its directories, which are in memory as well.
pub(crate) const LAYER_NAME_BYTES: u64 = 256 << 20;

/// Bytes of a path within a layer: Linux's PATH_MAX. Bounds the depth of the tree too.
pub(crate) const PATH_BYTES: usize = 4096;

/// Bytes of a path component: Linux's NAME_MAX, and EROFS_NAME_LEN.
pub(crate) const NAME_BYTES: usize = 255;

/// Bytes of a symbolic link's target: PATH_MAX counts a terminating NUL.
pub(crate) const SYMLINK_BYTES: usize = 4095;

/// Bytes of an extended attribute's name: XATTR_NAME_MAX.
pub(crate) const XATTR_NAME_BYTES: usize = 255;

/// Bytes of all extended attributes of one entry: XATTR_LIST_MAX and XATTR_SIZE_MAX are 64 KiB each.
pub(crate) const XATTR_BYTES: usize = 64 << 10;

/// Bytes of a layer, uncompressed and with the holes of sparse files counted, or of an archive. EROFS's 32-bit block
/// numbers would allow 16 TiB.
pub(crate) const UNPACKED_BYTES: u64 = 512 << 30;

/// A stream may grow to this whatever its compressed size; in unit tests to less, so that they can go beyond it.
pub(crate) const UNPACKED_FREE_BYTES: u64 = if cfg!(test) { 8 << 20 } else { 4 << 30 };

/// Beyond [`UNPACKED_FREE_BYTES`] it may have this many times its compressed size. gzip cannot exceed 1032; zstd can
/// reach a million, which nothing but a bomb does.
pub(crate) const UNPACKED_RATIO: u64 = 1100;

/// Bytes of a token server's answer. A token of a registry with many permissions has some kilobytes.
pub(crate) const TOKEN_BYTES: u64 = 64 << 10;

/// Bytes of a registry's error message that are read; what is longer is not looked at.
pub(crate) const ERROR_BYTES: u64 = 64 << 10;

/// Bytes of ~/.docker/config.json, and of a credential helper's answer.
pub(crate) const CREDENTIALS_BYTES: u64 = 1 << 20;

/// Bytes of a certificate file; the system's whole bundle has a fifth of it.
pub(crate) const CERTIFICATE_BYTES: u64 = 1 << 20;

/// Redirects that one request follows: a registry needs one to its storage, some a second.
pub(crate) const REDIRECTS: usize = 5;

/// Indexes within indexes that a registry may answer with.
pub(crate) const INDEX_NESTING: usize = 3;
