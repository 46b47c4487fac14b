//! A cursor over one payload: every read checks its bounds, and `end` refuses what is left over.
//!
//! It owns nothing and copies nothing.

use super::CodecError;

/// A cursor over one payload.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], CodecError> {
        let (head, tail) = self.rest.split_at_checked(count).ok_or(CodecError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(CodecError::Truncated)?;
        self.rest = tail;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, CodecError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// A 16-bit integer.
    pub fn i16(&mut self) -> Result<i16, CodecError> {
        self.array().map(i16::from_be_bytes)
    }

    /// A 32-bit integer.
    pub fn i32(&mut self) -> Result<i32, CodecError> {
        self.array().map(i32::from_be_bytes)
    }

    /// A 32-bit unsigned integer, such as an OID.
    pub fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A count: a 16-bit integer that must not be negative. Servers and libpq use all 16 bits.
    pub fn count(&mut self) -> Result<usize, CodecError> {
        self.array().map(u16::from_be_bytes).map(usize::from)
    }

    /// Bytes up to a NUL, which is consumed.
    pub fn cstr(&mut self) -> Result<&'a [u8], CodecError> {
        let end = memchr::memchr(0, self.rest).ok_or(CodecError::Truncated)?;
        let text = self.bytes(end)?;
        self.u8()?;
        Ok(text)
    }

    /// UTF-8 text up to a NUL, which is consumed.
    pub fn text(&mut self) -> Result<&'a str, CodecError> {
        std::str::from_utf8(self.cstr()?).map_err(|_| CodecError::Utf8)
    }

    /// Refuses leftovers.
    pub fn end(self) -> Result<(), CodecError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(CodecError::Trailing)
        }
    }
}
