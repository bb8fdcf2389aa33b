//! Keys that leave a container behind.

use std::str::FromStr;

use clap::Args as ClapArgs;

/// How a command with a terminal is left.
#[derive(Debug, ClapArgs)]
pub(crate) struct Detach {
    /// Keys that leave a container with a terminal behind: characters or ctrl-CHARACTER, with commas between them
    #[arg(long, value_name = "KEYS", default_value = DEFAULT)]
    pub(crate) detach_keys: DetachKeys,
}

/// Docker's.
const DEFAULT: &str = "ctrl-p,ctrl-q";

/// What a terminal sends for some keys, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl DetachKeys {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // As Docker has it, nothing is what it is without the flag.
        let text = if text.is_empty() { DEFAULT } else { text };
        text.split(',').map(key).collect::<Result<_, _>>().map(Self)
    }
}

/// A character, or one with the control key, which takes away all but its five low bits (ascii(7)).
fn key(name: &str) -> Result<u8, String> {
    let byte = match (name.as_bytes(), name.strip_prefix("ctrl-").map(str::as_bytes)) {
        ([byte], _) if byte.is_ascii() => Some(*byte),
        (_, Some([byte @ (b'a'..=b'z' | b'@' | b'['..=b'_')])) => Some(byte & 0x1f),
        _ if name == "DEL" => Some(0x7f),
        _ => None,
    };
    byte.ok_or_else(|| {
        format!("{name:?} is no key: there are single characters, DEL, ctrl-a to ctrl-z and ctrl- with one of @[\\]^_")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_docker_s() {
        let cases: [(&str, &[u8]); 7] = [
            ("ctrl-p,ctrl-q", &[16, 17]),
            ("", &[16, 17]),
            ("a", b"a"),
            ("a,Z,1", b"aZ1"),
            ("ctrl-@,ctrl-[,ctrl-\\", &[0, 27, 28]),
            ("ctrl-],ctrl-^,ctrl-_", &[29, 30, 31]),
            ("DEL", &[127]),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse::<DetachKeys>().unwrap().bytes(), bytes, "{text}");
        }
        for text in ["ctrl-P", "ctrl-", "ctrl-ab", "ab", "a,", ",", "ctrl-1", "\u{e4}"] {
            assert!(text.parse::<DetachKeys>().is_err(), "{text}");
        }
    }
}
