//! Schemas, patterns and grammars to matchers, within bounds.
//!
//! JSON is compact but flexible: between two of its signs may stand one blank, or a line's end with
//! up to 64 blanks of indentation. So `{"a": 1}` and pretty-printed JSON are both allowed, and
//! endless blanks, which models fall into, are not. Strings may hold any escape that JSON has. Fields
//! come in the schema's order.
//!
//! The bounds are those below. What is too large to begin is refused; what grows too large on the way
//! ends the answer.
//!
//! What was compiled is kept, refusals too, within the cache's bytes. A few compile at a time, so
//! that requests which are slow to compile leave the cores to the others.

use super::{cache::Cache, rules::Format, vocabulary::Vocabulary};
use crate::{sampler::Mask, tokenizer::Tokenizer};
use anyhow::Result;
use llguidance::{
    JsonCompileOptions, Matcher, ParserFactory,
    api::TopLevelGrammar,
    earley::SlicedBiasComputer,
    toktrie::{InferenceCapabilities, TokEnv},
};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Most bytes of a schema, as compact JSON.
pub const MAX_SCHEMA_BYTES: usize = 128 << 10;
/// Most bytes of a pattern or a grammar.
pub const MAX_GRAMMAR_BYTES: usize = 32 << 10;
/// Most levels that a schema may be nested.
pub const MAX_NESTING: usize = 64;
/// Most fields of one object that may be left out: what llguidance does about them grows with the
/// square of their number.
pub const MAX_OPTIONAL: usize = 1000;
/// Most fields of all objects of a schema together: llguidance recurses once for each field of an
/// object, and `allOf` makes several objects one.
pub const MAX_FIELDS: usize = 2500;
/// Most that the values of a schema's `multipleOf` may add up to, their points left out: a lexer has
/// as many states.
pub const MAX_MULTIPLES: f64 = 10_000.0;

/// Most fields that may be left out in all of a schema that counts fields (`minProperties`,
/// `maxProperties`): llguidance makes one variant for each, of all of them.
pub const MAX_COUNTED: usize = 200;
/// Most states of a text's lexer, about 500 bytes each. A string with a `maxLength` takes seven for
/// each of its characters.
pub const MAX_STATES: usize = 100_000;
/// Most items that llguidance's parser makes for one mask, at about 20 in a microsecond.
pub const MASK_ITEMS: usize = 50_000;
/// Most steps that its lexer takes for one mask, at about 14 in a microsecond.
pub const MASK_STEPS: u64 = 200_000;
/// Formats that are compiled at once.
const AT_ONCE: usize = 2;

/// Tokens of a text that are tried before it is accepted.
const PROBE: usize = 3;
/// Between two signs of JSON.
const BLANKS: &str = r"\x20|\r?\n[\x20\t]{0,64}";

/// Makes [`Mold`]s for one vocabulary.
pub(super) struct Compiler {
    factory: ParserFactory,
    /// What was compiled lately: agents send the same tools with every turn.
    cache: Mutex<Cache<Result<Arc<Mold>, String>>>,
    /// Held while compiling, by the format's hash: the same one is compiled once.
    compiling: [Mutex<()>; AT_ONCE],
    /// Id that llguidance knows as the end of the text.
    end: u32,
}

impl Compiler {
    /// Takes about a second with o200k.
    ///
    /// # Errors
    /// When the vocabulary can't be used.
    pub fn new(tok: &Arc<Tokenizer>) -> Result<Compiler> {
        let vocabulary: TokEnv = Arc::new(Vocabulary::new(tok)?);
        let end = vocabulary.tok_trie().eos_token();
        // The parser neither jumps ahead nor takes back tokens.
        let abilities = InferenceCapabilities::default();
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&vocabulary, abilities, &slices)?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.verbose_errors = false;
        limits.max_lexer_states = MAX_STATES;
        limits.step_max_items = MASK_ITEMS;
        limits.step_lexer_fuel = MASK_STEPS;
        Ok(Compiler {
            factory,
            cache: Mutex::new(Cache::new()),
            compiling: Default::default(),
            end,
        })
    }

    /// What texts of `format` are made in.
    ///
    /// # Errors
    /// In llguidance's words, when it can't express `format` or `format` is beyond the bounds.
    pub fn mold(&self, format: &Format) -> Result<Arc<Mold>, String> {
        let (kind, text) = text(format)?;
        let key = format!("{kind} {text}");
        let known = || locked(&self.cache).get(&key);
        if let Some(known) = known() {
            return known;
        }
        let mut hash = DefaultHasher::new();
        key.hash(&mut hash);
        let place = hash.finish() as usize % AT_ONCE;
        let _turn = self.compiling.get(place).map(locked);
        // Somebody else may have compiled it meanwhile.
        if let Some(known) = known() {
            return known;
        }
        let compiled = self.compile(format, key.len());
        let compiled = compiled.map_err(|error| format!("{kind}: {error}"));
        let bytes = compiled
            .as_ref()
            .map_or_else(String::len, |mold| mold.bytes);
        let compiled = compiled.map(Arc::new);
        locked(&self.cache).put(key, compiled.clone(), bytes);
        compiled
    }

    /// `length`: of the format's text.
    fn compile(&self, format: &Format, length: usize) -> Result<Mold, String> {
        let grammar = match format {
            Format::JsonObject => schema(json!({"type": "object"}))?,
            Format::JsonSchema { schema: given } => schema(given.clone())?,
            Format::Regex(pattern) => TopLevelGrammar::from_regex(pattern),
            Format::Lark(grammar) => {
                if grammar.contains("allow_invalid_utf8") {
                    return Err("allow_invalid_utf8: an answer is always text".to_owned());
                }
                TopLevelGrammar::from_lark(grammar.clone())
            }
        };
        let parser = self.factory.create_parser(grammar).map_err(words)?;
        let spec = parser.parser.grammar().lexer_spec();
        if spec.special_token_rx.is_some() {
            return Err("control tokens and token numbers can't stand in a grammar".to_owned());
        }
        if spec.has_temperature {
            return Err("a grammar can't set the temperature: the request does".to_owned());
        }
        // The matcher takes the parser with it; this one sees the same lexer.
        let lexer = parser.parser.clone();
        let mut matcher = Matcher::new(Ok(parser));
        let failed = |error| match words(error) {
            told if told.contains("NoExtension") => "no text fits it".to_owned(),
            told => told,
        };
        matcher.compute_mask_or_eos().map_err(failed)?;
        // As measured: what is not the lexer's goes with the text.
        let bytes = 2 * lexer.lexer_stats().num_bytes + 64 * length;
        // What is too large shows in the first tokens, and so not in the middle of an answer.
        let mut probe = matcher.deep_clone();
        for _ in 0..PROBE {
            let allowed = probe.compute_mask_or_eos().map_err(failed)?;
            let first = allowed.iter().find(|&id| id != self.end);
            match first {
                Some(id) => probe.consume_token(id).map_err(failed)?,
                None => break,
            }
        }
        let end = self.end;
        Ok(Mold {
            matcher,
            bytes,
            end,
        })
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a format is called, and its text.
///
/// # Errors
/// When it is beyond the bounds.
fn text(format: &Format) -> Result<(&'static str, String), String> {
    let (kind, text) = match format {
        Format::JsonObject => ("json_object", String::new()),
        Format::JsonSchema { schema } => {
            let bounds = Bounds::default().add(schema, MAX_NESTING);
            bounds.map_err(|beyond| format!("json_schema: {beyond}"))?;
            ("json_schema", schema.to_string())
        }
        Format::Regex(pattern) => ("regex", pattern.clone()),
        // A schema in a grammar would be beyond the bounds above.
        Format::Lark(grammar) if grammar.contains("%json") => {
            return Err("grammar: %json can't be used here; ask for a json_schema".to_owned());
        }
        Format::Lark(grammar) => ("grammar", grammar.clone()),
    };
    let most = match format {
        Format::JsonObject | Format::JsonSchema { .. } => MAX_SCHEMA_BYTES,
        Format::Regex(_) | Format::Lark(_) => MAX_GRAMMAR_BYTES,
    };
    match text.len() {
        length if length > most => Err(format!(
            "{kind}: {length} bytes; at most {most} can be enforced"
        )),
        _ => Ok((kind, text)),
    }
}

/// What is summed up over a schema.
#[derive(Default)]
struct Bounds {
    fields: usize,
    /// Fields that may be left out.
    optional: usize,
    /// Whether some object counts its fields.
    counts: bool,
    multiples: f64,
}

impl Bounds {
    /// Adds `schema`, which may have so many `levels`.
    fn add(mut self, schema: &Value, levels: usize) -> Result<Bounds, String> {
        let deeper = || {
            let deep = || format!("nested deeper than {MAX_NESTING} levels; make it flatter");
            levels.checked_sub(1).ok_or_else(deep)
        };
        match schema {
            Value::Array(items) => {
                let levels = deeper()?;
                items
                    .iter()
                    .try_fold(self, |sum, item| sum.add(item, levels))
            }
            Value::Object(fields) => {
                let levels = deeper()?;
                let described = fields.get("properties").and_then(Value::as_object);
                let described = || described.into_iter().flat_map(|of| of.keys());
                let required = fields.get("required").and_then(Value::as_array);
                let required = required.into_iter().flatten().filter_map(Value::as_str);
                let required: HashSet<&str> = required.collect();
                let is_optional = |name: &&String| !required.contains(name.as_str());
                let optional = described().filter(is_optional).count();
                self.fields += optional + required.len();
                if self.fields > MAX_FIELDS {
                    return Err(format!(
                        "its objects have more than {MAX_FIELDS} fields in all; no more can be enforced"
                    ));
                }
                if optional > MAX_OPTIONAL {
                    return Err(format!(
                        "an object of {optional} fields that may be left out; at most \
                         {MAX_OPTIONAL} can be enforced: make the others required"
                    ));
                }
                self.optional += optional;
                self.counts |= ["minProperties", "maxProperties"]
                    .iter()
                    .any(|count| fields.contains_key(*count));
                if self.counts && self.optional > MAX_COUNTED {
                    return Err(format!(
                        "minProperties and maxProperties can be enforced in a schema with at most \
                         {MAX_COUNTED} fields that may be left out"
                    ));
                }
                if let Some(Value::Number(number)) = fields.get("multipleOf") {
                    self.multiples += digits(&number.to_string());
                }
                if self.multiples > MAX_MULTIPLES {
                    return Err(format!(
                        "multipleOf: values that add up to more than {MAX_MULTIPLES} (without \
                         their points) can't be enforced"
                    ));
                }
                fields
                    .values()
                    .try_fold(self, |sum, field| sum.add(field, levels))
            }
            _ => Ok(self),
        }
    }
}

/// The digits of a number as one: 25 of 0.25, 15 of 1.5e10.
fn digits(number: &str) -> f64 {
    let digits = number.chars().take_while(|c| !matches!(c, 'e' | 'E'));
    let digits: String = digits.filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(f64::INFINITY)
}

/// A schema with our way to write JSON.
fn schema(mut schema: Value) -> Result<TopLevelGrammar, String> {
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    let Value::Object(fields) = &mut schema else {
        return Err(format!(
            "expected a JSON Schema (an object), found {schema:.60}"
        ));
    };
    // llguidance's own options: not the client's to set.
    fields.remove("x-guidance");
    let options = JsonCompileOptions {
        whitespace_pattern: Some(BLANKS.to_owned()),
        json_allow_general_unicode_escapes: true,
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    Ok(TopLevelGrammar::from_json_schema(schema))
}

/// llguidance's words without its marks, nor options that are not the client's.
fn words(error: anyhow::Error) -> String {
    let text = format!("{error:#}");
    let text = text.split("\n<").next().unwrap_or_default();
    match text.contains("oneOf constraints are not supported") {
        true => "oneOf: nothing tells its options apart; give each a field with its own const, or \
                 use anyOf"
            .to_owned(),
        false => text.trim().to_owned(),
    }
}

/// A compiled format, which many texts can be made in at once.
pub(super) struct Mold {
    matcher: Matcher,
    /// About what the matcher holds.
    bytes: usize,
    end: u32,
}

/// A text in the making whose shape is enforced.
#[derive(Clone)]
pub(super) struct Shape {
    mold: Arc<Mold>,
    /// A copy of the mold's, made with the first mask: it may be large.
    matcher: Option<Own>,
}

/// A matcher that shares nothing with its copies.
struct Own(Matcher);

impl Clone for Own {
    fn clone(&self) -> Own {
        Own(self.0.deep_clone())
    }
}

impl Shape {
    /// A text of `mold` at its beginning.
    pub fn new(mold: &Arc<Mold>) -> Shape {
        Shape {
            mold: mold.clone(),
            matcher: None,
        }
    }

    fn matcher(&mut self) -> &mut Matcher {
        let copy = || Own(self.mold.matcher.deep_clone());
        &mut self.matcher.get_or_insert_with(copy).0
    }

    /// What may come; `ends` where the text may end.
    ///
    /// # Errors
    /// When the mask would take too long.
    pub fn mask(&mut self, ends: &[u32]) -> Result<Mask, String> {
        let allowed = self.matcher().compute_mask_or_eos().map_err(words)?;
        let mut bits: Vec<u32> = allowed.into();
        let place = |id: u32| (id as usize / 32, 1u32 << (id % 32));
        let (word, bit) = place(self.mold.end);
        if let Some(word) = bits.get_mut(word)
            && *word & bit != 0
        {
            *word &= !bit;
            for &end in ends {
                let (word, bit) = place(end);
                if let Some(word) = bits.get_mut(word) {
                    *word |= bit;
                }
            }
        }
        Ok(Mask::Bits(bits))
    }

    /// Takes in a token; true if it was one of `ends` and the text is complete.
    ///
    /// # Errors
    /// When it doesn't fit.
    pub fn accept(&mut self, id: u32, ends: &[u32]) -> Result<bool, String> {
        if !ends.contains(&id) {
            self.matcher().consume_token(id).map_err(words)?;
            return Ok(false);
        }
        let matcher = self.matcher();
        match matcher.is_stopped() || matcher.is_accepting().map_err(words)? {
            true => Ok(true),
            false => Err("the text ended before it was complete".to_owned()),
        }
    }
}
