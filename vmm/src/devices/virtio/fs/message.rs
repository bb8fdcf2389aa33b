//! The heads of FUSE messages (include/uapi/linux/fuse.h), as far as a device has to know them.

/// Most bytes of a file that one request moves. The worker says so to the guest; a message of this length and its
/// bookkeeping fit into a socket's buffer as every Linux makes it.
pub const MAX_DATA_BYTES: u32 = 128 << 10;

/// Longest message in either direction: the data, and a page for everything before it.
pub const MAX_MESSAGE_BYTES: usize = MAX_DATA_BYTES as usize + 4096;

/// `struct fuse_in_header`.
pub const IN_HEADER_BYTES: usize = 40;

/// `struct fuse_out_header`.
pub const OUT_HEADER_BYTES: usize = 16;

/// Errors are the negative numbers above this one; the kernel's own driver refuses others from a device file.
const LOWEST_ERROR: i32 = -512;

const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// Whether requests of this kind are answered.
#[must_use]
pub fn has_answer(opcode: u32) -> bool {
    !matches!(opcode, FORGET | INTERRUPT | BATCH_FORGET)
}

/// The head of a request.
#[derive(Clone, Debug)]
pub(super) struct Request(pub(super) [u8; IN_HEADER_BYTES]);

impl Request {
    /// Length of the whole message as its sender states it.
    pub(super) fn length(&self) -> u32 {
        word(&self.0, 0)
    }

    pub(super) fn opcode(&self) -> u32 {
        word(&self.0, 4)
    }

    pub(super) fn id(&self) -> u64 {
        u64::from(word(&self.0, 8)) | u64::from(word(&self.0, 12)) << 32
    }

    pub(super) fn set_id(&mut self, id: u64) {
        self.0[8..16].copy_from_slice(&id.to_le_bytes());
    }
}

/// The head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Length of the whole message.
    pub(super) length: u32,
    /// 0, or a negative error number; then nothing follows.
    pub(super) error: i32,
    pub(super) id: u64,
}

impl Answer {
    /// One without a body.
    pub(super) fn of_error(error: i32, id: u64) -> Self {
        Self {
            length: 16, // OUT_HEADER_BYTES
            error: -error,
            id,
        }
    }

    /// Parses an answer of `received` bytes; `None` if they cannot be one.
    pub(super) fn parse(bytes: &[u8; OUT_HEADER_BYTES], received: usize) -> Option<Self> {
        let answer = Self {
            length: word(bytes, 0),
            error: word(bytes, 4).cast_signed(),
            id: u64::from(word(bytes, 8)) | u64::from(word(bytes, 12)) << 32,
        };
        let whole = (OUT_HEADER_BYTES..=MAX_MESSAGE_BYTES).contains(&received)
            && usize::try_from(answer.length) == Ok(received);
        let error_alone = answer.error == 0
            || (answer.error > LOWEST_ERROR && answer.error < 0 && received == OUT_HEADER_BYTES);
        (whole && error_alone).then_some(answer)
    }

    pub(super) fn to_bytes(self) -> [u8; OUT_HEADER_BYTES] {
        let mut bytes = [0; OUT_HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_le_bytes());
        bytes[8..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    word.map_or(0, |word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_whole_and_errors_are_errors() {
        let check = |length: u32, error, received, valid| {
            let bytes = Answer { length, error, id: 7 }.to_bytes();
            assert_eq!(
                Answer::parse(&bytes, received).is_some(),
                valid,
                "{length} {error} {received}"
            );
        };
        check(16, 0, 16, true);
        check(16, -5, 16, true);
        check(20, 0, 20, true);
        check(20, 0, 24, false);
        check(24, 0, 20, false);
        check(12, 0, 12, false);
        check(16, 0, 4, false);
        check(20, -5, 20, false);
        check(16, 5, 16, false);
        check(16, -512, 16, false);
        check(16, i32::MIN, 16, false);
        let most = u32::try_from(MAX_MESSAGE_BYTES).unwrap();
        check(most, 0, MAX_MESSAGE_BYTES, true);
        check(most + 1, 0, MAX_MESSAGE_BYTES + 1, false);
        let answer = Answer {
            length: 16,
            error: -2,
            id: u64::MAX - 1,
        };
        assert_eq!(Answer::parse(&answer.to_bytes(), 16), Some(answer));
    }

    #[test]
    fn a_request_keeps_all_but_its_number() {
        let mut bytes = [0; IN_HEADER_BYTES];
        bytes[..4].copy_from_slice(&100_u32.to_le_bytes());
        bytes[4..8].copy_from_slice(&15_u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&(u64::MAX - 5).to_le_bytes());
        bytes[16..].fill(9);
        let mut request = Request(bytes);
        assert_eq!(
            (request.length(), request.opcode(), request.id()),
            (100, 15, u64::MAX - 5)
        );
        request.set_id(3);
        assert_eq!(
            (request.id(), request.length(), &request.0[16..]),
            (3, 100, &[9; 24][..])
        );
    }
}
