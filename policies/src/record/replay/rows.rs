//! Recorded PostgreSQL replies as rows: the masked values, as the agent saw them.
//!
//! Reads backend messages from what was kept of a reply; what was not kept is told as such. It only shows: text
//! cells as they are, common binary types as text, anything else in hex. A client that never had its statement described
//! learned no names, and neither did the record: columns are numbered then. Refused: lengths beyond the bytes.
//! Invariant: bounded output, whatever the bytes say.

use crate::record::replay::escape::escape;

/// Rows shown of one reply.
const ROWS: usize = 200;
/// Characters shown of one cell.
const CELL: usize = 200;

/// A column of a result.
struct Column {
    name: String,
    type_oid: u32,
    binary: bool,
}

/// One thing of a recorded reply, escaped.
enum Item {
    /// The names of the columns.
    Names(Vec<String>),
    /// The cells of a row.
    Cells(Vec<String>),
    /// A line of a COPY, or what could not be read.
    Line(String),
    /// So many rows more.
    More(u64),
}

fn items(bytes: &[u8]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut columns: Option<Vec<Column>> = None;
    let mut shown = 0usize;
    let mut more = 0u64;
    let mut left = bytes;
    while let Some((kind, body, rest)) = message(left) {
        left = rest;
        match kind {
            b'T' => {
                let described = describe(body).unwrap_or_default();
                items.push(Item::Names(
                    described.iter().map(|column| escape(&column.name)).collect(),
                ));
                columns = Some(described);
            }
            b'D' if shown < ROWS => {
                shown = shown.saturating_add(1);
                if columns.is_none() {
                    items.push(Item::Names(numbered(body)));
                }
                items.push(match row(body, columns.get_or_insert_default()) {
                    Some(cells) => Item::Cells(cells),
                    None => Item::Line("(a row that cannot be read)".into()),
                });
            }
            b'd' if shown < ROWS => {
                shown = shown.saturating_add(1);
                items.push(Item::Line(escape(clip(&String::from_utf8_lossy(body)).trim_end())));
            }
            b'D' | b'd' => more = more.saturating_add(1),
            _ => {}
        }
    }
    if more > 0 {
        items.push(Item::More(more));
    }
    items
}

/// Lines that tell a recorded reply, escaped.
pub(super) fn tell(bytes: &[u8]) -> Vec<String> {
    let line = |item| match item {
        Item::Names(cells) | Item::Cells(cells) => cells.join(" | "),
        Item::Line(line) => line,
        Item::More(more) => format!("… {more} more rows kept"),
    };
    items(bytes).into_iter().map(line).collect()
}

/// The same as a table with aligned columns, as psql prints it.
pub(super) fn table(bytes: &[u8]) -> Vec<String> {
    let items = items(bytes);
    let mut widths: Vec<usize> = Vec::new();
    for item in &items {
        if let Item::Names(cells) | Item::Cells(cells) = item {
            widths.resize(widths.len().max(cells.len()), 0);
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
    }
    let padded = |cells: &[String]| {
        let cells = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!(" {cell:<width$} "));
        cells.collect::<Vec<_>>().join("|").trim_end().to_owned()
    };
    let mut lines = Vec::new();
    for item in &items {
        match item {
            Item::Names(names) => {
                lines.push(padded(names));
                let rule = names
                    .iter()
                    .zip(&widths)
                    .map(|(_, width)| "-".repeat(width.saturating_add(2)));
                lines.push(rule.collect::<Vec<_>>().join("+"));
            }
            Item::Cells(cells) => lines.push(padded(cells)),
            Item::Line(line) => lines.push(line.clone()),
            Item::More(more) => lines.push(format!("… {more} more rows kept")),
        }
    }
    lines
}

/// The description of columns that a reply begins with, as a whole message.
pub(super) fn description(bytes: &[u8]) -> Option<&[u8]> {
    let (kind, _, rest) = message(bytes)?;
    let length = bytes.len().checked_sub(rest.len())?;
    (kind == b'T').then(|| bytes.get(..length)).flatten()
}

fn message(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?.checked_sub(4)?;
    let (body, rest) = rest.split_at_checked(length)?;
    Some((*kind, body, rest))
}

fn describe(body: &[u8]) -> Option<Vec<Column>> {
    let (count, mut left) = body.split_first_chunk::<2>()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let end = left.iter().position(|byte| *byte == 0)?;
        let (name, rest) = left.split_at_checked(end)?;
        let (fields, rest) = rest.get(1..)?.split_first_chunk::<18>()?;
        let type_oid: [u8; 4] = fields.get(6..10)?.try_into().ok()?;
        columns.push(Column {
            name: String::from_utf8_lossy(name).into_owned(),
            type_oid: u32::from_be_bytes(type_oid),
            binary: fields.last() == Some(&1),
        });
        left = rest;
    }
    Some(columns)
}

/// What can be said of columns that nobody named: how many there are.
fn numbered(row: &[u8]) -> Vec<String> {
    let count = row
        .split_first_chunk::<2>()
        .map_or(0, |(count, _)| u16::from_be_bytes(*count));
    (1..=count).map(|number| format!("column {number}")).collect()
}

fn row(body: &[u8], columns: &[Column]) -> Option<Vec<String>> {
    let (count, mut left) = body.split_first_chunk::<2>()?;
    let mut cells = Vec::new();
    for index in 0..usize::from(u16::from_be_bytes(*count)) {
        let (length, rest) = left.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        if length < 0 {
            cells.push("NULL".to_owned());
            left = rest;
            continue;
        }
        let (cell, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        cells.push(escape(&clip(&show(cell, columns.get(index)))));
        left = rest;
    }
    Some(cells)
}

fn show(cell: &[u8], column: Option<&Column>) -> String {
    let Some(column) = column.filter(|column| column.binary) else {
        // Without a description nobody knows the format; a text in text form holds no zero byte.
        let text = (column.is_some() || !cell.contains(&0)).then(|| std::str::from_utf8(cell).ok());
        return match text.flatten() {
            Some(text) => text.to_owned(),
            None if column.is_some() => String::from_utf8_lossy(cell).into_owned(),
            None => format!("\\x{}", crate::record::frame::hex(cell)),
        };
    };
    let number = match (column.type_oid, cell) {
        (16, [flag]) => Some(if *flag == 0 { "f" } else { "t" }.to_owned()),
        (21, [a, b]) => Some(i16::from_be_bytes([*a, *b]).to_string()),
        (23, [a, b, c, d]) => Some(i32::from_be_bytes([*a, *b, *c, *d]).to_string()),
        (20, _) => cell
            .try_into()
            .ok()
            .map(i64::from_be_bytes)
            .map(|value| value.to_string()),
        (701, _) => cell
            .try_into()
            .ok()
            .map(f64::from_be_bytes)
            .map(|value| value.to_string()),
        (18 | 19 | 25 | 114 | 1042 | 1043, _) => Some(String::from_utf8_lossy(cell).into_owned()),
        _ => None,
    };
    number.unwrap_or_else(|| format!("\\x{}", crate::record::frame::hex(cell)))
}

fn clip(text: &str) -> String {
    match text.char_indices().nth(CELL) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap_or(0).saturating_add(4);
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    #[test]
    fn columns_that_nobody_named_are_numbered_once_and_binary_cells_are_hex() {
        let row = |cells: &[&[u8]]| {
            let mut body = u16::try_from(cells.len()).unwrap_or(0).to_be_bytes().to_vec();
            for cell in cells {
                body.extend_from_slice(&u32::try_from(cell.len()).unwrap_or(0).to_be_bytes());
                body.extend_from_slice(cell);
            }
            framed(b'D', &body)
        };
        let reply = [
            row(&[b"7", b"Ada"]),
            row(&[&[0, 0, 0, 8], b"\xc3\xa9"]),
            row(&[b"9", b"\xff"]),
        ]
        .concat();
        let told = ["column 1 | column 2", "7 | Ada", "\\x00000008 | é", "9 | \\xff"];
        assert_eq!(tell(&reply), told);
        assert_eq!(table(&reply)[0], " column 1   | column 2");
        assert!(tell(&framed(b'C', b"UPDATE 1\0")).is_empty(), "no row, no columns");
    }

    #[test]
    fn rows_are_told_as_the_agent_saw_them() {
        let mut describe = vec![0, 2];
        for (name, oid, format) in [("id", 23u32, 1u8), ("email", 25, 0)] {
            describe.extend_from_slice(name.as_bytes());
            describe.extend_from_slice(&[0, 0, 0, 0, 1, 0, 1]);
            describe.extend_from_slice(&oid.to_be_bytes());
            describe.extend_from_slice(&[0, 4, 255, 255, 255, 255, 0, format]);
        }
        let row = [&[0, 2, 0, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0, 6][..], b"a***@\x1b"].concat();
        let null = [0, 2, 255, 255, 255, 255, 255, 255, 255, 255];
        let reply = [
            framed(b'T', &describe),
            framed(b'D', &row),
            framed(b'D', &null),
            vec![b'D', 0],
        ]
        .concat();
        assert_eq!(tell(&reply), ["id | email", "7 | a***@\\x1b", "NULL | NULL"]);
        let table = table(&reply);
        assert_eq!(
            table,
            [
                " id   | email",
                "------+-----------",
                " 7    | a***@\\x1b",
                " NULL | NULL"
            ]
        );
    }
}
