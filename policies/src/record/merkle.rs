//! Merkle tree hashes of RFC 6962 section 2.1, grown leaf by leaf in logarithmic space.
//!
//! Leaves are hashed with a zero byte before them, nodes with a one byte, so a leaf can never pass for a node.
//! Used over frame hashes (segment root) and over footer entries (the tile log).
//! Invariant: `root()` after n pushes equals MTH of those n leaves.

use crate::record::frame::{sha256, Hash};

/// A growing tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// Complete subtrees, largest first: (leaves, hash).
    peaks: Vec<(u64, Hash)>,
    size: u64,
}

impl Tree {
    /// Appends a leaf by its data.
    pub fn push(&mut self, data: &[u8]) {
        self.push_hash(leaf(data));
    }

    /// Appends a leaf by its leaf hash.
    pub fn push_hash(&mut self, hash: Hash) {
        let mut carry = (1u64, hash);
        while let Some(last) = self.peaks.last().copied() {
            if last.0 != carry.0 {
                break;
            }
            self.peaks.pop();
            carry = (carry.0.saturating_mul(2), node(&last.1, &carry.1));
        }
        self.peaks.push(carry);
        self.size = self.size.saturating_add(1);
    }

    /// Leaves so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root.
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some((_, last)) = peaks.next() else {
            return sha256(b"");
        };
        peaks.fold(*last, |right, (_, left)| node(left, &right))
    }
}

/// The leaf hash.
pub fn leaf(data: &[u8]) -> Hash {
    hashed(0, data, &[])
}

/// The hash of an inner node.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    hashed(1, left, right)
}

/// One call over one buffer: an incremental context would be allocated for each of the two hashes of every frame.
fn hashed(prefix: u8, first: &[u8], second: &[u8]) -> Hash {
    const SMALL: usize = 65;
    let mut small = [0u8; SMALL];
    let length = first.len().saturating_add(second.len()).saturating_add(1);
    let Some(buffer) = small.get_mut(..length) else {
        let mut long = Vec::with_capacity(length);
        long.push(prefix);
        long.extend_from_slice(first);
        long.extend_from_slice(second);
        return sha256(&long);
    };
    let (head, rest) = buffer.split_at_mut(1);
    let (left, right) = rest.split_at_mut(first.len());
    head.copy_from_slice(&[prefix]);
    left.copy_from_slice(first);
    right.copy_from_slice(second);
    sha256(buffer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn reference(leaves: &[Vec<u8>]) -> Hash {
        match leaves.len() {
            0 => sha256(b""),
            1 => leaf(&leaves[0]),
            n => {
                let k = n.next_power_of_two() / 2;
                node(&reference(&leaves[..k]), &reference(&leaves[k..]))
            }
        }
    }

    #[test]
    fn the_root_is_that_of_rfc_6962_for_every_size() {
        let mut tree = Tree::default();
        let mut leaves = Vec::new();
        for size in 0..70u8 {
            assert_eq!(tree.root(), reference(&leaves), "size {size}");
            leaves.push(vec![size; usize::from(size)]);
            tree.push(leaves.last().unwrap());
        }
    }
}
