//! What a driver is told of directories.

use super::*;

/// One entry of a list.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    name: String,
    ino: u64,
    offset: u64,
}

impl Driver {
    /// Everything in a directory, from `offset` on, as it comes in answers of at most so many bytes.
    fn list(&mut self, node: u64, size: u32, mut offset: u64) -> Result<Vec<Listed>, i32> {
        let handle = u64_at(&self.ask(OPENDIR, node, &[0; 8])?, 0);
        let mut entries = Vec::new();
        loop {
            let mut body = [handle.to_le_bytes(), offset.to_le_bytes()].concat();
            body.extend(words(&[size, 0, 0, 0, 0, 0]));
            let listed = self.ask(READDIR, node, &body)?;
            assert!(listed.len() <= size as usize);
            let mut rest = listed.as_slice();
            if rest.is_empty() {
                return Ok(entries);
            }
            while !rest.is_empty() {
                let length = u32_at(rest, 16) as usize;
                let name = String::from_utf8(rest[24..24 + length].to_vec()).unwrap();
                let ino = u64_at(rest, 0);
                offset = u64_at(rest, 8);
                entries.push(Listed { name, ino, offset });
                rest = &rest[(24 + length).next_multiple_of(8)..];
            }
        }
    }
}

#[test]
fn directories_are_listed_as_they_are_on_the_host() {
    let mut driver = Driver::new();
    for index in 0..10_000 {
        fs::write(driver.path(&format!("file-{index}")), "x").unwrap();
    }
    let listed = driver.list(ROOT, 4096, 0).unwrap();
    let mut names: Vec<_> = listed.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names[..2], [".", ".."]);
    names.sort_unstable();
    names.dedup();
    assert_eq!((listed.len(), names.len()), (10_002, 10_002));
}

#[test]
fn a_directory_and_the_one_above_are_in_the_list() {
    let mut driver = Driver::new();
    fs::create_dir_all(driver.path("directory/inner")).unwrap();
    fs::write(driver.path("directory/file"), "x").unwrap();
    let number = |driver: &Driver, name: &str| fs::metadata(driver.path(name)).unwrap().ino();
    let (top, directory) = (number(&driver, ""), number(&driver, "directory"));
    let node = driver.lookup(ROOT, "directory").unwrap().node;
    let inner = driver.lookup(node, "inner").unwrap().node;
    // Nobody hears of what is above the share, its number included.
    let of = |entries: &[Listed]| [entries[0].ino, entries[1].ino];
    assert_eq!(of(&driver.list(ROOT, 4096, 0).unwrap()), [top, top]);
    let all = driver.list(node, 4096, 0).unwrap();
    assert_eq!(of(&all), [directory, top]);
    assert_eq!(all.len(), 4);
    let own = driver.list(inner, 4096, 0).unwrap();
    assert_eq!((of(&own)[1], own.len()), (directory, 2));
    for entry in &all[2..] {
        assert_eq!(
            entry.ino,
            number(&driver, &format!("directory/{}", entry.name)),
            "{entry:?}"
        );
    }
    // From behind any entry, and with room for one at a time.
    assert_eq!(driver.list(node, 40, 0).unwrap(), all);
    for (index, entry) in all.iter().enumerate() {
        let rest = driver.list(node, 4096, entry.offset).unwrap();
        assert_eq!(rest, all[index + 1..], "{entry:?}");
    }
    assert_eq!(driver.list(node, 8, 0), Err(libc::EINVAL));
}

#[test]
fn what_stays_is_listed_whatever_goes() {
    let mut driver = Driver::new();
    for index in 0..50 {
        fs::write(driver.path(&format!("kept-{index}")), "x").unwrap();
    }
    let (end, share) = (AtomicBool::new(false), driver.path(""));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                for index in 0..50 {
                    let path = share.join(format!("gone-{index}"));
                    fs::write(&path, "x").unwrap();
                    fs::remove_file(&path).unwrap();
                }
            }
        });
        let listed: Vec<_> = (0..100).map(|_| driver.list(ROOT, 160, 0)).collect();
        end.store(true, Ordering::Relaxed);
        for listed in listed {
            let listed = listed.unwrap();
            let kept = listed.iter().filter(|entry| entry.name.starts_with("kept-"));
            assert_eq!(kept.count(), 50);
        }
    });
}
