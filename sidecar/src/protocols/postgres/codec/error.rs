//! `E` and `N`, ErrorResponse and NoticeResponse: their fields, read and written.

use bytes::{BufMut, BytesMut};

use super::{write, CodecError, Frame};

/// Fields of an error or notice by their letter, in order; each letter once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    fields: Vec<(u8, Vec<u8>)>,
}

impl Fields {
    /// Decodes an ErrorResponse or NoticeResponse. Of a letter that stands there twice, which no server writes, the
    /// first counts and the others are dropped: whoever replaces a field has replaced all of it.
    pub fn decode(frame: &Frame) -> Result<Self, CodecError> {
        let mut reader = frame.reader();
        let mut fields = Fields::default();
        loop {
            let letter = reader.u8()?;
            if letter == 0 {
                break;
            }
            let value = reader.cstr()?;
            if fields.get(letter).is_none() {
                fields.fields.push((letter, value.to_vec()));
            }
        }
        reader.end()?;
        Ok(fields)
    }

    /// A new set with severity, code and message.
    pub fn new(severity: &str, code: &str, message: &str) -> Self {
        let mut fields = Fields::default();
        fields.set(b'S', severity.as_bytes());
        fields.set(b'V', severity.as_bytes());
        fields.set(b'C', code.as_bytes());
        fields.set(b'M', message.as_bytes());
        fields
    }

    /// A field's value.
    pub fn get(&self, letter: u8) -> Option<&[u8]> {
        self.fields
            .iter()
            .find(|(known, _)| *known == letter)
            .map(|(_, value)| value.as_slice())
    }

    /// A field's value as text, lossy.
    pub fn text(&self, letter: u8) -> String {
        String::from_utf8_lossy(self.get(letter).unwrap_or_default()).into_owned()
    }

    /// Sets a field.
    pub fn set(&mut self, letter: u8, value: &[u8]) {
        match self.fields.iter_mut().find(|(known, _)| *known == letter) {
            Some((_, old)) => value.clone_into(old),
            None => self.fields.push((letter, value.to_vec())),
        }
    }

    /// Keeps only the fields whose letter is listed.
    pub fn keep(&mut self, letters: &[u8]) {
        self.fields.retain(|(letter, _)| letters.contains(letter));
    }

    /// Whether it ends the session.
    pub fn fatal(&self) -> bool {
        let severity = self.get(b'V').or_else(|| self.get(b'S')).unwrap_or_default();
        matches!(severity, b"FATAL" | b"PANIC")
    }

    /// Appends it as a frame with the given tag.
    pub fn write(&self, out: &mut BytesMut, tag: u8) {
        write::frame(out, tag, |out| {
            for (letter, value) in &self.fields {
                out.put_u8(*letter);
                write::cstr(out, value);
            }
            out.put_u8(0);
        });
    }

    /// As a frame with the given tag.
    pub fn frame(&self, tag: u8) -> Frame {
        let mut out = BytesMut::with_capacity(256);
        self.write(&mut out, tag);
        Frame::whole(out.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_survive_a_round_trip() {
        let mut fields = Fields::new("ERROR", "42501", "no");
        fields.set(b'D', b"detail");
        assert_eq!(Fields::decode(&fields.frame(b'E')).unwrap(), fields);
        assert!(!fields.fatal());
        fields.keep(b"SVC");
        assert_eq!(fields.get(b'D'), None);
    }

    #[test]
    fn of_a_field_that_stands_twice_one_is_left() {
        let frame = write::one(b'E', |out| out.put_slice(b"SERROR\0Mfirst\0Msecond\0\0"));
        let fields = Fields::decode(&frame).unwrap();
        assert_eq!(fields.frame(b'E').payload(), b"SERROR\0Mfirst\0\0");
    }
}
