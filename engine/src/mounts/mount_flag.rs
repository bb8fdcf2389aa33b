//! `--mount type=TYPE,source=SOURCE,target=DESTINATION,...`, as Docker reads it.

use super::{Asked, Kind, MountError, Propagation, Recursion};

impl Asked {
    /// Reads the value of `--mount`.
    ///
    /// # Errors
    /// See [`MountError`].
    pub fn from_mount_flag(text: &str) -> Result<Self, MountError> {
        let fields = split(text).ok_or_else(|| MountError::Field(text.to_owned()))?;
        let mut asked = Self::new(Kind::Volume);
        let mut prefixes = Vec::new();
        for field in &fields {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key.to_ascii_lowercase(), Some(value)),
                None => (field.to_ascii_lowercase(), None),
            };
            for prefix in ["bind", "volume", "tmpfs"] {
                if key.starts_with(&format!("{prefix}-")) {
                    prefixes.push(prefix);
                }
            }
            asked.read_field(&key, value, field)?;
        }
        let kind = asked.kind.name();
        if let Some(prefix) = prefixes.into_iter().find(|prefix| *prefix != kind) {
            return Err(MountError::Mix { prefix, kind });
        }
        asked.check()?;
        Ok(asked)
    }

    fn read_field(&mut self, key: &str, value: Option<&str>, field: &str) -> Result<(), MountError> {
        match key {
            "readonly" | "ro" => return set(&mut self.read_only, key, value),
            "volume-nocopy" => return set(&mut self.no_copy, key, value),
            "bind-create-src" => return set(&mut self.makes_source, key, value),
            "bind-nonrecursive" => {
                let mut disabled = false;
                set(&mut disabled, key, value)?;
                self.recursion = disabled.then_some(Recursion::Disabled);
                return Ok(());
            }
            _ => {}
        }
        let value = value.ok_or_else(|| MountError::Field(field.to_owned()))?;
        let invalid = || MountError::Value {
            key: key.to_owned(),
            value: value.to_owned(),
        };
        match key {
            "type" => {
                self.kind = match value.to_ascii_lowercase().as_str() {
                    "bind" => Kind::Bind,
                    "volume" => Kind::Volume,
                    "tmpfs" => Kind::Tmpfs,
                    _ => return Err(MountError::Type(value.to_owned())),
                }
            }
            "source" | "src" => value.clone_into(&mut self.source),
            "target" | "dst" | "destination" => value.clone_into(&mut self.target),
            // It never means anything on Linux.
            "consistency" if matches!(value, "consistent" | "cached" | "delegated" | "default") => {}
            "consistency" => return Err(invalid()),
            "bind-propagation" => {
                self.propagation = Some(Propagation::parse(value).ok_or_else(invalid)?);
            }
            "bind-recursive" => {
                self.recursion = Some(match value {
                    "enabled" => Recursion::Enabled,
                    "disabled" => Recursion::Disabled,
                    "writable" => Recursion::Writable,
                    "readonly" => Recursion::ReadOnly,
                    _ => return Err(invalid()),
                });
            }
            "volume-subpath" => value.clone_into(&mut self.subpath),
            "volume-label" => {
                let (name, value) = value.split_once('=').unwrap_or((value, ""));
                self.labels.insert(name.to_owned(), value.to_owned());
            }
            "volume-driver" if value == "local" => {}
            "volume-driver" => {
                return Err(self.refused(&format!("plugin \"{value}\" not found: the one driver is local")));
            }
            "volume-opt" => {
                return Err(self.refused(
                    "the local driver takes no options here: use type=tmpfs for memory, and type=bind for a directory",
                ));
            }
            // Docker's sizes, of which tmpfs(5) does not know them all: units are powers of 1024, with an `i` or without.
            "tmpfs-size" => {
                let bytes = parse_size::Config::new().with_binary().parse_size(value);
                self.add_tmpfs("size", &bytes.map_err(|_| invalid())?.to_string());
            }
            "tmpfs-mode" => {
                let mode = u32::from_str_radix(value, 8).map_err(|_| invalid())?;
                self.add_tmpfs("mode", &format!("{mode:o}"));
            }
            "tmpfs-options" => self.tmpfs = [self.tmpfs.as_str(), value].join(","),
            _ => {
                return Err(MountError::Key {
                    key: key.to_owned(),
                    field: field.to_owned(),
                });
            }
        }
        Ok(())
    }

    fn add_tmpfs(&mut self, name: &str, value: &str) {
        self.tmpfs = format!("{},{name}={value}", self.tmpfs);
    }

    fn refused(&self, reason: &str) -> MountError {
        MountError::Config {
            kind: self.kind.name(),
            reason: reason.to_owned(),
        }
    }

    fn check(&mut self) -> Result<(), MountError> {
        if self.target.is_empty() {
            return Err(MountError::NoTarget);
        }
        match self.kind {
            Kind::Bind if self.source.is_empty() => {
                return Err(self.refused("field Source must not be empty"));
            }
            Kind::Tmpfs if !self.source.is_empty() => {
                return Err(self.refused("field Source must not be specified"));
            }
            Kind::Volume if !self.subpath.is_empty() && self.source.is_empty() => {
                return Err(self.refused("must not set Subpath when using anonymous volumes"));
            }
            _ => {}
        }
        if self.recursion == Some(Recursion::ReadOnly) {
            let needed = if !self.read_only {
                "\"readonly\""
            } else if self.propagation != Some(Propagation::RPrivate) {
                "\"bind-propagation=rprivate\""
            } else {
                return Ok(());
            };
            return Err(self.refused(&format!(
                "option 'bind-recursive=readonly' requires {needed} to be specified in conjunction"
            )));
        }
        if self.recursion == Some(Recursion::Writable) && !self.read_only {
            return Err(self.refused(
                "option 'bind-recursive=writable' requires \"readonly\" to be specified in conjunction",
            ));
        }
        if self.kind == Kind::Tmpfs && self.read_only {
            self.tmpfs.push_str(",ro");
        }
        self.tmpfs = self.tmpfs.trim_start_matches(',').to_owned();
        Ok(())
    }
}

/// Reads the value of a field that is on or off; on where there is none.
fn set(to: &mut bool, key: &str, value: Option<&str>) -> Result<(), MountError> {
    *to = match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
        Some(value) => {
            return Err(MountError::Value {
                key: key.to_owned(),
                value: value.to_owned(),
            });
        }
    };
    Ok(())
}

/// Takes one line of comma-separated values apart (RFC 4180): a field in quotes may have commas, and a quote as two.
fn split(text: &str) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, behind) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let (field, behind) = rest.split_at_checked(end)?;
                // As Docker's reader: a quote in the middle of a field is a mistake.
                if field.contains('"') {
                    return None;
                }
                (field.to_owned(), behind)
            }
        };
        fields.push(field);
        match behind.strip_prefix(',') {
            Some(more) => rest = more,
            None if behind.is_empty() => return Some(fields),
            None => return None,
        }
    }
}

fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (part, behind) = rest.split_once('"')?;
        field.push_str(part);
        match behind.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None => return Some((field, behind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Asked, String> {
        Asked::from_mount_flag(text).map_err(|error| error.to_string())
    }

    #[test]
    fn fields_are_docker_s() {
        let asked = read("type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave").unwrap();
        assert_eq!((asked.kind, asked.read_only), (Kind::Bind, true));
        assert_eq!((asked.source.as_str(), asked.target.as_str()), ("/a", "/b"));
        assert_eq!(asked.propagation, Some(Propagation::RSlave));
        let asked =
            read("source=v,target=/b,\"volume-label=a=1,2\",volume-nocopy=true,volume-subpath=x").unwrap();
        assert_eq!((asked.kind, asked.no_copy), (Kind::Volume, true));
        assert_eq!(asked.labels.get("a").map(String::as_str), Some("1,2"));
        assert_eq!(asked.subpath, "x");
        let asked = read("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=0700,ro").unwrap();
        assert_eq!(asked.tmpfs, "size=1048576,mode=700,ro");
        for (text, bytes) in [
            ("65536", 65536),
            ("64k", 65536),
            ("64MB", 64 << 20),
            ("1.5gib", 3 << 29),
        ] {
            let asked = read(&format!("type=tmpfs,dst=/t,tmpfs-size={text}")).unwrap();
            assert_eq!(asked.tmpfs, format!("size={bytes}"), "{text}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for (text, expected) in [
            ("type=bind,src=/a", "target is required"),
            ("type=bind,dst=/a", "field Source must not be empty"),
            ("type=tmpfs,src=/a,dst=/a", "field Source must not be specified"),
            ("type=nfs,dst=/a", "mount type unknown: \"nfs\""),
            (
                "type=bind,src=/a,dst=/a,volume-nocopy",
                "cannot mix 'volume-*' options with mount type 'bind'",
            ),
            (
                "dst=/a,tmpfs-size=1m",
                "cannot mix 'tmpfs-*' options with mount type 'volume'",
            ),
            ("dst=/a,colour=red", "unexpected key 'colour' in 'colour=red'"),
            ("dst=/a,src", "invalid field 'src' must be a key=value pair"),
            ("", "invalid field '' must be a key=value pair"),
            ("dst=/a,readonly=maybe", "invalid value for readonly: maybe"),
            (
                "type=bind,src=/a,dst=/b,bind-propagation=x",
                "invalid value for bind-propagation: x",
            ),
            (
                "type=tmpfs,dst=/b,tmpfs-mode=9",
                "invalid value for tmpfs-mode: 9",
            ),
            (
                "type=tmpfs,dst=/b,tmpfs-size=64X",
                "invalid value for tmpfs-size: 64X",
            ),
            ("dst=/b,volume-driver=nfs", "plugin \"nfs\" not found"),
            ("dst=/b,volume-opt=type=nfs", "takes no options"),
            ("dst=/b,volume-subpath=x", "anonymous"),
            ("\"dst=/b", "must be a key=value pair"),
            (
                "type=bind,src=/a,dst=/b,bind-recursive=readonly",
                "requires \"readonly\"",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
