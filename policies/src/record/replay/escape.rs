//! The one place where recorded text is made safe to show.
//!
//! Control characters, escape sequences, bidirectional overrides, zero-width and other invisible characters come
//! out as `\x1b`-like or `\u{…}` escapes; nothing else is changed. Linear time, one pass.
//! Invariant: the output holds no control character but, where asked for, line feed and tab.

use std::fmt::Write as _;

/// Makes text safe for one line of a terminal.
pub fn escape(text: &str) -> String {
    escape_with(text, false)
}

/// As [`escape`], keeping line feeds and tabs.
pub(super) fn escape_lines(text: &str) -> String {
    escape_with(text, true)
}

fn escape_with(text: &str, keep_lines: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' if keep_lines => out.push(character),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\x1f' | '\x7f' => {
                let _ = write!(out, "\\x{:02x}", u32::from(character));
            }
            _ if is_hidden(character) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    out
}

/// C1 controls, bidirectional controls, zero-width and other invisible characters, private and unassigned planes.
fn is_hidden(character: char) -> bool {
    matches!(
        u32::from(character),
        0x80..=0x9f
            | 0xad
            | 0x61c
            | 0x180b..=0x180f
            | 0x200b..=0x200f
            | 0x2028..=0x202e
            | 0x2060..=0x206f
            | 0x3164
            | 0xfe00..=0xfe0f
            | 0xfeff
            | 0xfff0..=0xfffb
            | 0xe0000..=0xe0fff
            | 0xf0000..=0x10ffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_recorded_text_can_drive_a_terminal_or_forge_a_line() {
        let hostile = "a\x1b]8;;http://x\x07b\x1b[2J\r\nVALID\u{202e}evil\u{200b}\u{9b}31m";
        let safe = escape(hostile);
        assert_eq!(
            safe,
            "a\\x1b]8;;http://x\\x07b\\x1b[2J\\r\\nVALID\\u{202e}evil\\u{200b}\\u{9b}31m"
        );
        assert!(!safe.chars().any(char::is_control));
        assert_eq!(escape_lines("a\n\tb\x1b"), "a\n\tb\\x1b");
        assert_eq!(escape("Zürich 東京 🙂"), "Zürich 東京 🙂");
    }
}
