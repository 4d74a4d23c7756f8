//! Schemas, patterns and grammars to matchers, within bounds.
//!
//! JSON is compact but flexible: between two of its signs may stand one blank, or a line's end with
//! up to 64 blanks of indentation. So `{"a": 1}` and pretty-printed JSON are both allowed, and
//! endless blanks, which models fall into, are not. Strings may hold any escape that JSON has.

use super::{cache::Cache, rules::Format, vocabulary::Vocabulary};
use crate::{sampler::Mask, tokenizer::Tokenizer};
use anyhow::Result;
use llguidance::{
    JsonCompileOptions, Matcher, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
    earley::SlicedBiasComputer,
    toktrie::{InferenceCapabilities, TokEnv},
};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};

/// Most bytes of a schema (as compact JSON), a pattern or a grammar.
pub const MAX_SCHEMA_BYTES: usize = 256 << 10;
/// Most levels that a schema may be nested.
pub const MAX_NESTING: usize = 64;

/// Between two signs of JSON.
const BLANKS: &str = r"\x20|\r?\n[\x20\t]{0,64}";

/// Makes [`Shape`]s for one vocabulary.
pub(super) struct Compiler {
    factory: ParserFactory,
    /// What was compiled lately: agents send the same tools with every turn.
    cache: Mutex<Cache<Matcher>>,
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
        *factory.limits_mut() = limits();
        Ok(Compiler {
            factory,
            cache: Mutex::new(Cache::new()),
            end,
        })
    }

    /// A fresh matcher of `format`, its first mask already computed once.
    ///
    /// # Errors
    /// In llguidance's words, when it can't express `format` or `format` is beyond the limits.
    pub fn shape(&self, format: &Format) -> Result<Shape, String> {
        let (kind, text) = text(format)?;
        let key = format!("{kind} {text}");
        let cached = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.get(&key).map(Matcher::deep_clone)
        };
        let matcher = match cached {
            Some(matcher) => matcher,
            None => {
                let matcher = self.compile(format).map_err(|e| format!("{kind}: {e}"))?;
                let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
                cache.put(key, matcher.deep_clone());
                matcher
            }
        };
        Ok(Shape {
            matcher,
            end: self.end,
        })
    }

    fn compile(&self, format: &Format) -> Result<Matcher, String> {
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
        let mut matcher = Matcher::new(Ok(parser));
        // What is too large shows here, and not in the middle of an answer.
        matcher.compute_mask_or_eos().map_err(|error| {
            let mut told = words(error);
            if told.contains("NoExtension") {
                told = "no text fits it".to_owned();
            }
            told
        })?;
        Ok(matcher)
    }
}

/// Bounds of one grammar: no schema takes more than about a second to compile, a tenth of that for a
/// mask, or some tens of MB.
fn limits() -> ParserLimits {
    ParserLimits {
        max_lexer_states: 25_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// What a format is called and its text, within bounds.
fn text(format: &Format) -> Result<(&'static str, String), String> {
    let (kind, text) = match format {
        Format::JsonObject => ("json_object", String::new()),
        Format::JsonSchema { schema } => {
            if !shallow(schema, MAX_NESTING) {
                return Err(format!(
                    "json_schema: nested deeper than {MAX_NESTING} levels"
                ));
            }
            ("json_schema", schema.to_string())
        }
        Format::Regex(pattern) => ("regex", pattern.clone()),
        Format::Lark(grammar) => ("grammar", grammar.clone()),
    };
    match text.len() {
        length if length > MAX_SCHEMA_BYTES => Err(format!(
            "{kind}: {length} bytes, and at most {MAX_SCHEMA_BYTES} can be enforced"
        )),
        _ => Ok((kind, text)),
    }
}

/// Whether `value` has at most `levels` levels.
fn shallow(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels > 0 && items.iter().all(|item| shallow(item, levels - 1)),
        Value::Object(fields) => levels > 0 && fields.values().all(|f| shallow(f, levels - 1)),
        _ => true,
    }
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

/// llguidance's words without its marks.
fn words(error: anyhow::Error) -> String {
    let text = format!("{error:#}");
    let text = text.split("\n<").next().unwrap_or_default();
    text.trim().to_owned()
}

/// A text in the making whose shape is enforced.
pub(super) struct Shape {
    matcher: Matcher,
    end: u32,
}

impl Shape {
    /// The same shape from its beginning. Only for one that has taken in nothing.
    pub fn fresh(&self) -> Shape {
        Shape {
            matcher: self.matcher.deep_clone(),
            end: self.end,
        }
    }

    /// What may come; `ends` where the text may end.
    ///
    /// # Errors
    /// When the mask would take too long.
    pub fn mask(&mut self, ends: &[u32]) -> Result<Mask, String> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(words)?;
        let mut bits: Vec<u32> = allowed.into();
        let place = |id: u32| (id as usize / 32, 1u32 << (id % 32));
        let (word, bit) = place(self.end);
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
            self.matcher.consume_token(id).map_err(words)?;
            return Ok(false);
        }
        match self.matcher.is_stopped() || self.matcher.is_accepting().map_err(words)? {
            true => Ok(true),
            false => Err("the text ended before it was complete".to_owned()),
        }
    }
}
