//! Container IDs and readable names.

use std::fmt::Write as _;

/// Digits of an ID that listings show.
pub const SHORT_ID: usize = 12;

const ADJECTIVES: [&str; 64] = [
    "able", "amber", "apt", "bold", "brave", "bright", "brisk", "calm", "candid", "clear", "clever", "cool",
    "crisp", "deft", "eager", "early", "easy", "fair", "fast", "fine", "firm", "fleet", "fond", "free",
    "fresh", "gentle", "glad", "golden", "good", "grand", "green", "hardy", "honest", "jolly", "keen",
    "kind", "lively", "lucid", "merry", "mild", "modest", "neat", "nimble", "noble", "plain", "polite",
    "proud", "quick", "quiet", "rapid", "ready", "sharp", "silver", "sleek", "smart", "snug", "solid",
    "steady", "sunny", "swift", "tidy", "vivid", "warm", "wise",
];

const NOUNS: [&str; 64] = [
    "acorn", "alder", "anchor", "aspen", "badger", "beacon", "birch", "bison", "brook", "canyon", "cedar",
    "comet", "coral", "crane", "delta", "ember", "falcon", "fern", "finch", "fjord", "garnet", "glacier",
    "grove", "harbor", "hazel", "heron", "island", "ivory", "jasper", "juniper", "kestrel", "lagoon", "lark",
    "lotus", "lynx", "maple", "marten", "meadow", "nebula", "oak", "orchid", "osprey", "otter", "pebble",
    "pine", "plover", "quartz", "raven", "reef", "river", "robin", "sequoia", "sparrow", "spruce", "summit",
    "swallow", "thistle", "tiger", "tundra", "valley", "walnut", "willow", "wren", "zephyr",
];

/// `N` random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        // Once the kernel's pool is initialised, as it is long before rvm can run, getrandom only ever fails with EINTR.
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .unwrap_or_default();
    }
    bytes
}

/// A new container ID: 64 lowercase hexadecimal digits.
#[must_use]
pub fn new_id() -> String {
    hexadecimal(&random::<32>())
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// A readable name; callers try again where it is taken.
#[must_use]
pub fn new_name() -> String {
    let [adjective, noun] = random::<2>();
    let pick = |list: &[&'static str; 64], byte: u8| list[usize::from(byte) % list.len()];
    format!("{}_{}", pick(&ADJECTIVES, adjective), pick(&NOUNS, noun))
}

/// Whether `name` may name a container: a letter or digit, then at least one letter, digit, `_`, `.` or `-`.
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.len() >= 2
        && name.len() <= 255
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_long_and_differ() {
        let id = new_id();
        assert_eq!(id.len(), 64);
        assert_ne!(id, new_id());
    }

    #[test]
    fn generated_names_are_valid() {
        for _ in 0..1000 {
            assert!(is_valid_name(&new_name()));
        }
    }

    #[test]
    fn names_cannot_be_paths() {
        for name in ["", "a", ".a", "-a", "a/b", "../a", "a b", "a\n", "ä1"] {
            assert!(!is_valid_name(name), "{name:?}");
        }
        assert!(is_valid_name("a1") && is_valid_name("Web_1.test-x"));
    }
}
