//! What is to be tried of a table: requests made from the published schema and from cases.json, each
//! with what has to come of it.

use super::{
    doc::{self, Field, Kind, Rows},
    place::{Place, with_variant},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// What the schema can't tell: requests to vary, and values inside and outside a field's range.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cases {
    /// Requests that are answered as they stand; a field is tried in the first that has a place for it.
    #[serde(default)]
    pub bodies: Map<String, Value>,
    #[serde(default)]
    pub fields: HashMap<String, Case>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The name of the body to try it in.
    pub body: Option<String>,
    /// Top-level fields to leave out of that body.
    #[serde(default)]
    pub without: Vec<String>,
    /// Text before it in a query.
    #[serde(default)]
    pub with: String,
    #[serde(default)]
    pub good: Vec<Value>,
    #[serde(default)]
    pub bad: Vec<Value>,
    /// Values that are a 404.
    #[serde(default)]
    pub missing: Vec<Value>,
    /// JSON's types, for an extension.
    pub types: Option<Vec<String>>,
    /// The schema requires it and we don't, or the other way round.
    #[serde(default)]
    pub optional: bool,
    #[serde(default)]
    pub required: bool,
}

/// By endpoint.
pub fn cases() -> HashMap<String, Cases> {
    serde_json::from_str(include_str!("cases.json")).expect("cases.json")
}

/// One request to make and what has to come of it.
pub struct Try {
    pub what: String,
    pub body: Value,
    pub expect: Expect,
}

pub enum Expect {
    Fine,
    /// 400 with one of these codes (any, if there are none here), about this place.
    Refused(&'static [&'static str], String),
    /// 404 about this place.
    Missing(String),
}

pub const WRONG: &[&str] = &["invalid_type", "invalid_value"];
const UNSUPPORTED: &[&str] = &["unsupported_parameter"];

/// A value of each of JSON's types.
fn samples() -> [(&'static str, Value); 6] {
    [
        ("string", json!("x")),
        ("number", json!(1.5)),
        ("integer", json!(7)),
        ("boolean", json!(true)),
        ("array", json!([])),
        ("object", json!({})),
    ]
}

/// All that is to be tried of one endpoint's table.
pub struct Plan<'a> {
    pub rows: &'a Rows,
    pub fields: Vec<Field>,
    pub cases: &'a Cases,
    pub tries: Vec<Try>,
    /// Rows that could not be tried.
    pub untried: Vec<String>,
}

impl Plan<'_> {
    /// Fills in what is to be tried.
    pub fn make(&mut self) {
        for (name, body) in &self.cases.bodies {
            self.fine(format!("body {name}"), body.clone());
        }
        for field in self.fields.clone() {
            let Some(kind) = doc::kind(self.rows, &field.path) else {
                continue; // the other test's business
            };
            let parent_is_whole = field.path.rfind(['.', '<']).is_some_and(|at| {
                let above = doc::kind(self.rows, &field.path[..at]);
                matches!(above, Some(Kind::Ignored | Kind::Refused))
            });
            if parent_is_whole {
                continue;
            }
            let case = self
                .cases
                .fields
                .get(&field.path)
                .cloned()
                .unwrap_or_default();
            let tried = match kind {
                Kind::Honoured | Kind::Extension => self.honoured(&field, &case),
                Kind::Ignored => self.ignored(&field, &case),
                Kind::Refused => self.refused(&field, &case),
            };
            if tried.is_none() {
                self.untried.push(field.path.clone());
            }
        }
    }

    fn fine(&mut self, what: String, body: Value) {
        let expect = Expect::Fine;
        self.tries.push(Try { what, body, expect });
    }

    fn wrong(&mut self, what: String, body: Value, codes: &'static [&'static str], param: String) {
        let expect = Expect::Refused(codes, param);
        self.tries.push(Try { what, body, expect });
    }

    /// The first body that has a place for `path`, or the one that the case names.
    fn place(&self, path: &str, case: &Case) -> Option<(Value, Place)> {
        let named = |name: &str| case.body.as_ref().is_none_or(|body| body == name);
        let mut found = self.cases.bodies.iter().filter(|(name, _)| named(name));
        let (body, place) = found.find_map(|(_, body)| Some((body, Place::find(body, path)?)))?;
        let mut body = body.clone();
        for name in &case.without {
            body.as_object_mut()?.shift_remove(name);
        }
        Some((body, place))
    }

    fn honoured(&mut self, field: &Field, case: &Case) -> Option<()> {
        let path = &field.path;
        let (body, place) = self.place(path, case)?;
        let is_variant = path.ends_with('>');
        let types = case.types.as_ref().unwrap_or(&field.types);
        let of_enum = |value: &String| match types.iter().any(|t| t == "array")
            && !types.iter().any(|t| t == "string")
        {
            true => json!([value]),
            false => json!(value),
        };
        let values = field
            .values
            .iter()
            .map(of_enum)
            .filter(|v| !case.bad.contains(v));
        let good: Vec<Value> = values.chain(case.good.iter().cloned()).collect();
        for value in good {
            self.fine(format!("{path} = {value}"), place.with(&body, Some(value)));
        }
        let has = |name: &str| types.iter().any(|t| t == name || t == "any");
        if !case.required && (has("null") || !(is_variant || field.required)) {
            self.fine(
                format!("{path} = null"),
                place.with(&body, Some(Value::Null)),
            );
        }
        for value in &case.bad {
            let what = format!("{path} = {value}");
            self.wrong(
                what,
                place.with(&body, Some(value.clone())),
                &[],
                place.param(),
            );
        }
        let mut wrong = Vec::new();
        for (name, value) in samples() {
            if !has(name) && (name != "integer" || !has("number")) {
                wrong.push(value);
            }
        }
        if has("integer") || has("number") {
            wrong.push(json!(1e300));
        }
        if !field.values.is_empty() && has("string") {
            wrong.push(json!("no-such-value"));
        }
        for value in wrong {
            let what = format!("{path} = {value}");
            self.wrong(what, place.with(&body, Some(value)), WRONG, place.param());
        }
        for value in &case.missing {
            self.tries.push(Try {
                what: format!("{path} = {value}"),
                body: place.with(&body, Some(value.clone())),
                expect: Expect::Missing(place.param()),
            });
        }
        if is_variant {
            return Some(());
        }
        let without = place.with(&body, None);
        match (field.required && !case.optional) || case.required {
            true => self.wrong(
                format!("no {path}"),
                without,
                &["missing_required_parameter"],
                place.param(),
            ),
            false => self.fine(format!("no {path}"), without),
        }
        Some(())
    }

    fn ignored(&mut self, field: &Field, case: &Case) -> Option<()> {
        let path = &field.path;
        if path.ends_with('>') {
            let object = self.instance(path);
            let bodies = self.cases.bodies.values();
            let (body, _) = with_variant(bodies, path, &object)?;
            self.fine(format!("{path} added"), body);
            return Some(());
        }
        let (body, place) = self.place(path, case)?;
        let more = [
            json!(null),
            json!(["x", 7]),
            json!({"x": {"y": []}}),
            json!(-1e300),
        ];
        for value in samples().into_iter().map(|(_, value)| value).chain(more) {
            self.fine(format!("{path} = {value}"), place.with(&body, Some(value)));
        }
        Some(())
    }

    fn refused(&mut self, field: &Field, case: &Case) -> Option<()> {
        let path = &field.path;
        if path.ends_with('>') {
            let object = self.instance(path);
            let bodies = self.cases.bodies.values();
            let (body, param) = with_variant(bodies, path, &object)?;
            self.wrong(format!("{path} added"), body, UNSUPPORTED, param);
            return Some(());
        }
        let (body, place) = self.place(path, case)?;
        for value in case.good.iter().cloned().chain([Value::Null]) {
            self.fine(format!("{path} = {value}"), place.with(&body, Some(value)));
        }
        let mut bad = case.bad.clone();
        if bad.is_empty() {
            bad.push(self.instance(path));
        }
        for value in bad {
            let what = format!("{path} = {value}");
            self.wrong(
                what,
                place.with(&body, Some(value)),
                UNSUPPORTED,
                place.param(),
            );
        }
        Some(())
    }

    /// A value that OpenAI would take there: what it requires, and no more.
    fn instance(&self, path: &str) -> Value {
        let Some(field) = self.fields.iter().find(|field| field.path == path) else {
            return json!({});
        };
        let first = field
            .types
            .iter()
            .find(|t| *t != "null")
            .map(String::as_str);
        match (first, field.values.first()) {
            (Some("string"), Some(value)) => json!(value),
            (Some("integer" | "number"), _) => json!(1),
            (Some("boolean"), _) => json!(true),
            (Some("array"), _) => json!([]),
            (Some("object"), _) => {
                let mut object = Map::new();
                let below = |f: &&Field| {
                    f.path.strip_prefix(path).is_some_and(|rest| {
                        f.required && rest.starts_with('.') && !rest[1..].contains(['.', '<'])
                    })
                };
                for field in self.fields.iter().filter(below) {
                    let name = field.path[path.len() + 1..].to_owned();
                    object.insert(name, self.instance(&field.path));
                }
                object.into()
            }
            _ => json!("x"),
        }
    }
}
