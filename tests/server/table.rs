//! docs/api.md against OpenAI's published schema and against the router: every field is in a table, and
//! the server accepts or refuses it as the table says. What a field does is tested with its endpoint.

#[path = "table/doc.rs"]
mod doc;
#[path = "table/place.rs"]
mod place;
#[path = "table/plan.rs"]
mod plan;

use crate::support::{Answer, Client};
use doc::{Field, Kind};
use gossamer::{grammar, server::Settings};
use place::Place;
use plan::{Expect, Plan, Try, WRONG, cases};
use serde_json::{Value, json};
use std::collections::BTreeMap;

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

/// What is wrong with `answer`, if anything.
fn check(answer: &Answer, expect: &Expect) -> Result<(), String> {
    match expect {
        Expect::Fine if answer.status == 200 && !answer.text.contains("\"error\":{") => Ok(()),
        Expect::Fine => Err(format!("expected an answer, found {answer}")),
        Expect::Refused(codes, param) => {
            answer.is_error(400)?;
            let error = &answer.json()["error"];
            if error["code"].is_null()
                || !codes.is_empty() && !codes.iter().any(|c| error["code"] == *c)
            {
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
    let (tables, schema, mut cases) = (doc::tables(), doc::schema(), cases());
    // What makes a prompt of POST /v1/responses makes one of input_tokens.
    let source = endpoint.trim_end_matches("/input_tokens");
    let mut own = cases.remove(endpoint).expect("cases");
    if let Some(source) = cases.remove(source) {
        own.bodies = source.bodies;
        for (path, case) in source.fields {
            if schema[endpoint].iter().any(|field| field.path == path) {
                own.fields.entry(path).or_insert(case);
            }
        }
    }
    let (rows, cases, mut fields) = (&tables[endpoint], &own, schema[endpoint].clone());
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
    // input_tokens leaves alone what makes no prompt.
    let extensions = rows.iter().filter(|(_, kind)| **kind == Kind::Extension);
    let extensions = extensions.filter(|_| !endpoint.ends_with("/input_tokens"));
    let untried = extensions.filter(|(row, _)| !plan.fields.iter().any(|f| f.path == **row));
    plan.untried.extend(untried.map(|(row, _)| row.clone()));
    assert!(
        plan.untried.is_empty(),
        "{endpoint}: cases.json has no body with a place for {:?}",
        plan.untried
    );

    let client = Client::demo(Settings::default());
    let ids = match endpoint.starts_with("POST /v1/responses") {
        true => stored(&client).await,
        false => BTreeMap::new(),
    };
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

#[test]
fn the_limits_are_those_of_the_program() {
    let text =
        std::fs::read_to_string(crate::common::root().join("docs/api.md")).expect("docs/api.md");
    let limits = Settings::default();
    let (mib, kib) = (|bytes: usize| bytes >> 20, |bytes: usize| bytes >> 10);
    let (stored, hours) = (limits.max_stored_bytes, limits.stored_age.as_secs() / 3600);
    let rows = [
        format!("body | {} MiB", mib(limits.max_body_bytes)),
        format!(
            "arrays and objects in each other | {}",
            limits.max_json_depth
        ),
        format!("JSON values in a body | {}", limits.max_json_values),
        format!("`n` | {}", limits.max_n),
        format!("prompts of a completions request | {}", limits.max_prompts),
        format!("one JSON schema | {} KiB", kib(limits.max_schema_bytes)),
        format!(
            "one expression or grammar | {} KiB",
            kib(grammar::MAX_GRAMMAR_BYTES)
        ),
        format!(
            "the schemas of all strict tools together | {} KiB",
            kib(grammar::MAX_TOOL_BYTES)
        ),
        format!(
            "a schema: JSON arrays and objects in each other (an object's field takes two) | {}",
            grammar::MAX_NESTING
        ),
        format!("a schema: fields in all | {}", grammar::MAX_FIELDS),
        format!(
            "a schema: fields of one object that are not required | {}; {} in all where \
             `minProperties` or `maxProperties` stand",
            grammar::MAX_OPTIONAL,
            grammar::MAX_COUNTED
        ),
        format!(
            "a schema: the values of `multipleOf`, without their points, together | {}",
            grammar::MAX_MULTIPLES
        ),
        format!(
            "the work for one mask | {} items of the parser, {} steps of the lexer: a few \
             milliseconds each",
            grammar::MASK_ITEMS,
            grammar::MASK_STEPS
        ),
        format!(
            "what an answer's shape may keep in mind | {} states, about 50 MB",
            grammar::MAX_STATES
        ),
        format!("tools | {}", limits.max_tools),
        format!("entries of `logit_bias` | {}", limits.max_logit_bias),
        format!("stop strings | {}, of 1024 bytes each", limits.max_stop),
        format!("`top_logprobs` | {}", limits.max_logprobs),
        format!(
            "stored responses | {}, of {} MiB together, for {hours} hours; the least recently used go first",
            limits.max_stored_responses,
            mib(stored)
        ),
        format!(
            "background responses that run or wait | {}",
            limits.max_background
        ),
    ];
    for row in rows {
        assert!(
            text.contains(&format!("\n| {row} |\n")),
            "docs/api.md lacks: {row}"
        );
    }
}
