//! Maps of sparse files: GNU's old format in headers, PAX versions 0.0 and 0.1 in records, 1.0 before the data.

use super::{BLOCK, SPARSE_EXTENTS, header};

/// A run of bytes that the archive holds; what lies between runs is zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte within the file.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// What is wrong with a sparse map.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SparseError {
    /// Something else where a number should be.
    #[error("its numbers are malformed")]
    Number,
    /// More than anybody needs.
    #[error("it has more than {} extents", SPARSE_EXTENTS)]
    TooMany,
    /// Not a map of this file.
    #[error("its extents overlap, are out of order, or reach beyond the file's size")]
    Order,
    /// Not a map of this entry.
    #[error("its extents hold {mapped} bytes and the entry {stored}")]
    Stored {
        /// Bytes of all extents.
        mapped: u64,
        /// Bytes of the entry.
        stored: u64,
    },
}

/// A map with the guarantees that a reader needs: ordered, disjoint, within `size`, `stored` bytes in all.
pub(super) fn checked(extents: Vec<Extent>, size: u64, stored: u64) -> Result<Vec<Extent>, SparseError> {
    let (mut end, mut mapped) = (0, 0_u64);
    for extent in &extents {
        if extent.offset < end {
            return Err(SparseError::Order);
        }
        end = extent
            .offset
            .checked_add(extent.length)
            .filter(|end| *end <= size)
            .ok_or(SparseError::Order)?;
        // Disjoint runs within a u64 cannot overflow their sum.
        mapped += extent.length;
    }
    if mapped == stored {
        Ok(extents)
    } else {
        Err(SparseError::Stored { mapped, stored })
    }
}

/// Extents of a GNU header (4) or extension block (21): pairs of 12-byte numbers up to the first empty one.
pub(super) fn gnu_extents(fields: &[u8], extents: &mut Vec<Extent>) -> Result<(), SparseError> {
    for pair in fields.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let parse = |field| header::number(field).and_then(|number| u64::try_from(number).ok());
        let (offset, length) = parse(&pair[..12])
            .zip(parse(&pair[12..]))
            .ok_or(SparseError::Number)?;
        push(extents, Extent { offset, length })?;
    }
    Ok(())
}

/// Whether another extension block follows this one, and its extents.
pub(super) fn gnu_extension(block: &[u8; BLOCK], extents: &mut Vec<Extent>) -> Result<bool, SparseError> {
    gnu_extents(&block[..504], extents)?;
    Ok(block[504] != 0)
}

/// Offsets and lengths alternating.
pub(super) fn pairs(numbers: &[u64]) -> Result<Vec<Extent>, SparseError> {
    let mut extents = Vec::new();
    let mut pairs = numbers.chunks_exact(2);
    for pair in &mut pairs {
        push(
            &mut extents,
            Extent {
                offset: pair[0],
                length: pair[1],
            },
        )?;
    }
    if pairs.remainder().is_empty() {
        Ok(extents)
    } else {
        Err(SparseError::Number)
    }
}

/// The map of PAX version 1.0: decimal lines at the beginning of the data, padded to a block. Fed block by block.
#[derive(Debug, Default)]
pub(super) struct Lines {
    numbers: Vec<u64>,
    current: Option<u64>,
}

impl Lines {
    /// Takes one block; the whole map once it is complete.
    pub(super) fn feed(&mut self, block: &[u8; BLOCK]) -> Result<Option<Vec<Extent>>, SparseError> {
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let shifted = self.current.unwrap_or(0).checked_mul(10);
                    let next = shifted.and_then(|value| value.checked_add(u64::from(byte - b'0')));
                    self.current = Some(next.ok_or(SparseError::Number)?);
                }
                b'\n' => self.numbers.push(self.current.take().ok_or(SparseError::Number)?),
                _ => return Err(SparseError::Number),
            }
            if let Some((count, numbers)) = self.numbers.split_first() {
                let count = usize::try_from(*count)
                    .ok()
                    .filter(|count| *count <= SPARSE_EXTENTS);
                if numbers.len() == count.ok_or(SparseError::TooMany)? * 2 && self.current.is_none() {
                    return pairs(numbers).map(Some);
                }
            }
        }
        Ok(None)
    }
}

fn push(extents: &mut Vec<Extent>, extent: Extent) -> Result<(), SparseError> {
    if extents.len() == SPARSE_EXTENTS {
        return Err(SparseError::TooMany);
    }
    extents.push(extent);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(pairs: &[(u64, u64)]) -> Vec<Extent> {
        pairs
            .iter()
            .map(|(offset, length)| Extent {
                offset: *offset,
                length: *length,
            })
            .collect()
    }

    #[test]
    fn maps_are_checked() {
        let check = |pairs: &[(u64, u64)], size, stored, good: bool| {
            assert_eq!(
                checked(extents(pairs), size, stored).is_ok(),
                good,
                "{pairs:?} {size} {stored}"
            );
        };
        check(&[], 10, 0, true);
        check(&[(0, 5), (5, 5)], 10, 10, true);
        check(&[(3, 2), (10, 0)], 10, 2, true);
        check(&[(0, 5), (4, 5)], 10, 10, false);
        check(&[(0, 11)], 10, 11, false);
        check(&[(0, 5)], 10, 4, false);
        check(&[(u64::MAX, 2)], u64::MAX, 2, false);
    }

    #[test]
    fn lines_span_blocks() {
        let mut text = b"40\n".to_vec();
        for number in 0..40 {
            text.extend_from_slice(format!("{}\n1000\n", number * 10_000).as_bytes());
        }
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        let mut lines = Lines::default();
        let mut found = None;
        for block in text.as_chunks::<BLOCK>().0 {
            assert_eq!(found, None);
            found = lines.feed(block).unwrap();
        }
        assert_eq!(found.unwrap().len(), 40);
        let mut bad = [0; BLOCK];
        bad[..3].copy_from_slice(b"x1\n");
        assert_eq!(Lines::default().feed(&bad), Err(SparseError::Number));
    }
}
