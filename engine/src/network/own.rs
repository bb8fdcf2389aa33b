//! The files of a container that say where it is, while it runs: `/etc/hosts` and its like, which it may write to itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rvm_isolation::{OwnFile, PrivateFile};

use super::Error;

/// Longest file that is looked at: all that they may be together is a mebibyte, but for holes.
const LONGEST: usize = 1 << 20;

/// Writes what is new into a container's files, of which the last that was written is `old`. It is the same files still, for
/// somebody may have them open.
pub(super) fn rewrite(own: &[OwnFile], old: &[PrivateFile], new: &[PrivateFile]) -> Result<(), Error> {
    for OwnFile { path, file } in own {
        let (old, new) = (content(old, path), content(new, path));
        if old == new {
            continue;
        }
        let changed = read(file).and_then(|current| {
            let merged = current.and_then(|current| merged(path, &current, old, new));
            merged.map_or(Ok(()), |content| replace(file, &content))
        });
        changed.map_err(|source| Error::OwnFile(path.clone(), source))?;
    }
    Ok(())
}

fn content<'a>(files: &'a [PrivateFile], path: &Path) -> &'a str {
    let found = files.iter().find(|file| file.path == path);
    found.map_or("", |file| &file.content)
}

/// What a file is to have in it; nothing where it stays as the container has made it. In `/etc/hosts` that is so for lines, in
/// others, of which each line is about all the others, for the whole. Docker does the same.
fn merged(path: &Path, current: &[u8], old: &str, new: &str) -> Option<Vec<u8>> {
    if current == old.as_bytes() {
        return Some(new.into());
    }
    if path != Path::new("/etc/hosts") {
        return None;
    }
    let is_gone = |line: &[u8]| has_line(old, line) && !has_line(new, line);
    let mut content = Vec::new();
    for line in current.split_inclusive(|byte| *byte == b'\n') {
        if !is_gone(line.strip_suffix(b"\n").unwrap_or(line)) {
            content.extend_from_slice(line);
        }
    }
    if content.last().is_some_and(|byte| *byte != b'\n') {
        content.push(b'\n');
    }
    for line in new.lines().filter(|line| !has_line(old, line.as_bytes())) {
        content.extend_from_slice(line.as_bytes());
        content.push(b'\n');
    }
    Some(content)
}

fn has_line(text: &str, line: &[u8]) -> bool {
    text.lines().any(|other| other.as_bytes() == line)
}

/// What is in a file; nothing if that is more than may be.
fn read(file: &File) -> io::Result<Option<Vec<u8>>> {
    if file.metadata()?.len() > LONGEST as u64 {
        return Ok(None);
    }
    let mut content = vec![0; LONGEST];
    let mut length = 0;
    loop {
        match file.read_at(content.get_mut(length..).unwrap_or_default(), length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    content.truncate(length);
    Ok(Some(content))
}

fn replace(file: &File, content: &[u8]) -> io::Result<()> {
    file.write_all_at(content, 0)?;
    file.set_len(content.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const HOSTS: &str = "/etc/hosts";
    const RESOLV: &str = "/etc/resolv.conf";

    /// What is in files of a container after a change, one with `content` in it before.
    fn after(path: &str, content: &str, old: &str, new: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("file");
        fs::write(&place, content).unwrap();
        let own = OwnFile {
            path: path.into(),
            file: File::options().read(true).write(true).open(&place).unwrap(),
        };
        let list = |content: &str| {
            vec![PrivateFile {
                path: path.into(),
                content: content.to_owned(),
            }]
        };
        rewrite(&[own], &list(old), &list(new)).unwrap();
        fs::read_to_string(place).unwrap()
    }

    #[test]
    fn files_that_the_container_has_left_alone_are_as_if_new() {
        let (old, new) = ("10.0.0.2\tweb\n10.1.0.2\tweb\n", "10.1.0.2\tweb\n");
        assert_eq!(after(HOSTS, old, old, new), new);
        assert_eq!(after(HOSTS, new, new, old), old);
        assert_eq!(
            after(RESOLV, "nameserver a\n", "nameserver a\n", "nameserver b\n"),
            "nameserver b\n"
        );
    }

    #[test]
    fn lines_of_hosts_that_are_the_containers_own_stay() {
        let old = "127.0.0.1\tlocalhost\n10.0.0.2\tweb\n";
        let new = "127.0.0.1\tlocalhost\n10.1.0.2\tweb\n";
        let written = "10.9.9.9 other\n127.0.0.1\tlocalhost\n10.0.0.2\tweb\n# no end";
        let expected = "10.9.9.9 other\n127.0.0.1\tlocalhost\n# no end\n10.1.0.2\tweb\n";
        assert_eq!(after(HOSTS, written, old, new), expected);
        // A line that it has removed does not come back, and one that changes is none that it has.
        assert_eq!(
            after(HOSTS, "10.0.0.2\tweb more\n", old, new),
            "10.0.0.2\tweb more\n10.1.0.2\tweb\n"
        );
        assert_eq!(after(HOSTS, "", old, new), "10.1.0.2\tweb\n");
    }

    #[test]
    fn servers_that_the_container_has_chosen_stay() {
        let chosen = "nameserver 192.0.2.53\n";
        assert_eq!(after(RESOLV, chosen, "nameserver a\n", "nameserver b\n"), chosen);
    }

    #[test]
    fn a_file_without_end_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true);
        let file = options.open(directory.path().join("file")).unwrap();
        file.set_len(1 << 40).unwrap();
        assert_eq!(read(&file).unwrap(), None);
    }
}
