//! Names of tar entries, taken apart and refused where they could lead out of the layer.
//!
//! `..` and absolute names have no place in a layer: whoever writes them means another file than the one a reader that
//! strips them would make. `.` and doubled slashes mean nothing and are dropped.

use crate::limits;

/// Why a name is refused.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub(crate) enum PathError {
    #[error("it is empty")]
    Empty,
    #[error("it is absolute")]
    Absolute,
    #[error("it contains a .. component")]
    Parent,
    #[error("it contains a NUL byte")]
    Nul,
    #[error("it has more than {} bytes", limits::PATH_BYTES)]
    TooLong,
    #[error("a component has more than {} bytes", limits::NAME_BYTES)]
    ComponentTooLong,
}

/// The components of a relative path; none for the root itself (`.`, `./`, or the bare `/` that some builders write).
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    if path.is_empty() {
        return Err(PathError::Empty);
    }
    if path.len() > limits::PATH_BYTES {
        return Err(PathError::TooLong);
    }
    let is_root = path.iter().all(|byte| *byte == b'/');
    if path.starts_with(b"/") && !is_root {
        return Err(PathError::Absolute);
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(PathError::Parent),
            _ if component.len() > limits::NAME_BYTES => return Err(PathError::ComponentTooLong),
            _ if component.contains(&0) => return Err(PathError::Nul),
            _ => components.push(component),
        }
    }
    Ok(components)
}

/// A path for messages: whatever is not printable is escaped.
pub(crate) fn display(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        let check = |path: &str, expected: &[&str]| {
            let expected: Vec<_> = expected.iter().map(|part| part.as_bytes()).collect();
            assert_eq!(components(path.as_bytes()), Ok(expected), "{path}");
        };
        check("a/b", &["a", "b"]);
        check("./a//b/./", &["a", "b"]);
        check(".", &[]);
        check("/", &[]);
        check("..a/b..", &["..a", "b.."]);
    }

    #[test]
    fn escaping_paths_are_refused() {
        let check = |path: &[u8], expected| assert_eq!(components(path), Err(expected), "{path:?}");
        check(b"", PathError::Empty);
        check(b"../a", PathError::Parent);
        check(b"a/..", PathError::Parent);
        check(b"/etc/passwd", PathError::Absolute);
        check(b"a\0b", PathError::Nul);
        check(&[b'a'; 256], PathError::ComponentTooLong);
        check(&b"a/".repeat(2049), PathError::TooLong);
    }
}
