//! JSON Schema as the TypeScript-like types that gpt-oss was trained to read.
//!
//! What openai-harmony renders is rendered the same, byte for byte, its habits included (no
//! parentheses around an enum's array, a nested object's comment on the property's line). Where it
//! gives up and writes `any` this says more: `anyOf`, `allOf`, `const`, `$ref`, enums of numbers,
//! objects and arrays that don't say so, maps.
//!
//! Invariant: a `$ref` is followed at most [`MAX_DEPTH`] deep, never into itself, and all of them
//! together write little more than [`MAX_EXPANDED`] bytes; beyond that stands `any /* Name */`. So
//! text and time are linear in the schema, whatever its references do.

use serde_json::{Map, Value};
use std::fmt::Write as _;

/// Levels of nested schemas.
const MAX_DEPTH: usize = 64;
/// Bytes that following references may add.
const MAX_EXPANDED: usize = 128 * 1024;

/// The type of a function's parameters.
pub(super) fn typescript(schema: &Value) -> String {
    let mut writer = Writer {
        root: schema,
        refs: Vec::new(),
        depth: 0,
        expanded: 0,
    };
    writer.type_of(schema, "")
}

struct Writer<'a> {
    root: &'a Value,
    /// References being expanded, outermost first.
    refs: Vec<&'a str>,
    depth: usize,
    expanded: usize,
}

impl<'a> Writer<'a> {
    fn type_of(&mut self, schema: &'a Value, indent: &str) -> String {
        if self.depth == MAX_DEPTH {
            return format!("any /* nested deeper than {MAX_DEPTH} levels */");
        }
        self.depth += 1;
        let text = self.dispatch(schema, indent);
        self.depth -= 1;
        text
    }

    fn dispatch(&mut self, schema: &'a Value, indent: &str) -> String {
        if let Some(variants) = variants(schema, "oneOf") {
            return self.one_of(variants, indent);
        }
        if let Some(types) = schema["type"].as_array() {
            let names: Vec<&str> = types.iter().filter_map(Value::as_str).collect();
            if !names.is_empty() {
                return self.any_type(schema, &names, indent);
            }
        }
        match schema["type"].as_str() {
            Some("object") => self.object(schema, indent),
            Some("array") => self.array(schema, indent),
            Some("string") => string(schema),
            Some("number" | "integer") => literals(schema).unwrap_or("number".into()),
            Some("boolean") => literals(schema).unwrap_or("boolean".into()),
            Some("null") => "null".into(),
            Some(_) => "any".into(),
            None => self.untyped(schema, indent),
        }
    }

    /// Schemas that only say something in other ways than `type` and `oneOf`.
    fn untyped(&mut self, schema: &'a Value, indent: &str) -> String {
        if let Some(target) = schema["$ref"].as_str() {
            return self.reference(target, indent);
        }
        if let Some(variants) = variants(schema, "anyOf") {
            return self.join(variants, " | ", indent);
        }
        if let Some(parts) = variants(schema, "allOf") {
            return self.join(parts, " & ", indent);
        }
        if let Some(text) = literals(schema) {
            return text;
        }
        if schema["properties"].is_object() {
            return self.object(schema, indent);
        }
        if schema.get("items").is_some() {
            return self.array(schema, indent);
        }
        match schema {
            Value::Bool(false) => "never".into(),
            _ => "any".into(),
        }
    }

    /// `"type": ["array", "null"]`: bare names, except where the schema says more about one. A name
    /// counts once: written out again, nested ones would double at every level.
    fn any_type(&mut self, schema: &'a Value, names: &[&str], indent: &str) -> String {
        let mut types: Vec<String> = Vec::with_capacity(names.len());
        for (i, &name) in names.iter().enumerate() {
            if names[..i].contains(&name) {
                continue;
            }
            types.push(match name {
                "integer" => "number".into(),
                "string" => string(schema),
                "object" if schema["properties"].is_object() => self.object(schema, indent),
                "array" if schema.get("items").is_some() => self.array(schema, indent),
                other => other.to_owned(),
            });
        }
        types.join(" | ")
    }

    fn join(&mut self, schemas: &'a [Value], separator: &str, indent: &str) -> String {
        let mut types: Vec<String> = Vec::with_capacity(schemas.len());
        for schema in schemas {
            let text = self.nullable(schema, indent);
            if !types.contains(&text) {
                types.push(text);
            }
        }
        types.join(separator)
    }

    fn array(&mut self, schema: &'a Value, indent: &str) -> String {
        let Some(items) = schema.get("items") else {
            return "Array<any>".into();
        };
        let text = self.type_of(items, indent);
        let ours = items.get("oneOf").is_none() && items["type"].as_str() != Some("string");
        match ours && items["type"].is_null() && (text.contains(" | ") || text.contains(" & ")) {
            true => format!("({text})[]"),
            false => format!("{text}[]"),
        }
    }

    fn reference(&mut self, target: &'a str, indent: &str) -> String {
        let name = target.rsplit('/').next().unwrap_or_default();
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
        let unexpanded = match is_name {
            true => format!("any /* {name} */"),
            false => "any".into(),
        };
        let Some(schema) = self.resolve(target) else {
            return unexpanded;
        };
        if self.refs.contains(&target) || self.expanded > MAX_EXPANDED {
            return unexpanded;
        }
        self.refs.push(target);
        let text = self.type_of(schema, indent);
        self.refs.pop();
        self.expanded += text.len();
        text
    }

    /// The schema that `#/$defs/Name` names; none for other documents' schemas.
    fn resolve(&self, target: &str) -> Option<&'a Value> {
        self.root.pointer(target.strip_prefix('#')?)
    }

    /// The type, with `| null` where OpenAPI's `nullable` asks for it.
    fn nullable(&mut self, schema: &'a Value, indent: &str) -> String {
        let mut text = self.type_of(schema, indent);
        if schema["nullable"].as_bool() == Some(true) && !text.contains("null") {
            text.push_str(" | null");
        }
        text
    }

    /// Variants, one a line, outside a property.
    fn one_of(&mut self, variants: &'a [Value], indent: &str) -> String {
        let mut out = String::new();
        let deeper = format!("{indent}   ");
        for variant in variants {
            let text = self.nullable(variant, &deeper);
            let default = variant.get("default").map(|value| match value.as_str() {
                Some(text) if !is_enum(variant) => format!("default: \"{text}\""),
                _ => format!("default: {value}"),
            });
            let comments: Vec<String> = text_of(variant, "description")
                .map(str::to_owned)
                .into_iter()
                .chain(default)
                .collect();
            let _ = write!(out, "\n{indent} | {text}");
            if !comments.is_empty() {
                let _ = write!(out, " // {}", comments.join(" "));
            }
        }
        out
    }

    fn object(&mut self, schema: &'a Value, indent: &str) -> String {
        let mut out = String::new();
        comment(&mut out, indent, text_of(schema, "description"));
        out.push_str("{\n");
        if let Some(properties) = schema["properties"].as_object() {
            self.properties(&mut out, schema, properties, indent);
        }
        let others = schema.get("additionalProperties");
        if let Some(others) =
            others.filter(|others| others.as_object().is_some_and(|map| !map.is_empty()))
        {
            let text = self.nullable(others, &format!("{indent}    "));
            let _ = writeln!(out, "{indent}[key: string]: {text},");
        }
        let _ = write!(out, "{indent}}}");
        out
    }

    fn properties(
        &mut self,
        out: &mut String,
        schema: &'a Value,
        properties: &'a Map<String, Value>,
        indent: &str,
    ) {
        let no_names = Vec::new();
        let required: std::collections::HashSet<&str> = schema["required"]
            .as_array()
            .unwrap_or(&no_names)
            .iter()
            .filter_map(Value::as_str)
            .collect();
        for (key, property) in properties {
            let mark = if required.contains(key.as_str()) {
                ""
            } else {
                "?"
            };
            if let Some(title) = text_of(property, "title") {
                let _ = write!(out, "{indent}// {title}\n{indent}//\n");
            }
            let described = variants(property, "anyOf").filter(|variants| {
                let says_more = |v: &Value| text_of(v, "description").is_some();
                property["type"].is_null() && variants.iter().any(says_more)
            });
            let one_of = variants(property, "oneOf").or(described);
            if one_of.is_none() {
                comment(out, indent, self.description(property));
            }
            examples(out, indent, property);
            if let Some(variants) = one_of {
                self.one_of_property(out, indent, &format!("{key}{mark}"), property, variants);
                continue;
            }
            let text = self.nullable(property, &format!("{indent}    "));
            let _ = write!(out, "{indent}{key}{mark}: {text},");
            if let Some(default) = default(property) {
                let _ = write!(out, " // {default}");
            }
            out.push('\n');
        }
    }

    /// A property's description; behind a reference, its target's, unless the target writes it itself.
    fn description(&self, property: &'a Value) -> Option<&'a str> {
        text_of(property, "description").or_else(|| {
            let target = self.resolve(property["$ref"].as_str()?)?;
            let writes_own = target["type"] == "object" || target["properties"].is_object();
            text_of(target, "description").filter(|_| !writes_own)
        })
    }

    /// A property with one variant a line. The property's description stands above, unless the first
    /// variant says the same; then only the others' stand behind them.
    fn one_of_property(
        &mut self,
        out: &mut String,
        indent: &str,
        key: &str,
        property: &'a Value,
        variants: &'a [Value],
    ) {
        let described = text_of(property, "description");
        let first = variants.first().and_then(|v| text_of(v, "description"));
        let above = described.filter(|_| described != first);
        comment(out, indent, above);
        comment(out, indent, default(property).as_deref());
        let _ = writeln!(out, "{indent}{key}:");
        let deeper = format!("{indent}   ");
        for (i, variant) in variants.iter().enumerate() {
            let text = self.nullable(variant, &deeper);
            let said = text_of(variant, "description")
                .filter(|&text| Some(text) != described && !(i == 0 && above.is_some()));
            let comments: Vec<String> = said
                .map(str::to_owned)
                .into_iter()
                .chain(default(variant))
                .collect();
            let _ = write!(out, "{indent} | {text}");
            if !comments.is_empty() {
                let _ = write!(out, " // {}", comments.join(" "));
            }
            out.push('\n');
        }
        let _ = writeln!(out, "{indent},");
    }
}

fn variants<'a>(schema: &'a Value, key: &str) -> Option<&'a [Value]> {
    let variants = schema[key].as_array()?;
    (!variants.is_empty()).then_some(variants.as_slice())
}

fn text_of<'a>(schema: &'a Value, key: &str) -> Option<&'a str> {
    schema[key].as_str()
}

fn is_enum(schema: &Value) -> bool {
    variants(schema, "enum").is_some()
}

fn comment(out: &mut String, indent: &str, text: Option<&str>) {
    if let Some(text) = text {
        let _ = writeln!(out, "{indent}// {text}");
    }
}

fn examples(out: &mut String, indent: &str, property: &Value) {
    let Some(examples) = variants(property, "examples") else {
        return;
    };
    comment(out, indent, Some("Examples:"));
    for example in examples.iter().filter_map(Value::as_str) {
        let _ = writeln!(out, "{indent}// - \"{example}\"");
    }
}

/// `default: …`; a text in quotes, but an enum's bare.
fn default(schema: &Value) -> Option<String> {
    let value = schema.get("default")?;
    Some(match value.as_str() {
        Some(text) if is_enum(schema) => format!("default: {text}"),
        Some(text) => format!("default: \"{text}\""),
        None => format!("default: {value}"),
    })
}

fn string(schema: &Value) -> String {
    let choices: Vec<String> = variants(schema, "enum")
        .unwrap_or_default()
        .iter()
        .filter_map(Value::as_str)
        .map(|text| format!("\"{text}\""))
        .collect();
    match choices.is_empty() {
        true => literals(schema).unwrap_or("string".into()),
        false => choices.join(" | "),
    }
}

/// `const` or `enum` as JSON values.
fn literals(schema: &Value) -> Option<String> {
    if let Some(value) = schema.get("const") {
        return Some(value.to_string());
    }
    let values = variants(schema, "enum")?;
    let texts: Vec<String> = values.iter().map(Value::to_string).collect();
    Some(texts.join(" | "))
}
