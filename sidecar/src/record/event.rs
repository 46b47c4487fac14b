//! An event's JSON on its way into a frame: `{"op":N,…}`.
//!
//! Most operations of a session repeat an earlier one, and their events differ in a number and a few values. What they
//! have in common is spelled out once, as [`Members`], and copied from there. Everything written here is valid JSON
//! whatever the values hold; what cannot be encoded is refused as a whole.

use serde::Serialize;

use super::CannotRecord;

/// Members of an object as they are written: `"verb":"Read","action":"Query"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members(Box<[u8]>);

impl Members {
    /// The members of a payload.
    pub fn of(payload: &impl Serialize) -> Result<Members, CannotRecord> {
        let mut out = Vec::new();
        append_members(payload, &mut out)?;
        Ok(Members(out.into()))
    }
}

/// An event's object while it is written. The first failure is told at its end.
pub struct Event<'a> {
    out: &'a mut Vec<u8>,
    result: Result<(), CannotRecord>,
}

impl<'a> Event<'a> {
    /// Begins the object with its operation's number, where it has one.
    pub(super) fn begin(op: Option<u64>, out: &'a mut Vec<u8>) -> Event<'a> {
        out.clear();
        out.push(b'{');
        let mut event = Event { out, result: Ok(()) };
        if let Some(op) = op {
            event.out.extend_from_slice(b"\"op\":");
            event.value(&op);
        }
        event
    }

    /// Adds everything a payload says.
    pub fn payload(&mut self, payload: &impl Serialize) {
        let start = self.out.len();
        self.separate();
        let members = self.out.len();
        let written = append_members(payload, self.out);
        if members == self.out.len() {
            self.out.truncate(start);
        }
        self.note(written);
    }

    /// Adds members that were spelled out before.
    pub fn members(&mut self, members: &Members) {
        if !members.0.is_empty() {
            self.separate();
            self.out.extend_from_slice(&members.0);
        }
    }

    /// Adds one member. The name needs no escape.
    pub fn member(&mut self, name: &'static str, value: &impl Serialize) {
        self.name(name);
        self.value(value);
    }

    /// The same for what may be absent.
    pub fn optional(&mut self, name: &'static str, value: &Option<impl Serialize>) {
        if let Some(value) = value {
            self.member(name, value);
        }
    }

    /// Adds a list of texts; `None` is null. Without any, nothing is added. The name needs no escape.
    pub fn texts(&mut self, name: &'static str, texts: impl FnOnce(&mut dyn FnMut(Option<&str>))) {
        let start = self.out.len();
        self.name(name);
        self.out.push(b'[');
        let first = self.out.len();
        texts(&mut |text| {
            if self.out.len() > first {
                self.out.push(b',');
            }
            self.value(&text);
        });
        if self.out.len() == first {
            self.out.truncate(start);
        } else {
            self.out.push(b']');
        }
    }

    /// Ends the object.
    pub(super) fn end(self) -> Result<(), CannotRecord> {
        self.out.push(b'}');
        self.result
    }

    fn separate(&mut self) {
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
    }

    fn name(&mut self, name: &'static str) {
        self.separate();
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn value(&mut self, value: &impl Serialize) {
        let written = serde_json::to_writer(&mut *self.out, value).map_err(|_| CannotRecord::Encoding);
        self.note(written);
    }

    fn note(&mut self, result: Result<(), CannotRecord>) {
        if self.result.is_ok() {
            self.result = result;
        }
    }
}

/// Appends a payload's members without the braces around them.
fn append_members(payload: &impl Serialize, out: &mut Vec<u8>) -> Result<(), CannotRecord> {
    let start = out.len();
    serde_json::to_writer(&mut *out, payload).map_err(|_| CannotRecord::Encoding)?;
    let object = out.get(start..).unwrap_or_default();
    if !(object.starts_with(b"{") && object.ends_with(b"}")) {
        return Err(CannotRecord::Encoding);
    }
    out.pop();
    out.remove(start);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{json, Value};

    use super::*;

    fn written(op: Option<u64>, fill: impl FnOnce(&mut Event<'_>)) -> String {
        let mut out = b"left over".to_vec();
        let mut event = Event::begin(op, &mut out);
        fill(&mut event);
        event.end().unwrap();
        serde_json::from_slice::<Value>(&out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn number_members_and_texts_make_one_object() {
        let members = Members::of(&json!({"verb": "Read"})).unwrap();
        let whole = written(Some(7), |event| {
            event.members(&members);
            event.texts("params", |show| {
                show(Some("a\"b\n"));
                show(None);
            });
        });
        assert_eq!(whole, r#"{"op":7,"verb":"Read","params":["a\"b\n",null]}"#);
        let payload = written(None, |event| event.payload(&json!({"rows": 1})));
        assert_eq!(payload, r#"{"rows":1}"#);
    }

    #[test]
    fn what_says_nothing_leaves_no_trace() {
        let nothing = Members::of(&json!({})).unwrap();
        let fill = |event: &mut Event<'_>| {
            event.payload(&json!({}));
            event.members(&nothing);
            event.texts("params", |_| {});
        };
        assert_eq!(written(Some(1), fill), r#"{"op":1}"#);
        assert_eq!(written(None, fill), "{}");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert_eq!(Members::of(&json!([1])), Err(CannotRecord::Encoding));
        let mut out = Vec::new();
        let mut event = Event::begin(Some(1), &mut out);
        event.payload(&json!(3));
        event.payload(&json!({"rows": 1}));
        assert_eq!(event.end(), Err(CannotRecord::Encoding));
    }
}
