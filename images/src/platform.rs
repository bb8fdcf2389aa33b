//! Platforms as `OS/ARCHITECTURE[/VARIANT]`, and the choice among those of an index.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::ImageConfiguration;

use crate::document::{self, Descriptor};

/// What an image is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// The text is no platform.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no platform: it is written OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, as linux/amd64")]
pub struct PlatformError(String);

/// What runs here.
impl Default for Platform {
    fn default() -> Self {
        Self {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            variant: None,
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<String> = text.split('/').map(str::to_ascii_lowercase).collect();
        let good = |part: &String| {
            part.starts_with(|first: char| first.is_ascii_alphanumeric())
                && part
                    .chars()
                    .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.'))
        };
        match parts.as_slice() {
            [os, architecture, variant @ ..] if variant.len() < 2 && parts.iter().all(good) => Ok(Self {
                os: os.clone(),
                // As people and `uname` call it.
                architecture: match architecture.as_str() {
                    "x86_64" | "x86-64" => "amd64".to_owned(),
                    "aarch64" => "arm64".to_owned(),
                    other => other.to_owned(),
                },
                variant: variant.first().cloned(),
            }),
            _ => Err(PlatformError(text.to_owned())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(formatter, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl Platform {
    /// What an image's configuration says that it is for.
    #[must_use]
    pub fn of(config: &ImageConfiguration) -> Self {
        Self {
            os: config.os().to_string(),
            architecture: config.architecture().to_string(),
            variant: config.variant().clone(),
        }
    }

    /// Whether this machine and its guests run it, or a variant of it may.
    #[must_use]
    pub fn runs_here(&self) -> bool {
        let here = Self::default();
        (&self.os, &self.architecture) == (&here.os, &here.architecture)
    }

    /// Whether an image for `offered` is one for this. Few configurations name their variant, so only another one counts.
    #[must_use]
    pub fn accepts(&self, offered: &Self) -> bool {
        let same_variant = match (&self.variant, &offered.variant) {
            (Some(wanted), Some(offered)) => wanted == offered,
            _ => true,
        };
        self.os == offered.os && self.architecture == offered.architecture && same_variant
    }

    /// Those of an index's entries that fit, the best first. Where no variant is asked for, that is the one that every such
    /// machine runs. An entry that does not say what it is for may be anything, and is the last choice.
    pub(crate) fn choices<'a>(&self, entries: &'a [Descriptor]) -> Vec<&'a Descriptor> {
        let rank = |entry: &Descriptor| match &entry.platform {
            Some(platform) => self.rank(platform),
            None => Some(3),
        };
        let mut ranked: Vec<(u8, &Descriptor)> = entries
            .iter()
            .filter_map(|entry| Some((rank(entry)?, entry)))
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, entry)| entry).collect()
    }

    /// How well something fits, 0 is best.
    fn rank(&self, offered: &document::Platform) -> Option<u8> {
        if offered.os != self.os || offered.architecture != self.architecture {
            return None;
        }
        let base = match self.architecture.as_str() {
            "amd64" => Some("v1"),
            "arm64" => Some("v8"),
            "arm" => Some("v7"),
            _ => None,
        };
        let wanted = self.variant.as_deref().or(base);
        let offered = offered.variant.as_deref().filter(|variant| !variant.is_empty());
        match (wanted == offered.or(base), &self.variant) {
            (true, _) => Some(0),
            (false, None) => Some(1),
            (false, Some(_)) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(platforms: &[&str]) -> Vec<Descriptor> {
        let entry = |text: &&str| {
            let mut parts = text.split('/');
            let mut next = || parts.next().unwrap_or_default().to_owned();
            let mut platform = serde_json::json!({"os": next(), "architecture": next()});
            if let Some(variant) = parts.next() {
                platform["variant"] = variant.into();
            }
            let mut entry = serde_json::json!({"digest": crate::layer::digest(text.as_bytes()), "size": 1});
            if *text != "none" {
                entry["platform"] = platform;
            }
            serde_json::from_value(entry).unwrap()
        };
        platforms.iter().map(entry).collect()
    }

    #[test]
    fn the_best_is_chosen() {
        let check = |wanted: &str, offered: &[&str], expected: Option<usize>| {
            let entries = entries(offered);
            let wanted: Platform = wanted.parse().unwrap();
            let chosen = wanted.choices(&entries).first().copied();
            assert_eq!(
                chosen,
                expected.map(|index| &entries[index]),
                "{wanted} of {offered:?}"
            );
        };
        check(
            "linux/amd64",
            &["linux/arm64", "linux/amd64", "linux/amd64"],
            Some(1),
        );
        check(
            "linux/amd64",
            &["linux/amd64/v3", "linux/amd64", "unknown/unknown"],
            Some(1),
        );
        check("linux/amd64/v3", &["linux/amd64", "linux/amd64/v3"], Some(1));
        check("linux/amd64/v3", &["linux/amd64"], None);
        check("linux/amd64", &["linux/amd64/v2"], Some(0));
        check("linux/x86_64", &["windows/amd64", "none"], Some(1));
        check("linux/arm64", &["linux/arm64/v8", "linux/arm/v7"], Some(0));
        check("linux/arm/v6", &["linux/arm/v7", "linux/arm/v6"], Some(1));
        check("linux/amd64", &["linux/arm64"], None);
        check("linux/amd64", &[], None);
    }

    #[test]
    fn texts() {
        for text in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "a/b/c/d",
            "linux/amd 64",
            "linux/../x",
        ] {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
        assert_eq!("Linux/X86_64".parse::<Platform>().unwrap(), Platform::default());
    }
}
