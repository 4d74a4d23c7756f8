//! The tables of docs/api.md as data, and the published schema that they have to agree with.

use crate::common;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Honoured,
    Ignored,
    Refused,
    Extension,
}

/// The rows of one endpoint's table: path, kind.
pub type Rows = BTreeMap<String, Kind>;

/// Tables by endpoint (`POST /v1/responses`).
pub fn tables() -> BTreeMap<String, Rows> {
    let text = std::fs::read_to_string(common::root().join("docs/api.md")).expect("docs/api.md");
    let mut tables: BTreeMap<String, Rows> = BTreeMap::new();
    let mut endpoint = None;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix('#') {
            let heading = heading.trim_start_matches('#').trim();
            endpoint = heading.contains(" /v1/").then(|| heading.to_owned());
        }
        let (Some(endpoint), Some(row)) = (&endpoint, line.strip_prefix("| `")) else {
            continue;
        };
        let mut cells = row.split(" | ");
        let fields = cells.next().expect("a first cell");
        let kind = match cells.next().map(|cell| cell.trim_end_matches(" |")) {
            Some("honoured") => Kind::Honoured,
            Some("ignored") => Kind::Ignored,
            Some("refused") => Kind::Refused,
            Some("honoured, extension") => Kind::Extension,
            other => panic!("docs/api.md: {endpoint}: {fields}: what is {other:?}?"),
        };
        let rows = tables.entry(endpoint.clone()).or_default();
        for field in fields.split(", ") {
            let field = field.trim_matches('`').to_owned();
            let before = rows.insert(field.clone(), kind);
            assert!(before.is_none(), "docs/api.md: {endpoint}: {field} twice");
        }
    }
    // This table says that it has the other's rows too.
    let (all, some) = ("POST /v1/responses", "POST /v1/responses/input_tokens");
    for (field, kind) in tables[all].clone() {
        let before = tables.entry(some.into()).or_default().insert(field, kind);
        assert!(before.is_none(), "docs/api.md: {some} repeats {all}");
    }
    tables
}

/// A field of the published schema.
#[derive(Debug, Clone, Deserialize)]
pub struct Field {
    pub path: String,
    /// JSON's types, or `any`.
    pub types: Vec<String>,
    /// The values of a closed list of strings.
    pub values: Vec<String>,
    pub required: bool,
}

/// OpenAI's published schema, endpoint by endpoint: what tools/api_fields.py reads out of the package
/// `openai`.
pub fn schema() -> HashMap<String, Vec<Field>> {
    let mut command = std::process::Command::new(common::python());
    let output = command
        .arg(common::root().join("tools/api_fields.py"))
        .output()
        .expect("the interpreter starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tools/api_fields.py: {said}");
    serde_json::from_slice(&output.stdout).expect("JSON of tools/api_fields.py")
}

/// What the table says of `path`: its own row, else the row of a whole field above it that is ignored
/// or refused, else a row for this name wherever it stands (`*.caller`).
pub fn kind(rows: &Rows, path: &str) -> Option<Kind> {
    if let Some(&kind) = rows.get(path) {
        return Some(kind);
    }
    let is_whole = |kind: Kind| matches!(kind, Kind::Ignored | Kind::Refused);
    let cuts = path.match_indices(['.', '<']).map(|(at, _)| at);
    let mut above = cuts.filter_map(|at| rows.get(&path[..at]));
    if let Some(&kind) = above.find(|&&kind| is_whole(kind)) {
        return Some(kind);
    }
    let mut wild = rows
        .iter()
        .filter_map(|(row, &kind)| Some((row.strip_prefix('*')?, kind)));
    let found = wild.find(|(name, _)| {
        path.match_indices(name).any(|(at, _)| {
            let after = path[at + name.len()..].chars().next();
            matches!(after, None | Some('.' | '<'))
        })
    });
    found.map(|(_, kind)| kind)
}
