//! Arrays, element by element, in text and binary form.
//!
//! Owns the two encodings. Answers `None` for anything malformed; the caller then gives an empty array. Invariant:
//! shape, bounds and NULL elements stay as they are.

use super::MaskedCell;

/// Masks one element: bytes in, bytes appended.
pub(super) type MaskElement<'a> = dyn Fn(&[u8], &mut Vec<u8>) -> MaskedCell + 'a;

/// Deepest nesting, as the server allows.
const MAX_DIMENSIONS: usize = 6;

/// Masks an array in text form, such as `{a,"b c",NULL}` or `[2:3]={…}`.
pub(super) fn text(cell: &[u8], mask: &MaskElement<'_>, out: &mut Vec<u8>) -> Option<()> {
    let mut rest = cell;
    if rest.first() == Some(&b'[') {
        let equals = rest.iter().position(|byte| *byte == b'=')?;
        let (bounds, after) = rest.split_at_checked(equals.checked_add(1)?)?;
        out.extend_from_slice(bounds);
        rest = after;
    }
    let (mut depth, mut masked) = (0usize, Vec::new());
    loop {
        let (byte, after) = rest.split_first()?;
        match byte {
            b'{' if depth < MAX_DIMENSIONS => depth = depth.checked_add(1)?,
            b'}' if depth > 0 => depth = depth.checked_sub(1)?,
            b',' if depth > 0 => {}
            _ => {
                if depth == 0 {
                    return None;
                }
                rest = element(rest, mask, &mut masked, out)?;
                continue;
            }
        }
        out.push(*byte);
        rest = after;
        if depth == 0 {
            return rest.is_empty().then_some(());
        }
    }
}

/// Masks one element of the text form and answers what follows it.
fn element<'a>(rest: &'a [u8], mask: &MaskElement<'_>, masked: &mut Vec<u8>, out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let (value, quoted, after) = match rest.split_first()? {
        (b'"', inner) => {
            let (value, after) = quoted(inner)?;
            (value, true, after)
        }
        _ => {
            let end = rest.iter().position(|byte| matches!(byte, b',' | b'}' | b'{' | b'"'))?;
            let (value, after) = rest.split_at_checked(end)?;
            // Nothing at all, or a brace or quote in the middle: not what a server writes.
            if value.is_empty() || !matches!(after.first(), Some(b',' | b'}')) {
                return None;
            }
            (value.to_vec(), false, after)
        }
    };
    if !quoted && value.eq_ignore_ascii_case(b"NULL") {
        out.extend_from_slice(b"NULL");
        return Some(after);
    }
    masked.clear();
    match mask(&value, masked) {
        MaskedCell::Null => out.extend_from_slice(b"NULL"),
        MaskedCell::Value => {
            out.push(b'"');
            for byte in masked.iter() {
                if matches!(byte, b'"' | b'\\') {
                    out.push(b'\\');
                }
                out.push(*byte);
            }
            out.push(b'"');
        }
    }
    Some(after)
}

fn quoted(inner: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (mut value, mut rest) = (Vec::new(), inner);
    loop {
        let (byte, after) = rest.split_first()?;
        rest = after;
        match byte {
            b'"' => return Some((value, rest)),
            b'\\' => {
                let (escaped, after) = rest.split_first()?;
                value.push(*escaped);
                rest = after;
            }
            other => value.push(*other),
        }
    }
}

/// Masks an array in binary form.
pub(super) fn binary(cell: &[u8], mask: &MaskElement<'_>, out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    let mut rest = cell;
    let dimensions = usize::try_from(int(&mut rest)?).ok().filter(|n| *n <= MAX_DIMENSIONS)?;
    let header = dimensions.checked_mul(8)?.checked_add(12)?;
    let (header, mut rest) = cell.split_at_checked(header)?;
    out.extend_from_slice(header);
    let (mut count, mut bounds) = (usize::from(dimensions > 0), header.get(12..)?);
    for _ in 0..dimensions {
        count = count.checked_mul(usize::try_from(int(&mut bounds)?).ok()?)?;
        int(&mut bounds)?;
    }
    // Every element takes four bytes at least, so the count is bounded by what is there.
    if count.checked_mul(4)? > rest.len() {
        return None;
    }
    let (mut masked, mut has_null) = (Vec::new(), false);
    for _ in 0..count {
        let length = int(&mut rest)?;
        let value = match usize::try_from(length) {
            Ok(length) => {
                let (value, after) = rest.split_at_checked(length)?;
                rest = after;
                masked.clear();
                Some(mask(value, &mut masked))
            }
            Err(_) => None,
        };
        if value == Some(MaskedCell::Value) {
            out.extend_from_slice(&i32::try_from(masked.len()).ok()?.to_be_bytes());
            out.extend_from_slice(&masked);
        } else {
            has_null = true;
            out.extend_from_slice(&(-1i32).to_be_bytes());
        }
    }
    // The header says whether there are NULLs; masking may have made some.
    let flags = start.checked_add(4)?..start.checked_add(8)?;
    out.get_mut(flags)?.copy_from_slice(&i32::from(has_null).to_be_bytes());
    rest.is_empty().then_some(())
}

fn int(rest: &mut &[u8]) -> Option<i32> {
    let (bytes, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(i32::from_be_bytes(*bytes))
}
