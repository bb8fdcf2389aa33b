//! `-v [SOURCE:]DESTINATION[:OPTIONS]`, as Docker reads it.

use super::{Asked, Kind, MountError, Propagation};

impl Asked {
    /// Reads the value of `-v`.
    ///
    /// # Errors
    /// [`MountError::EmptySection`], [`MountError::Volume`], [`MountError::Mode`].
    pub fn from_volume_flag(text: &str) -> Result<Self, MountError> {
        let parts: Vec<&str> = text.split(':').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(MountError::EmptySection(text.to_owned()));
        }
        let (source, target, mode) = match *parts {
            [target] => ("", target, ""),
            // A destination is absolute, and options are not.
            [target, mode] if !mode.starts_with('/') && target.starts_with('/') && is_mode(mode) => {
                ("", target, mode)
            }
            [source, target] => (source, target, ""),
            [source, target, mode] => (source, target, mode),
            _ => return Err(MountError::Volume(text.to_owned())),
        };
        let is_bind = source.starts_with('/');
        let mut asked = Self {
            source: source.to_owned(),
            target: target.to_owned(),
            mode: mode.to_owned(),
            makes_source: is_bind,
            ..Self::new(if is_bind { Kind::Bind } else { Kind::Volume })
        };
        asked.read_mode(mode)?;
        Ok(asked)
    }

    fn read_mode(&mut self, mode: &str) -> Result<(), MountError> {
        let mut seen = [false; 5];
        for option in mode.split(',').filter(|_| !mode.is_empty()) {
            let invalid = || MountError::Mode(mode.to_owned());
            let class = class_of(option).ok_or_else(invalid)?;
            // At most one of a kind.
            if std::mem::replace(seen.get_mut(class).ok_or_else(invalid)?, true) {
                return Err(invalid());
            }
            match option {
                "ro" => self.read_only = true,
                "nocopy" if self.kind == Kind::Volume => self.no_copy = true,
                "nocopy" => return Err(invalid()),
                option => match Propagation::parse(option) {
                    Some(_) if self.kind == Kind::Volume => return Err(invalid()),
                    Some(propagation) => self.propagation = Some(propagation),
                    // Labels change nothing without SELinux, and what is said of consistency never does on Linux.
                    None => {}
                },
            }
        }
        Ok(())
    }
}

/// Of which kind an option is.
fn class_of(option: &str) -> Option<usize> {
    Some(match option {
        "ro" | "rw" => 0,
        "z" | "Z" => 1,
        "nocopy" => 2,
        "consistent" | "cached" | "delegated" | "default" => 3,
        option => {
            Propagation::parse(option)?;
            4
        }
    })
}

fn is_mode(text: &str) -> bool {
    text.split(',').all(|option| class_of(option).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_docker_does() {
        let read = |text: &str| {
            Asked::from_volume_flag(text)
                .map(|asked| {
                    let propagation = asked.propagation.map_or("", Propagation::name);
                    format!(
                        "{} {}>{} {} {} {propagation}",
                        asked.kind.name(),
                        asked.source,
                        asked.target,
                        if asked.read_only { "ro" } else { "rw" },
                        if asked.no_copy { "nocopy" } else { "copy" },
                    )
                })
                .map_err(|error| error.to_string())
        };
        for (text, expected) in [
            ("/data", "volume >/data rw copy "),
            ("/data:ro", "volume >/data ro copy "),
            ("db:/data", "volume db>/data rw copy "),
            ("db:/data:ro,nocopy", "volume db>/data ro nocopy "),
            ("/srv:/data", "bind /srv>/data rw copy "),
            ("/srv:/data:ro,z,rslave", "bind /srv>/data ro copy rslave"),
            ("/srv:/data:rw,Z,cached", "bind /srv>/data rw copy "),
            ("/srv:data", "bind /srv>data rw copy "),
        ] {
            assert_eq!(read(text), Ok(expected.to_owned()), "{text}");
        }
        for (text, expected) in [
            ("", "invalid spec: : empty section between colons"),
            (":/data", "invalid spec: :/data: empty section between colons"),
            ("a:b:c:d", "invalid volume specification: 'a:b:c:d'"),
            ("/srv:/data:rx", "invalid mode: rx"),
            ("/srv:/data:ro,rw", "invalid mode: ro,rw"),
            ("/srv:/data:nocopy", "invalid mode: nocopy"),
            ("db:/data:rshared", "invalid mode: rshared"),
        ] {
            assert_eq!(read(text), Err(expected.to_owned()), "{text}");
        }
    }
}
