//! Messages we write ourselves: frames with a right length, towards agent and server.
//!
//! It owns no state. Strings are cut at a NUL, so that a text can never end a field early and start another.

use bytes::{BufMut, Bytes, BytesMut};

use super::Frame;

/// Appends a frame; the closure writes the payload.
pub fn frame(out: &mut BytesMut, tag: u8, payload: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    body(out, payload);
}

/// Appends a length and what it covers, without a tag: start-up packets.
pub fn body(out: &mut BytesMut, payload: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_i32(0);
    payload(out);
    let length = i32::try_from(out.len().saturating_sub(start)).unwrap_or(i32::MAX);
    if let Some(slot) = out.get_mut(start..start.saturating_add(4)) {
        slot.copy_from_slice(&length.to_be_bytes());
    }
}

/// One frame by itself.
pub fn one(tag: u8, payload: impl FnOnce(&mut BytesMut)) -> Frame {
    let mut out = BytesMut::with_capacity(64);
    frame(&mut out, tag, payload);
    Frame::whole(out.freeze())
}

/// Appends text and its NUL.
pub fn cstr(out: &mut BytesMut, text: &[u8]) {
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    out.put_slice(text);
    out.put_u8(0);
}

/// `Q`.
pub fn query(text: &str) -> Frame {
    one(b'Q', |out| cstr(out, text.as_bytes()))
}

/// `P` without parameter types.
pub fn parse(name: &str, text: &str) -> Frame {
    one(b'P', |out| {
        cstr(out, name.as_bytes());
        cstr(out, text.as_bytes());
        out.put_i16(0);
    })
}

/// `f`, CopyFail.
pub fn copy_fail(why: &str) -> Frame {
    one(b'f', |out| cstr(out, why.as_bytes()))
}

/// `D` of a statement.
pub fn describe_statement(name: &[u8]) -> Frame {
    one(b'D', |out| {
        out.put_u8(b'S');
        cstr(out, name);
    })
}

/// `S`.
pub fn sync() -> Frame {
    Frame::whole(Bytes::from_static(b"S\0\0\0\x04"))
}

/// `H`.
pub fn flush() -> Frame {
    Frame::whole(Bytes::from_static(b"H\0\0\0\x04"))
}

/// `X`.
pub fn terminate() -> Frame {
    Frame::whole(Bytes::from_static(b"X\0\0\0\x04"))
}

/// `1`, ParseComplete.
pub fn parse_complete() -> Bytes {
    Bytes::from_static(b"1\0\0\0\x04")
}

/// `3`, CloseComplete.
pub fn close_complete() -> Bytes {
    Bytes::from_static(b"3\0\0\0\x04")
}

/// `Z` with a transaction status.
pub fn ready(status: u8) -> Frame {
    one(b'Z', |out| out.put_u8(status))
}

/// `S`, ParameterStatus.
pub fn parameter_status(out: &mut BytesMut, name: &str, value: &str) {
    frame(out, b'S', |out| {
        cstr(out, name.as_bytes());
        cstr(out, value.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_in_a_text_cannot_start_another_field() {
        let frame = query("select 1\0drop table t");
        assert_eq!(frame.payload(), b"select 1\0");
        assert_eq!(frame.bytes().as_ref(), b"Q\0\0\0\x0dselect 1\0");
    }
}
