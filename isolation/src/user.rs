//! Who the workload runs as. The text that a user or an image gives (`name`, `1000`, `name:group`, `1000:1000`) means
//! what the image's own `/etc/passwd` and `/etc/group` say, so it is resolved inside the new root.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{FileType, OFlags, PROC_SUPER_MAGIC};
use serde::{Deserialize, Serialize};

use crate::reopen::Reopener;
use crate::root::{self, Root};

/// Largest size in bytes of a user or group file. It is the image's file, so something has to bound it.
const LARGEST_FILE: u64 = 16 << 20;

/// Largest user and group ID that can be given by number, as in Docker.
const LARGEST_ID: u32 = i32::MAX.cast_unsigned();

/// Why a user cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Find(#[from] root::Error),
    #[error("cannot read {path} of the image")]
    Read { path: &'static str, source: io::Error },
    #[error("no user {0:?} in /etc/passwd of the image")]
    NoUser(String),
    #[error("no group {0:?} in /etc/group of the image")]
    NoGroup(String),
    #[error("{0} is not between 0 and {LARGEST_ID}")]
    OutOfRange(String),
}

/// What a Spec says about the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum User {
    /// To be resolved in the image; `additional` groups come on top.
    Text { text: String, additional: Vec<u32> },
    /// Numbers to be taken as they are.
    Numbers {
        uid: u32,
        gid: u32,
        additional: Vec<u32>,
    },
}

/// A resolved user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

impl User {
    /// Resolves the user by the files below `root`.
    pub(crate) fn resolve(&self, root: &Root, reopener: &Reopener) -> Result<Identity, Error> {
        let passwd = read(root, reopener, "/etc/passwd")?;
        match self {
            User::Text { text, additional } => {
                let group = read(root, reopener, "/etc/group")?;
                let mut identity = resolve(text, &passwd, &group)?;
                identity
                    .groups
                    .extend(additional.iter().filter(|gid| **gid != identity.gid));
                identity.groups.sort_unstable();
                identity.groups.dedup();
                Ok(identity)
            }
            User::Numbers { uid, gid, additional } => {
                let home = accounts(&passwd)
                    .find(|account| account.uid == *uid)
                    .map(|account| account.home);
                let home = home.filter(|home| !home.is_empty()).unwrap_or("/").into();
                Ok(Identity {
                    uid: *uid,
                    gid: *gid,
                    groups: additional.clone(),
                    home,
                })
            }
        }
    }
}

/// Reads a file of the image; an image without it has no names. Symbolic links stay inside the root. Something else in its
/// place must not even be opened: that alone starts a watchdog, and reading some files of /proc empties or blocks them.
fn read(root: &Root, reopener: &Reopener, path: &'static str) -> Result<String, Error> {
    let failed = |source: io::Error| Error::Read { path, source };
    let Some(found) = root.open(Path::new(path))? else {
        return Ok(String::new());
    };
    let status = rustix::fs::fstat(&found).map_err(|error| failed(error.into()))?;
    let system = rustix::fs::fstatfs(&found).map_err(|error| failed(error.into()))?;
    let regular = FileType::from_raw_mode(status.st_mode) == FileType::RegularFile;
    if !regular || system.f_type == PROC_SUPER_MAGIC {
        return Err(failed(io::Error::other("not a regular file")));
    }
    let file = reopener.open(&found, OFlags::RDONLY).map_err(failed)?;
    let mut content = Vec::new();
    File::from(file)
        .take(LARGEST_FILE + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if u64::try_from(content.len()).is_ok_and(|length| length > LARGEST_FILE) {
        return Err(failed(io::Error::other(format!(
            "larger than {LARGEST_FILE} bytes"
        ))));
    }
    Ok(String::from_utf8_lossy(&content).into_owned())
}

/// A line of passwd(5).
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// A line of group(5).
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Lines that are no accounts are passed over.
fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or_default();
        Some(Account {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home,
        })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Group {
            name,
            gid: gid.parse().ok()?,
            members: fields.next().unwrap_or_default(),
        })
    })
}

/// `USER[:GROUP[:MORE,...]]`: the third part are further groups, by name or number.
///
/// Docker's rules: a number is an ID even if an account is named so; an unknown name is an error, an unknown number is
/// not; with a group given, the account's supplementary groups do not count; the group ID is also a supplementary one,
/// so that a program cannot leave it to escape a group's denial (CVE-2022-36109).
fn resolve(text: &str, passwd: &str, group: &str) -> Result<Identity, Error> {
    let mut parts = text.splitn(3, ':');
    let mut part = || parts.next().unwrap_or_default();
    let (user_text, group_text, more) = (part(), part(), part());
    let user_text = if user_text.is_empty() { "0" } else { user_text };
    let number = id(user_text)?;
    let account = accounts(passwd).find(|account| match number {
        Some(uid) => account.uid == uid,
        None => account.name == user_text,
    });
    let (uid, mut gid, home) = match (&account, number) {
        (Some(account), _) => (account.uid, account.gid, account.home),
        (None, Some(uid)) => (uid, 0, "/"),
        (None, None) => return Err(Error::NoUser(user_text.into())),
    };
    let mut supplementary = Vec::new();
    if group_text.is_empty() {
        if let Some(account) = &account {
            let of_account =
                groups(group).filter(|group| group.members.split(',').any(|name| name == account.name));
            supplementary.extend(of_account.map(|group| group.gid));
        }
    } else {
        gid = group_id(group_text, group)?;
    }
    supplementary.push(gid);
    for name in more.split(',').filter(|name| !name.is_empty()) {
        supplementary.push(group_id(name, group)?);
    }
    supplementary.sort_unstable();
    supplementary.dedup();
    let home = if home.is_empty() { "/" } else { home };
    Ok(Identity {
        uid,
        gid,
        groups: supplementary,
        home: home.into(),
    })
}

/// The ID of a group by its name or number.
fn group_id(text: &str, group: &str) -> Result<u32, Error> {
    if let Some(gid) = id(text)? {
        return Ok(gid);
    }
    let named = groups(group).find(|group| group.name == text);
    Ok(named.ok_or_else(|| Error::NoGroup(text.into()))?.gid)
}

/// The number, if the text is one.
fn id(text: &str) -> Result<Option<u32>, Error> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= LARGEST_ID => Ok(Some(id)),
        _ => Err(Error::OutOfRange(text.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # not an account\n\
        www:x:33:34:www:/var/www:/bin/false\n\
        1000:x:7:7::/seven:\n\
        broken:x:abc:0:::\n\
        homeless:x:50:50:::\n\
        +::::::\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nssl:x:100:www,root\nvideo:x:44:other,www\nbad:x:x:www\n";

    fn check(text: &str, uid: u32, gid: u32, groups: &[u32], home: &str) {
        let expected = Identity {
            uid,
            gid,
            groups: groups.into(),
            home: home.into(),
        };
        assert_eq!(resolve(text, PASSWD, GROUP).unwrap(), expected, "{text:?}");
    }

    #[test]
    fn users_resolve_as_in_docker() {
        check("", 0, 0, &[0, 100], "/root");
        check("root", 0, 0, &[0, 100], "/root");
        check("www", 33, 34, &[34, 44, 100], "/var/www");
        check("33", 33, 34, &[34, 44, 100], "/var/www");
        check("www:ssl", 33, 100, &[100], "/var/www");
        check("www:5", 33, 5, &[5], "/var/www");
        check("1000", 1000, 0, &[0], "/");
        check("1000:1000", 1000, 1000, &[1000], "/");
        check(":ssl", 0, 100, &[100], "/root");
        check("homeless", 50, 50, &[50], "/");
        check("www::video,7,root", 33, 34, &[0, 7, 34, 44, 100], "/var/www");
        check("www:ssl:video", 33, 100, &[44, 100], "/var/www");
        check("::7", 0, 0, &[0, 7, 100], "/root");
        check("2147483647", LARGEST_ID, 0, &[0], "/");
    }

    #[test]
    fn unknown_users_are_errors() {
        let cases = [
            ("nobody", "no user \"nobody\" in /etc/passwd of the image"),
            ("broken", "no user \"broken\" in /etc/passwd of the image"),
            ("root:wheel", "no group \"wheel\" in /etc/group of the image"),
            ("root::ssl,wheel", "no group \"wheel\" in /etc/group of the image"),
            ("2147483648", "2147483648 is not between 0 and 2147483647"),
            (
                "99999999999999999999",
                "99999999999999999999 is not between 0 and 2147483647",
            ),
            ("-1", "no user \"-1\" in /etc/passwd of the image"),
            ("0:4294967296", "4294967296 is not between 0 and 2147483647"),
        ];
        for (text, expected) in cases {
            assert_eq!(resolve(text, PASSWD, GROUP).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn without_files_numbers_still_work() {
        assert_eq!(resolve("5:6", "", "").unwrap().gid, 6);
        assert_eq!(resolve("", "", "").unwrap().home, "/");
        assert!(resolve("root", "", "").is_err());
    }
}
