//! PostgreSQL's built-in types as masks see them: what class a type belongs to, and what holds instead of a value.
//!
//! Owns the table of type numbers (fixed in every server version) and the constants of `redact`. Refuses nothing:
//! a type not listed here is [`Class::Other`], for which only NULL is right.

/// A class of types that are masked alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// text, varchar, bpchar, name: characters, at most so many of them or of bytes, padded or not.
    Text(TextLimits),
    /// The one-byte type `"char"`.
    Char,
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    /// numeric, with the digits after the point its declaration asks for.
    Numeric(u16),
    Json,
    Jsonb,
    Date,
    Timestamp,
    TimestampTz,
    Time,
    TimeTz,
    Interval,
    Uuid,
    Inet,
    Cidr,
    MacAddr,
    MacAddr8,
    Bytea,
    /// Extension, enum, composite, range and whatever else.
    Other,
}

/// How long a text may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TextLimits {
    /// Most characters.
    pub chars: Option<usize>,
    /// Most bytes.
    pub bytes: Option<usize>,
    /// Padded with blanks to `chars`.
    pub padded: bool,
}

const VARIABLE_HEADER: i32 = 4;

fn declared_length(typmod: i32) -> Option<usize> {
    typmod
        .checked_sub(VARIABLE_HEADER)
        .and_then(|length| usize::try_from(length).ok())
}

/// Digits after the point of numeric(p, s), as the type modifier packs them.
fn declared_scale(typmod: i32) -> u16 {
    match typmod.checked_sub(VARIABLE_HEADER) {
        Some(packed) if packed >= 0 => match u16::try_from(packed & 0x7ff) {
            Ok(scale) if scale <= 1000 => scale,
            // Negative scales (11-bit two's complement) round before the point: nothing to print behind it.
            _ => 0,
        },
        _ => 0,
    }
}

/// The class of a type.
pub(super) fn class(type_oid: u32, typmod: i32) -> Class {
    match type_oid {
        16 => Class::Bool,
        17 => Class::Bytea,
        18 => Class::Char,
        19 => Class::Text(TextLimits {
            bytes: Some(63),
            ..TextLimits::default()
        }),
        20 => Class::Int8,
        21 => Class::Int2,
        23 => Class::Int4,
        25 => Class::Text(TextLimits::default()),
        26 => Class::Oid,
        114 => Class::Json,
        650 => Class::Cidr,
        700 => Class::Float4,
        701 => Class::Float8,
        774 => Class::MacAddr8,
        829 => Class::MacAddr,
        869 => Class::Inet,
        1042 => Class::Text(TextLimits {
            chars: declared_length(typmod),
            bytes: None,
            padded: declared_length(typmod).is_some(),
        }),
        1043 => Class::Text(TextLimits {
            chars: declared_length(typmod),
            ..TextLimits::default()
        }),
        1082 => Class::Date,
        1083 => Class::Time,
        1114 => Class::Timestamp,
        1184 => Class::TimestampTz,
        1186 => Class::Interval,
        1266 => Class::TimeTz,
        1700 => Class::Numeric(declared_scale(typmod)),
        2950 => Class::Uuid,
        3802 => Class::Jsonb,
        _ => Class::Other,
    }
}

/// Array types and their elements.
const ARRAYS: &[(u32, u32)] = &[
    (199, 114),
    (651, 650),
    (775, 774),
    (1000, 16),
    (1001, 17),
    (1002, 18),
    (1003, 19),
    (1005, 21),
    (1007, 23),
    (1009, 25),
    (1014, 1042),
    (1015, 1043),
    (1016, 20),
    (1021, 700),
    (1022, 701),
    (1028, 26),
    (1040, 829),
    (1041, 869),
    (1115, 1114),
    (1182, 1082),
    (1183, 1083),
    (1185, 1184),
    (1187, 1186),
    (1231, 1700),
    (1270, 1266),
    (2951, 2950),
    (3807, 3802),
];

/// The element type of an array type.
pub(super) fn element(type_oid: u32) -> Option<u32> {
    let found = ARRAYS.iter().find(|(array, _)| *array == type_oid);
    found.map(|(_, element)| *element)
}

/// A fixed value in both forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Constant {
    pub text: Vec<u8>,
    pub binary: Vec<u8>,
}

impl Constant {
    fn new(text: &str, binary: &[u8]) -> Self {
        Constant {
            text: text.as_bytes().to_vec(),
            binary: binary.to_vec(),
        }
    }
}

/// Days and microseconds from 1970-01-01 to 2000-01-01, where PostgreSQL's binary times begin.
pub(super) const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// What `redact` puts in place of a value. None where only NULL is right.
pub(super) fn redacted(class: Class, not_null: bool) -> Option<Constant> {
    let always = match class {
        Class::Text(limits) => {
            let stars = super::text::fit("***", limits);
            Constant::new(&stars, stars.as_bytes())
        }
        Class::Char => Constant::new("*", b"*"),
        Class::Bool => Constant::new("f", &[0]),
        Class::Int2 => Constant::new("0", &[0; 2]),
        Class::Int4 | Class::Oid | Class::Float4 => Constant::new("0", &[0; 4]),
        Class::Int8 | Class::Float8 => Constant::new("0", &[0; 8]),
        Class::Numeric(scale) => {
            let point = if scale == 0 { "" } else { "." };
            let [high, low] = scale.to_be_bytes();
            // Digits, weight, sign, digits after the point.
            Constant::new(
                &format!("0{point}{}", "0".repeat(scale.into())),
                &[0, 0, 0, 0, 0, 0, high, low],
            )
        }
        Class::Json => Constant::new("null", b"null"),
        Class::Jsonb => Constant::new("null", b"\x01null"),
        Class::Date => Constant::new("1970-01-01", &EPOCH_DAYS.wrapping_neg().to_be_bytes()),
        Class::Timestamp => Constant::new("1970-01-01 00:00:00", &EPOCH_MICROS.wrapping_neg().to_be_bytes()),
        Class::TimestampTz => Constant::new("1970-01-01 00:00:00+00", &EPOCH_MICROS.wrapping_neg().to_be_bytes()),
        Class::Uuid => Constant::new("00000000-0000-0000-0000-000000000000", &[0; 16]),
        Class::Bytea => Constant::new("\\x", b""),
        _ => return redacted_where_needed(class).filter(|_| not_null),
    };
    Some(always)
}

/// Types that become NULL, and what they become where NULL is not allowed.
fn redacted_where_needed(class: Class) -> Option<Constant> {
    let constant = match class {
        Class::Time => Constant::new("00:00:00", &[0; 8]),
        Class::TimeTz => Constant::new("00:00:00+00", &[0; 12]),
        Class::Interval => Constant::new("00:00:00", &[0; 16]),
        // Family, prefix length, whether a network, address length, address.
        Class::Inet => Constant::new("0.0.0.0", &[2, 32, 0, 4, 0, 0, 0, 0]),
        Class::Cidr => Constant::new("0.0.0.0/32", &[2, 32, 1, 4, 0, 0, 0, 0]),
        Class::MacAddr => Constant::new("00:00:00:00:00:00", &[0; 6]),
        Class::MacAddr8 => Constant::new("00:00:00:00:00:00:00:00", &[0; 8]),
        _ => return None,
    };
    Some(constant)
}

/// An empty array, whatever its element.
pub(super) fn empty_array(element: u32) -> Constant {
    let mut binary = vec![0; 8];
    binary.extend(element.to_be_bytes());
    Constant {
        text: b"{}".to_vec(),
        binary,
    }
}
