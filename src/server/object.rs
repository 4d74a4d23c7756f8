//! Requests from JSON, where an object is an object.
//!
//! serde reads a struct from an array too, its elements as the fields in their order: `[true]` would
//! be `{"include_usage": true}`. Here it is a wrong type.

use serde::{
    Deserializer,
    de::{
        Error as _, IntoDeserializer, Unexpected, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
};
use serde_json::{Error, Value};

/// A value to be read.
pub(super) struct Object(pub Value);

impl<'de> IntoDeserializer<'de, Error> for Object {
    type Deserializer = Object;

    fn into_deserializer(self) -> Object {
        self
    }
}

impl<'de> Deserializer<'de> for Object {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(list) => {
                let mut list = SeqDeserializer::new(list.into_iter().map(Object));
                let value = visitor.visit_seq(&mut list)?;
                list.end().map(|()| value)
            }
            Value::Object(map) => {
                let fields = map.into_iter().map(|(key, value)| (key, Object(value)));
                let mut fields = MapDeserializer::new(fields);
                let value = visitor.visit_map(&mut fields)?;
                fields.end().map(|()| value)
            }
            simple => simple.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0 {
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Deserialize, Debug, PartialEq)]
    struct Outer {
        inner: Option<Inner>,
        list: Vec<Inner>,
        #[serde(default)]
        any: Value,
    }

    #[derive(Deserialize, Debug, PartialEq)]
    struct Inner {
        n: f64,
    }

    #[test]
    fn an_array_is_no_object() {
        let read = |value| Outer::deserialize(Object(value));
        let fine = read(json!({"inner": {"n": 1}, "list": [{"n": 2.5}], "any": [1], "more": [[]]}));
        let expected = Outer {
            inner: Some(Inner { n: 1.0 }),
            list: vec![Inner { n: 2.5 }],
            any: json!([1]),
        };
        assert_eq!(fine.expect("objects"), expected);
        assert_eq!(
            read(json!({"inner": null, "list": []}))
                .expect("null")
                .inner,
            None
        );
        for wrong in [
            json!([null, []]),
            json!({"inner": [1], "list": []}),
            json!({"list": [[1]]}),
        ] {
            let error = read(wrong.clone()).expect_err("an array").to_string();
            assert!(
                error.starts_with("invalid type: sequence"),
                "{wrong}: {error}"
            );
        }
    }
}
