//! An answer of AWS's query protocol in XML, as the JSON it has too: what stands in for AWS knows XML alone.
//!
//! Refuses declarations of types, entities of one's own, an element twice in one place and depth. Invariant: an answer
//! means the same in either form, so presets know one.

use quick_xml::events::Event;
use quick_xml::Reader;
use serde_json::{Map, Value};

/// Elements within elements, at most.
const DEPTH: usize = 8;
/// The root of an answer that is none. In JSON it is left out.
const ERROR: &str = "ErrorResponse";

/// The answer; nothing, if it is not of this form.
pub(super) fn read(bytes: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut reader = Reader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    // What is open: its name, its elements, its text.
    let mut open: Vec<(String, Map<String, Value>, String)> = Vec::new();
    let mut root: Option<(String, Value)> = None;
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) if open.len() < DEPTH && root.is_none() => {
                let name = start.local_name().into_inner().to_owned();
                open.push((name, Map::new(), String::new()));
            }
            Event::Text(part) => match open.last_mut() {
                Some((_, _, text)) => text.push_str(&part),
                None if part.trim().is_empty() => {}
                None => return None,
            },
            Event::GeneralRef(reference) => {
                let (_, _, text) = open.last_mut()?;
                text.push(character(&reference)?);
            }
            Event::End(_) => {
                let (name, elements, text) = open.pop()?;
                let value = match elements.is_empty() {
                    true => Value::String(text),
                    false if text.trim().is_empty() => Value::Object(elements),
                    false => return None,
                };
                match open.last_mut() {
                    Some((_, siblings, _)) if siblings.contains_key(&name) => return None,
                    Some((_, siblings, _)) => drop(siblings.insert(name, value)),
                    None => root = Some((name, value)),
                }
            }
            Event::Decl(_) | Event::Comment(_) => {}
            Event::Eof => break,
            _ => return None,
        }
    }
    let (name, value) = root.filter(|_| open.is_empty())?;
    Some(match name == ERROR {
        true => value,
        false => Value::Object(Map::from_iter([(name, value)])),
    })
}

/// The characters that XML itself names.
fn character(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix('x') {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_means_the_same_in_xml() {
        let text =
            "<?xml version=\"1.0\"?>\n<Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <Result>\n \
                    <Token>a+b&amp;c&#61;=</Token><Empty/></Result>\n <Meta><Id>1</Id></Meta>\n</Response>\n";
        let read = read(text.as_bytes());
        let json = json!({"Response": {"Result": {"Token": "a+b&c==", "Empty": ""}, "Meta": {"Id": "1"}}});
        assert_eq!(read, Some(json));
    }

    #[test]
    fn an_error_stands_where_it_stands_in_json() {
        let text =
            "<ErrorResponse><Error><Code>InvalidIdentityToken</Code></Error><RequestId>1</RequestId></ErrorResponse>";
        let read = read(text.as_bytes()).unwrap();
        assert_eq!(read.pointer("/Error/Code"), Some(&json!("InvalidIdentityToken")));
    }

    #[test]
    fn what_could_mean_two_things_is_no_answer() {
        let deep = format!("{}{}", "<a>".repeat(9), "</a>".repeat(9));
        for wrong in [
            "",
            "{}",
            "<a>",
            "<a></b>",
            "<a/><b/>",
            "<a/>text",
            "<a><b/><b/></a>",
            "<a>text<b/></a>",
            "<a>&own;</a>",
            "<!DOCTYPE a [<!ENTITY own \"x\">]><a>&own;</a>",
            "<a><![CDATA[x]]></a>",
            &deep,
        ] {
            assert_eq!(read(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
