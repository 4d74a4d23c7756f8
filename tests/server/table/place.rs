//! Where a field of the tables is in a request's body: `tools<function>.function.name` is
//! `tools[0].function.name` when the first tool is a function.

use serde_json::{Map, Value};

/// A step into a value.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Key(String),
    Index(usize),
}

/// A place in a body, which may be empty as long as what would hold it is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Place(Vec<Step>);

/// The pieces of a path: a name, and the variant in angle brackets behind it.
fn pieces(path: &str) -> Vec<(&str, Option<&str>)> {
    let piece = |piece: &str| match piece.find('<') {
        Some(at) => (at, Some((at + 1, piece.len() - 1))),
        None => (piece.len(), None),
    };
    let cut = |text| {
        let (name, variant) = piece(text);
        (&text[..name], variant.map(|(from, to)| &text[from..to]))
    };
    path.split('.').map(cut).collect()
}

/// Whether `value` is an object of this kind. Input items with a role and no type are messages.
fn is_variant(value: &Value, variant: &str) -> bool {
    let is = |key: &str| value.get(key).is_some_and(|kind| kind == variant);
    match value.get("type") {
        Some(_) => is("type"),
        None => is("role") || variant == "message" && value.get("role").is_some(),
    }
}

impl Place {
    /// The place of `path` in `body`, if all that is above it is there (for a variant: if it is).
    pub fn find(body: &Value, path: &str) -> Option<Place> {
        let mut steps = Vec::new();
        let mut at = body;
        let pieces = pieces(path);
        for (i, &(name, variant)) in pieces.iter().enumerate() {
            at.as_object()?;
            steps.push(Step::Key(name.into()));
            let is_last = i + 1 == pieces.len();
            if is_last && variant.is_none() {
                return Some(Place(steps));
            }
            at = at.get(name)?;
            let fits = |value: &Value| match variant {
                Some(variant) => is_variant(value, variant),
                None => value.is_object(),
            };
            if let Some(list) = at.as_array() {
                // The first of its kind that has all that is asked for below it.
                let rest = path.splitn(i + 2, '.').nth(i + 1);
                let has_rest =
                    |value: &&Value| rest.is_none_or(|rest| Place::find(value, rest).is_some());
                let index = list.iter().position(|v| fits(v) && has_rest(&v))?;
                steps.push(Step::Index(index));
                at = &list[index];
            } else if !fits(at) {
                return None;
            }
        }
        Some(Place(steps))
    }

    /// What is there.
    pub fn get<'a>(&self, body: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(body, |at, step| match step {
            Step::Key(key) => at.get(key),
            Step::Index(index) => at.get(index),
        })
    }

    /// `body` with `value` there, or without anything there.
    pub fn with(&self, body: &Value, value: Option<Value>) -> Value {
        let mut body = body.clone();
        let (last, above) = self.0.split_last().expect("a place");
        let mut at = &mut body;
        for step in above {
            at = match step {
                Step::Key(key) => &mut at[key.as_str()],
                Step::Index(index) => &mut at[*index],
            };
        }
        match (last, value) {
            (Step::Key(key), Some(value)) => at[key.as_str()] = value,
            (Step::Key(key), None) => {
                at.as_object_mut()
                    .map(|map: &mut Map<_, _>| map.shift_remove(key));
            }
            (Step::Index(index), Some(value)) => at[*index] = value,
            (Step::Index(index), None) => {
                at.as_array_mut().map(|list| list.remove(*index));
            }
        }
        body
    }

    /// As an error's `param` names it.
    pub fn param(&self) -> String {
        let mut text = String::new();
        for step in &self.0 {
            match step {
                Step::Key(key) if text.is_empty() => text.push_str(key),
                Step::Key(key) => text.extend([".", key]),
                Step::Index(index) => text.push_str(&format!("[{index}]")),
            }
        }
        text
    }
}

/// `body` with one more object, of the kind that `path` ends in, in the list that `path` names; in
/// place of the object if there is none but one. The first of `bodies` with such a list, else the
/// first where one could be.
pub fn with_variant<'a>(
    bodies: impl Iterator<Item = &'a Value> + Clone,
    path: &str,
    object: &Value,
) -> Option<(Value, String)> {
    let list = path.rsplit_once('<')?.0;
    let has_list = |body: &&Value| {
        Place::find(body, list).is_some_and(|p| p.get(body).is_some_and(Value::is_array))
    };
    let mut all = bodies.clone().filter(has_list).chain(bodies);
    all.find_map(|body| with_variant_in(body, path, object.clone()))
}

fn with_variant_in(body: &Value, path: &str, mut object: Value) -> Option<(Value, String)> {
    let (list, variant) = path.rsplit_once('<')?;
    let variant = variant.trim_end_matches('>');
    let key = if list == "messages" { "role" } else { "type" };
    object[key] = variant.into();
    let place = Place::find(body, list)?;
    match place.get(body) {
        Some(Value::Array(there)) => {
            let mut all = there.clone();
            let param = format!("{}[{}]", place.param(), all.len());
            all.push(object);
            Some((place.with(body, Some(all.into())), param))
        }
        // A list that could stand here in place of a text, or is not there.
        Some(Value::String(_)) => {
            let param = format!("{}[0]", place.param());
            Some((place.with(body, Some(vec![object].into())), param))
        }
        Some(Value::Object(_)) => Some((place.with(body, Some(object)), place.param())),
        _ => None,
    }
}

#[test]
fn places_are_found_in_bodies() {
    let body =
        serde_json::json!({"a": [{"type": "x"}, {"type": "y", "b": {"c": 1}}], "d": {"e": 2}});
    let param = |path| Place::find(&body, path).map(|place| place.param());
    assert_eq!(param("a<y>.b.c").as_deref(), Some("a[1].b.c"));
    assert_eq!(param("a<x>.b").as_deref(), Some("a[0].b"));
    assert_eq!(param("a<x>.b.c"), None);
    assert_eq!(param("a<z>"), None);
    let place = Place::find(&body, "d.e").expect("d is there");
    assert_eq!(place.with(&body, None)["d"], serde_json::json!({}));
    assert_eq!(place.with(&body, Some(3.into()))["d"]["e"], 3);
}
