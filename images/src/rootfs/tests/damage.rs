//! What is damaged gives errors, and never a panic.

use super::*;

#[test]
fn damaged_images_give_errors() {
    let stream = Layer::new()
        .directory("d", 0o755)
        .file("d/x", b"hello")
        .symlink("l", "d")
        .bytes();
    let image = std::fs::read(convert_on(&stream, &Lower::default()).unwrap().0.path()).unwrap();
    for position in (0..image.len()).filter(|position| image[*position] != 0) {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = image.clone();
            damaged[position] ^= flip;
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&damaged).unwrap();
            if let Ok(reader) = Reader::new(file) {
                let lower = Lower::new(vec![Arc::new(reader)]);
                // Any outcome but a panic or a loop will do.
                let _ = lower.names(0, |_| true);
                let _ = lower.follow(&[b"l", b"x"]);
            }
        }
    }
}

/// What becomes of a stream must be an image or an error.
#[test]
fn damaged_streams_never_panic() {
    let below = stack(vec![
        Layer::new()
            .directory("d", 0o755)
            .file("d/a", b"1")
            .symlink("l", "d")
            .link("h", "d/a"),
    ]);
    let below = below.unwrap();
    let mut stream = Layer::new()
        .xattr("user.note", b"value")
        .file("d/x", b"hello")
        .file("d/.wh.a", b"")
        .file("l/through", b"x")
        .link("h2", "h")
        .symlink("s", "d")
        .device("n", ::tar::EntryType::Char, 1, 3)
        .file("d/.wh..wh..opq", b"")
        .bytes();
    // Checksums are put right after each change, so that the change is looked at.
    let mut state = 1_u64;
    for _ in 0..10_000 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let random = usize::try_from(state >> 33).unwrap();
        let position = random % stream.len();
        let before = stream[position];
        stream[position] = u8::try_from(random / 7 % 256).unwrap();
        let mut fixed = stream.clone();
        for block in fixed
            .as_chunks_mut::<512>()
            .0
            .iter_mut()
            .filter(|block| &block[257..262] == b"ustar")
        {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let mut reader = tar::Reader::new(tar::Forward(fixed.as_slice()));
        if let Ok(unfinished) = read_layer(&mut reader, tempfile::tempfile().unwrap()) {
            let _ = unfinished.finish(&below);
        }
        stream[position] = before;
    }
}
