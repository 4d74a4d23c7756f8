//! docs/api.md against OpenAI's published schema and against the router: every field is in a table,
//! and the server does with it what the table says.

#[path = "table/doc.rs"]
mod doc;
#[path = "table/place.rs"]
mod place;

use crate::support::{Answer, Client};
use doc::{Field, Kind, Rows};
use gossamer::server::Settings;
use place::{Place, with_variant};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};

/// What the schema can't tell: requests to vary, and values inside and outside a field's range.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    /// Requests that are answered as they stand; a field is tried in the first that has a place for it.
    #[serde(default)]
    bodies: Map<String, Value>,
    #[serde(default)]
    fields: HashMap<String, Case>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(deny_unknown_fields)]
struct Case {
    /// The name of the body to try it in.
    body: Option<String>,
    /// Top-level fields to leave out of that body.
    #[serde(default)]
    without: Vec<String>,
    /// Text before it in a query.
    #[serde(default)]
    with: String,
    #[serde(default)]
    good: Vec<Value>,
    #[serde(default)]
    bad: Vec<Value>,
    /// Values that are a 404.
    #[serde(default)]
    missing: Vec<Value>,
    /// JSON's types, for an extension.
    types: Option<Vec<String>>,
    /// The schema requires it and we don't, or the other way round.
    #[serde(default)]
    optional: bool,
    #[serde(default)]
    required: bool,
}

fn cases() -> HashMap<String, Cases> {
    serde_json::from_str(include_str!("table/cases.json")).expect("table/cases.json")
}

#[test]
fn the_tables_hold_the_published_schema() {
    let (tables, schema) = (doc::tables(), doc::schema());
    let mut wrong = Vec::new();
    for (endpoint, fields) in &schema {
        let Some(rows) = tables.get(endpoint) else {
            wrong.push(format!("{endpoint}: no table"));
            continue;
        };
        for field in fields.iter().filter(|f| doc::kind(rows, &f.path).is_none()) {
            wrong.push(format!("{endpoint}: {} is in no row", field.path));
        }
        // input_tokens takes what POST /v1/responses takes, also what the schema leaves out.
        let own = !endpoint.ends_with("/input_tokens");
        for (row, _) in rows
            .iter()
            .filter(|(_, kind)| own && **kind != Kind::Extension)
        {
            let is_it = |field: &Field| match row.strip_prefix('*') {
                Some(name) => field.path.ends_with(name),
                None => field.path == *row,
            };
            if !fields.iter().any(is_it) {
                wrong.push(format!(
                    "{endpoint}: {row} is not in the schema, nor an extension"
                ));
            }
        }
        for (row, _) in rows.iter().filter(|(_, kind)| **kind == Kind::Extension) {
            if fields.iter().any(|field| field.path == *row) {
                wrong.push(format!(
                    "{endpoint}: {row} is in the schema, so no extension"
                ));
            }
        }
    }
    assert_eq!(
        tables.len(),
        schema.len(),
        "tables of endpoints that the schema has not"
    );
    assert!(wrong.is_empty(), "docs/api.md:\n{}", wrong.join("\n"));
}

/// A place for a field that is honoured, in a request that is answered as it stands.
#[derive(Clone)]
pub struct Spot {
    /// The endpoint's path.
    pub path: String,
    /// As docs/api.md writes it.
    pub field: String,
    /// JSON's types.
    pub types: Vec<String>,
    pub body: Value,
    pub place: Place,
}

/// Requests that are answered as they stand: path and body.
pub fn bodies() -> Vec<(String, Value)> {
    let mut bodies = Vec::new();
    for (endpoint, cases) in cases() {
        let path = endpoint.trim_start_matches("POST ");
        // Ids of stored responses are filled in by this module only.
        let whole = cases
            .bodies
            .values()
            .filter(|body| !body.to_string().contains('$'));
        bodies.extend(whole.map(|body| (path.to_owned(), body.clone())));
    }
    bodies.sort_by_key(|(path, body)| (path.clone(), body.to_string()));
    bodies
}

/// Every place for an honoured field of the published schema in [`bodies`].
pub fn spots() -> Vec<Spot> {
    let (tables, schema) = (doc::tables(), doc::schema());
    let mut spots = Vec::new();
    for (path, body) in bodies() {
        let endpoint = format!("POST {path}");
        let is_honoured = |field: &&Field| {
            let is_value = !field.path.ends_with('>') && !field.types.iter().any(|t| t == "any");
            is_value && doc::kind(&tables[&endpoint], &field.path) == Some(Kind::Honoured)
        };
        for field in schema[&endpoint].iter().filter(is_honoured) {
            let Some(place) = Place::find(&body, &field.path) else {
                continue;
            };
            spots.push(Spot {
                path: path.clone(),
                field: field.path.clone(),
                types: field.types.clone(),
                body: body.clone(),
                place,
            });
        }
    }
    spots
}

/// One request to make and what has to come of it.
struct Try {
    what: String,
    body: Value,
    expect: Expect,
}

enum Expect {
    Fine,
    /// 400 with one of these codes, about this place.
    Refused(&'static [&'static str], String),
    /// 404 about this place.
    Missing(String),
}

const WRONG: &[&str] = &["invalid_type", "invalid_value"];
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
struct Plan<'a> {
    rows: &'a Rows,
    fields: Vec<Field>,
    cases: &'a Cases,
    tries: Vec<Try>,
    /// Rows that could not be tried.
    untried: Vec<String>,
}

impl Plan<'_> {
    fn make(&mut self) {
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
        if has("null") || !(is_variant || field.required || case.required) {
            self.fine(
                format!("{path} = null"),
                place.with(&body, Some(Value::Null)),
            );
        }
        let mut wrong = case.bad.clone();
        for (name, value) in samples() {
            if !has(name) && !(name == "integer" && has("number")) {
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
            let mut bodies = self.cases.bodies.values();
            let (body, _) = bodies.find_map(|body| with_variant(body, path, object.clone()))?;
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
            let mut bodies = self.cases.bodies.values();
            let (body, param) = bodies.find_map(|body| with_variant(body, path, object.clone()))?;
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

/// What is wrong with `answer`, if anything.
fn check(answer: &Answer, expect: &Expect) -> Result<(), String> {
    match expect {
        Expect::Fine if answer.status == 200 && !answer.text.contains("\"error\":{") => Ok(()),
        Expect::Fine => Err(format!("expected an answer, found {answer}")),
        Expect::Refused(codes, param) => {
            answer.is_error(400)?;
            let error = &answer.json()["error"];
            if !codes.iter().any(|code| error["code"] == *code) {
                return Err(format!("expected code {codes:?}, found {answer}"));
            }
            names(answer, param)
        }
        Expect::Missing(param) => {
            answer.is_error(404)?;
            names(answer, param)
        }
    }
}

/// The error names `param`, what is inside it, or what holds it.
fn names(answer: &Answer, param: &str) -> Result<(), String> {
    let found = answer.json()["error"]["param"]
        .as_str()
        .unwrap_or("")
        .to_owned();
    let within = |long: &str, short: &str| {
        let rest = long.strip_prefix(short);
        !short.is_empty()
            && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    match within(&found, param) || within(param, &found) {
        true => Ok(()),
        false => Err(format!("expected param {param}, found {answer}")),
    }
}

/// `body` with the ids of a stored response in it.
fn with_ids(body: &Value, ids: &BTreeMap<&str, String>) -> Value {
    let mut text = body.to_string();
    for (name, id) in ids {
        text = text.replace(name, id);
    }
    serde_json::from_str(&text).expect("JSON")
}

/// Makes a stored response and names it and an item of it.
async fn stored(client: &Client) -> BTreeMap<&'static str, String> {
    let body = json!({"input": "What is 2 + 3?", "max_output_tokens": 300, "temperature": 0});
    let answer = client.post("/v1/responses", &body).await;
    assert_eq!(answer.status, 200, "{answer}");
    let response = answer.json();
    let items = response["output"].as_array().expect("items");
    let message = items.iter().find(|item| item["type"] == "message");
    let id = |value: &Value| value["id"].as_str().expect("an id").to_owned();
    let item = id(message.unwrap_or_else(|| panic!("a message in {answer}")));
    BTreeMap::from([("$RESPONSE_ID", id(&response)), ("$ITEM_ID", item)])
}

/// Walks one endpoint's table.
async fn walk(endpoint: &str) {
    let (tables, schema, cases) = (doc::tables(), doc::schema(), cases());
    // What is taken by POST /v1/responses is what input_tokens takes.
    let source = endpoint.trim_end_matches("/input_tokens");
    let (rows, cases) = (&tables[endpoint], &cases[source]);
    let mut fields = schema[source].clone();
    for field in &schema[endpoint] {
        if !fields.iter().any(|f| f.path == field.path) {
            fields.push(field.clone());
        }
    }
    for (path, case) in &cases.fields {
        let known = fields.iter().any(|field| field.path == *path);
        if let (false, Some(types)) = (known, &case.types) {
            fields.push(Field {
                path: path.clone(),
                types: types.clone(),
                values: Vec::new(),
                required: case.required,
            });
        } else {
            assert!(
                known,
                "cases.json: {endpoint}: {path} is no field of the schema and has no types"
            );
        }
    }
    let mut plan = Plan {
        rows,
        fields,
        cases,
        tries: Vec::new(),
        untried: Vec::new(),
    };
    plan.make();
    let extensions = rows.iter().filter(|(_, kind)| **kind == Kind::Extension);
    let untried = extensions.filter(|(row, _)| !plan.fields.iter().any(|f| f.path == **row));
    plan.untried.extend(untried.map(|(row, _)| row.clone()));
    assert!(
        plan.untried.is_empty(),
        "{endpoint}: cases.json has no body with a place for {:?}",
        plan.untried
    );

    let client = Client::demo(Settings::default());
    let ids = stored(&client).await;
    let path = endpoint.trim_start_matches("POST ");
    let mut wrong = Vec::new();
    for Try { what, body, expect } in &plan.tries {
        let answer = client.post(path, &with_ids(body, &ids)).await;
        if let Err(why) = check(&answer, expect) {
            wrong.push(format!("{what}: {why}"));
        }
    }
    println!("{endpoint}: {} requests", plan.tries.len());
    let count = wrong.len();
    assert!(
        wrong.is_empty(),
        "{endpoint}: {count} of {}:\n{}",
        plan.tries.len(),
        wrong.join("\n")
    );
}

#[tokio::test]
async fn chat_completions_do_what_the_table_says() {
    walk("POST /v1/chat/completions").await;
}

#[tokio::test]
async fn completions_do_what_the_table_says() {
    walk("POST /v1/completions").await;
}

#[tokio::test]
async fn responses_do_what_the_table_says() {
    walk("POST /v1/responses").await;
}

#[tokio::test]
async fn input_tokens_do_what_the_table_says() {
    walk("POST /v1/responses/input_tokens").await;
}

#[tokio::test]
async fn queries_of_stored_responses_do_what_the_table_says() {
    let (tables, all) = (doc::tables(), cases());
    let client = Client::demo(Settings::default());
    let body = json!({"input": "What is 2 + 3?", "max_output_tokens": 2, "background": true, "stream": true});
    let made = client.post("/v1/responses", &body).await;
    let first = made.events().into_iter().next().expect("an event");
    let id = first["response"]["id"].as_str().expect("an id").to_owned();
    let mut wrong = Vec::new();
    for endpoint in [
        "GET /v1/responses/{id}",
        "GET /v1/responses/{id}/input_items",
    ] {
        let path = endpoint.trim_start_matches("GET ").replace("{id}", &id);
        for (field, kind) in &tables[endpoint] {
            let case = all[endpoint].fields.get(field).cloned().unwrap_or_default();
            let (good, bad) = match kind {
                Kind::Ignored => (vec![json!("x"), json!("")], Vec::new()),
                _ => (case.good, case.bad),
            };
            assert!(
                good.len() + bad.len() > 0,
                "cases.json: nothing to try of {endpoint} {field}"
            );
            let expectations = good.into_iter().map(|v| (v, Expect::Fine));
            let refusals = bad
                .into_iter()
                .map(|v| (v, Expect::Refused(WRONG, field.clone())));
            for (value, expect) in expectations.chain(refusals) {
                let value = value.as_str().expect("a string");
                let path = format!("{path}?{}{field}={value}", case.with);
                let answer = client.get(&path).await;
                if let Err(why) = check(&answer, &expect) {
                    wrong.push(format!("{path}: {why}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
