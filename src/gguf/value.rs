//! Metadata values: views into the mapped file, so that opening a file copies no array.

/// A metadata value, borrowed from the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// u8, u16, u32 or u64.
    U64(u64),
    /// i8, i16, i32 or i64.
    I64(i64),
    /// f32.
    F32(f32),
    /// f64.
    F64(f64),
    /// A bool.
    Bool(bool),
    /// A string's bytes; they are UTF-8 by convention only.
    Str(&'a [u8]),
    /// An array.
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    /// The value as a non-negative integer, whatever integer type the file chose.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U64(v) => Some(v),
            Value::I64(v) => u64::try_from(v).ok(),
            _ => None,
        }
    }

    /// The value as f32: a float of either width, or an integer.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            Value::U64(v) => Some(v as f32),
            Value::I64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// The value as a bool.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// The value as text, when it is a string and UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        match *self {
            Value::Str(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// What it is, for messages: `u32`-like family and, for small things, the value.
    pub fn describe(&self) -> String {
        match self {
            Value::U64(v) => format!("the integer {v}"),
            Value::I64(v) => format!("the integer {v}"),
            Value::F32(v) => format!("the float {v}"),
            Value::F64(v) => format!("the float {v}"),
            Value::Bool(v) => format!("the bool {v}"),
            Value::Str(v) => format!("the string {:?}", clip(&String::from_utf8_lossy(v), 40)),
            Value::Array(a) => format!("an array of {} {}", a.len, a.element.name()),
        }
    }
}

/// At most `most` characters of `text`, with an ellipsis where it was cut.
pub(crate) fn clip(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The type tag of a metadata value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// The type with this id in a file.
    pub(super) fn from_id(id: u32) -> Option<ValueType> {
        use ValueType::*;
        const TYPES: [ValueType; 13] = [
            U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64,
        ];
        TYPES.get(id as usize).copied()
    }

    /// Its name in messages and listings.
    pub fn name(self) -> &'static str {
        use ValueType::*;
        match self {
            U8 => "u8",
            I8 => "i8",
            U16 => "u16",
            I16 => "i16",
            U32 => "u32",
            I32 => "i32",
            F32 => "f32",
            Bool => "bool",
            String => "string",
            Array => "array",
            U64 => "u64",
            I64 => "i64",
            F64 => "f64",
        }
    }

    /// Bytes of a value of fixed size; `None` for strings and arrays.
    pub(super) fn fixed_bytes(self) -> Option<usize> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }

    /// The fewest bytes a value takes: bounds every count by the file's size.
    pub(super) fn least_bytes(self) -> usize {
        match self {
            ValueType::String => 8,
            ValueType::Array => 12,
            fixed => fixed.fixed_bytes().unwrap_or(1),
        }
    }
}

/// An array, borrowed from the file. Its extent was checked when the file was opened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Array<'a> {
    /// Type of the elements.
    pub element: ValueType,
    /// Number of elements.
    pub len: usize,
    /// The elements, back to back as the file holds them.
    pub(super) bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The elements in order.
    pub fn iter(&self) -> Values<'a> {
        Values {
            element: self.element,
            left: self.len,
            bytes: self.bytes,
        }
    }
}

/// Iterates over an array's elements.
#[derive(Debug, Clone)]
pub struct Values<'a> {
    element: ValueType,
    left: usize,
    bytes: &'a [u8],
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (value, rest) = decode(self.element, self.bytes)?;
        self.bytes = rest;
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Values<'_> {}

/// The strings of an array, as bytes, in order.
#[derive(Debug, Clone)]
pub struct Strings<'a>(pub(super) Values<'a>);

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        match self.0.next()? {
            Value::Str(bytes) => Some(bytes),
            _ => None,
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// The first `N` bytes and the rest.
fn take<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    Some((*head, rest))
}

/// A top-level array, whose extent is known: `bytes` is element type, length, elements.
pub(super) fn whole_array(bytes: &[u8]) -> Option<Value<'_>> {
    let (element, rest) = take(bytes)?;
    let element = ValueType::from_id(u32::from_le_bytes(element))?;
    let (len, bytes) = take(rest)?;
    let len = u64::from_le_bytes(len).try_into().ok()?;
    Some(Value::Array(Array {
        element,
        len,
        bytes,
    }))
}

/// Decodes one value of type `kind` from the front of `bytes`, and gives the rest. `None` only when
/// the bytes are short, which the check at opening has ruled out.
pub(super) fn decode(kind: ValueType, bytes: &[u8]) -> Option<(Value<'_>, &[u8])> {
    macro_rules! number {
        ($t:ty, $variant:ident as $wide:ty) => {{
            let (head, rest) = take(bytes)?;
            (Value::$variant(<$t>::from_le_bytes(head) as $wide), rest)
        }};
    }
    Some(match kind {
        ValueType::U8 => number!(u8, U64 as u64),
        ValueType::U16 => number!(u16, U64 as u64),
        ValueType::U32 => number!(u32, U64 as u64),
        ValueType::U64 => number!(u64, U64 as u64),
        ValueType::I8 => number!(i8, I64 as i64),
        ValueType::I16 => number!(i16, I64 as i64),
        ValueType::I32 => number!(i32, I64 as i64),
        ValueType::I64 => number!(i64, I64 as i64),
        ValueType::F32 => number!(f32, F32 as f32),
        ValueType::F64 => number!(f64, F64 as f64),
        ValueType::Bool => {
            let ([byte], rest) = take(bytes)?;
            (Value::Bool(byte != 0), rest)
        }
        ValueType::String => {
            let (len, rest) = take(bytes)?;
            let (text, rest) = rest.split_at_checked(u64::from_le_bytes(len).try_into().ok()?)?;
            (Value::Str(text), rest)
        }
        ValueType::Array => {
            let (element, rest) = take(bytes)?;
            let element = ValueType::from_id(u32::from_le_bytes(element))?;
            let (len, rest) = take(rest)?;
            let len = u64::from_le_bytes(len).try_into().ok()?;
            let extent = super::read::array_extent(element, len, rest, 0).ok()?;
            let (bytes, rest) = rest.split_at_checked(extent)?;
            (
                Value::Array(Array {
                    element,
                    len,
                    bytes,
                }),
                rest,
            )
        }
    })
}
