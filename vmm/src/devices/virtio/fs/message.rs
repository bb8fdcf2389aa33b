//! The heads of FUSE messages (include/uapi/linux/fuse.h), as far as a device has to know them.

/// Most bytes of a file that one request moves. The worker says so to the guest.
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
}

/// The head of an answer, without the request's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Length of the whole message.
    pub(super) length: u32,
    /// 0, or a negative error number; then nothing follows.
    pub(super) error: i32,
}

impl Answer {
    /// One without a body.
    pub(super) fn of_error(error: i32) -> Self {
        Self {
            length: 16, // OUT_HEADER_BYTES
            error: -error,
        }
    }

    /// Parses the head of an answer; `None` if it cannot be one.
    pub(super) fn parse(bytes: &[u8; OUT_HEADER_BYTES]) -> Option<Self> {
        let answer = Self {
            length: word(bytes, 0),
            error: word(bytes, 4).cast_signed(),
        };
        let whole = (OUT_HEADER_BYTES..=MAX_MESSAGE_BYTES).contains(&answer.bytes());
        let error_alone = answer.error == 0
            || (answer.error > LOWEST_ERROR && answer.error < 0 && answer.bytes() == OUT_HEADER_BYTES);
        (whole && error_alone).then_some(answer)
    }

    /// Length of the whole message.
    pub(super) fn bytes(self) -> usize {
        self.length as usize
    }

    /// The head of the answer to request `id`.
    pub(super) fn to_bytes(self, id: u64) -> [u8; OUT_HEADER_BYTES] {
        let mut bytes = [0; OUT_HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_le_bytes());
        bytes[8..].copy_from_slice(&id.to_le_bytes());
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
        let check = |length: u32, error: i32, valid: bool| {
            let answer = Answer { length, error };
            let parsed = Answer::parse(&answer.to_bytes(7));
            assert_eq!(parsed, valid.then_some(answer), "{length} {error}");
        };
        check(16, 0, true);
        check(16, -5, true);
        check(20, 0, true);
        check(0, 0, false);
        check(15, 0, false);
        check(20, -5, false);
        check(16, 5, false);
        check(16, -512, false);
        check(16, i32::MIN, false);
        let most = u32::try_from(MAX_MESSAGE_BYTES).unwrap();
        check(most, 0, true);
        check(most + 1, 0, false);
        check(u32::MAX, 0, false);
    }

    #[test]
    fn heads_have_their_fields_where_linux_has_them() {
        let mut bytes = [9; IN_HEADER_BYTES];
        bytes[..4].copy_from_slice(&100_u32.to_le_bytes());
        bytes[4..8].copy_from_slice(&15_u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&(u64::MAX - 5).to_le_bytes());
        let request = Request(bytes);
        assert_eq!(
            (request.length(), request.opcode(), request.id()),
            (100, 15, u64::MAX - 5)
        );
        let answer = Answer::of_error(libc::ENOENT).to_bytes(u64::MAX - 5);
        assert_eq!(answer[..8], [16, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]);
        assert_eq!(answer[8..], bytes[8..16], "where the request has it");
    }
}
