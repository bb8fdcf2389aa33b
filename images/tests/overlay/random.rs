//! Layers drawn at random, from few names so that they collide.

/// xorshift64*: repeatable, and good enough to choose entries.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.below(1);
        random
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap_or(0) % limit
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

pub(crate) struct Layer {
    pub(crate) tar: Vec<u8>,
    /// An entry a line, for the message of a failed test.
    pub(crate) description: String,
}

/// A layer of up to eight entries. `files` are those of this and lower layers, for hard links. Directories come before what is in them, as every tool writes them, but not always
/// with entries of their own.
pub(crate) fn layer(random: &mut Random, files: &mut Vec<String>) -> std::io::Result<Layer> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut lines = Vec::new();
    for _ in 0..random.below(8) + 1 {
        let parent = random.pick(&["", "", "a/", "b/", "a/b/", "d/a/"]);
        // Mostly, what has names beneath it is a directory: too many layers would make no sense otherwise.
        let kind = random.below(16);
        let directories = kind < 5 || random.below(6) == 0;
        let name = random.pick(if directories {
            &["a", "b", "d"]
        } else {
            &["c", "x", "y"]
        });
        let target = format!(
            "{}{}",
            random.pick(&["", "a/", "b/"]),
            random.pick(&["a", "b", "c", "d"])
        );
        let path = format!("{parent}{name}");
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(u64::try_from(random.below(3)).unwrap_or(0));
        header.set_mtime(1_600_000_000);
        header.set_mode(if random.below(2) == 0 { 0o755 } else { 0o700 });
        header.set_size(0);
        let (kind, path, link, data) = match kind {
            0..=4 => (tar::EntryType::Directory, path, None, String::new()),
            5..=9 => (
                tar::EntryType::Regular,
                path.clone(),
                None,
                format!("{path} {}", random.below(1000)),
            ),
            10 => (tar::EntryType::Symlink, path, Some(target), String::new()),
            11 => {
                let known = (!files.is_empty()).then(|| files[random.below(files.len())].clone());
                (
                    tar::EntryType::Link,
                    path,
                    Some(known.unwrap_or(target)),
                    String::new(),
                )
            }
            12..=14 => (
                tar::EntryType::Regular,
                format!("{parent}.wh.{name}"),
                None,
                String::new(),
            ),
            _ => (
                tar::EntryType::Regular,
                format!("{parent}.wh..wh..opq"),
                None,
                String::new(),
            ),
        };
        header.set_entry_type(kind);
        header.set_size(u64::try_from(data.len()).unwrap_or(0));
        if let Some(link) = &link {
            header.set_link_name_literal(link)?;
        }
        if kind == tar::EntryType::Regular && !path.contains(".wh.") {
            files.push(path.clone());
        }
        lines.push(format!("{kind:?} {path} {link:?} {:o}", header.mode()?));
        builder.append_data(&mut header, path, data.as_bytes())?;
    }
    Ok(Layer {
        tar: builder.into_inner()?,
        description: lines.join("\n"),
    })
}
