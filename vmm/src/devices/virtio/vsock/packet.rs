//! Packet headers (section 5.10.6).

/// Length of a header in bytes.
pub(super) const HEADER_BYTES: usize = 44;

/// Context identifier of the host.
pub(super) const HOST_CID: u64 = 2;

/// The only type of socket here: a stream.
pub(super) const TYPE_STREAM: u16 = 1;

/// What a packet is for.
pub(super) mod operation {
    /// Opens a connection.
    pub(crate) const REQUEST: u16 = 1;
    /// Accepts it.
    pub(crate) const RESPONSE: u16 = 2;
    /// Refuses or ends it.
    pub(crate) const RESET: u16 = 3;
    /// Ends one or both directions.
    pub(crate) const SHUTDOWN: u16 = 4;
    /// Carries data.
    pub(crate) const DATA: u16 = 5;
    /// Tells how much buffer space there is.
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    /// Asks for that.
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// Flag of a shutdown: the sender will receive nothing more.
pub(super) const NO_MORE_RECEIVING: u32 = 1;
/// Flag of a shutdown: the sender will send nothing more.
pub(super) const NO_MORE_SENDING: u32 = 2;

/// A header. All numbers are little-endian on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) destination_cid: u64,
    pub(super) source_port: u32,
    pub(super) destination_port: u32,
    /// Bytes of data behind the header.
    pub(super) length: u32,
    pub(super) kind: u16,
    pub(super) operation: u16,
    pub(super) flags: u32,
    /// Buffer space of the sender for this connection, in bytes.
    pub(super) buffer_bytes: u32,
    /// Bytes that the sender has taken out of its buffer since the connection began, modulo 2^32.
    pub(super) forwarded: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        Self {
            source_cid: u64::from_le_bytes(field(bytes, 0)),
            destination_cid: u64::from_le_bytes(field(bytes, 8)),
            source_port: u32::from_le_bytes(field(bytes, 16)),
            destination_port: u32::from_le_bytes(field(bytes, 20)),
            length: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            operation: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buffer_bytes: u32::from_le_bytes(field(bytes, 36)),
            forwarded: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put =
            |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(0, &self.source_cid.to_le_bytes());
        put(8, &self.destination_cid.to_le_bytes());
        put(16, &self.source_port.to_le_bytes());
        put(20, &self.destination_port.to_le_bytes());
        put(24, &self.length.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.operation.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buffer_bytes.to_le_bytes());
        put(40, &self.forwarded.to_le_bytes());
        bytes
    }
}

/// `N` bytes at `offset`, which is a constant within the header.
fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], offset: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[offset + index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_place() {
        let bytes: [u8; HEADER_BYTES] = std::array::from_fn(|index| u8::try_from(index).unwrap());
        let header = Header::parse(&bytes);
        assert_eq!(header.source_cid, 0x0706_0504_0302_0100);
        assert_eq!((header.kind, header.operation), (0x1d1c, 0x1f1e));
        assert_eq!(header.forwarded, 0x2b2a_2928);
        assert_eq!(header.to_bytes(), bytes);
    }
}
