//! Bytes that both ends know, so that whoever receives them can tell each one that is wrong.

use std::io::{Read, Write};

const CHUNK: usize = 64 << 10;

/// Numbers that look random (xorshift64, Marsaglia 2003), as bytes.
struct Pattern(u64);

impl Pattern {
    fn fill(&mut self, chunk: &mut [u8]) {
        for bytes in chunk.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.copy_from_slice(&self.0.to_le_bytes()[..bytes.len()]);
        }
    }
}

/// Writes as many bytes.
pub(crate) fn send(mut stream: impl Write, seed: u64, bytes: u64) {
    let (mut pattern, mut chunk, mut left) = (Pattern(seed), vec![0; CHUNK], bytes);
    while left > 0 {
        pattern.fill(&mut chunk);
        let count = usize::try_from(left).unwrap().min(CHUNK);
        stream.write_all(&chunk[..count]).unwrap();
        left -= count as u64;
    }
}

/// Reads to the end, and returns how many bytes there were.
///
/// # Panics
/// At the first one that is wrong.
pub(crate) fn receive(mut stream: impl Read, seed: u64) -> u64 {
    let (mut pattern, mut expected, mut chunk) = (Pattern(seed), vec![0; CHUNK], vec![0; CHUNK]);
    let mut total = 0;
    loop {
        pattern.fill(&mut expected);
        let mut filled = 0;
        while filled < CHUNK {
            match stream.read(&mut chunk[filled..]).unwrap() {
                0 => {
                    assert!(chunk[..filled] == expected[..filled], "wrong bytes after {total}");
                    return total + filled as u64;
                }
                count => filled += count,
            }
        }
        assert!(chunk == expected, "wrong bytes after {total}");
        total += CHUNK as u64;
    }
}
