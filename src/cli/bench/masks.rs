//! What a mask costs: an answer goes token by token through the grammar that it fits, over o200k.

use crate::{
    grammar::{Format, Grammars},
    sampler::MaskSource as _,
    tokenizer::Vocabulary,
};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Times of the masks of one text, over o200k.
pub struct MaskTimes {
    name: &'static str,
    compile: Duration,
    /// One for each token, ascending.
    masks: Vec<Duration>,
}

/// What enforcing a shape costs, a token of an answer at a time.
pub fn measure() -> Result<(Duration, Vec<MaskTimes>)> {
    let tokenizer = Arc::new(Vocabulary::o200k_harmony()?.tokenizer()?);
    let started = Instant::now();
    let grammars = Grammars::new(tokenizer.clone());
    grammars.warm();
    let build = started.elapsed();
    let schema: Value = serde_json::from_str(SCHEMA)?;
    let shapes = [
        ("JSON schema", Format::JsonSchema { schema }, ANSWER),
        ("any JSON object", Format::JsonObject, ANSWER),
        ("regex", Format::Regex(PATTERN.to_owned()), PATTERN_ANSWER),
    ];
    let mut times = Vec::new();
    for (name, format, answer) in shapes {
        let started = Instant::now();
        let first = grammars.raw(&format)?;
        let compile = started.elapsed();
        drop(first);
        let mut source = grammars.raw(&format)?;
        let mut masks = Vec::new();
        for id in tokenizer.encode(answer) {
            let started = Instant::now();
            let mask = source.mask().map_err(anyhow::Error::msg)?;
            masks.push(started.elapsed());
            ensure!(mask.allows(id), "{name}: its own answer does not fit");
            source.accept(id).map_err(anyhow::Error::msg)?;
        }
        masks.sort_unstable();
        times.push(MaskTimes {
            name,
            compile,
            masks,
        });
    }
    Ok((build, times))
}

impl MaskTimes {
    fn mean(&self) -> Duration {
        let sum: Duration = self.masks.iter().sum();
        sum / self.masks.len().max(1) as u32
    }

    /// The time that so many in a hundred stay below.
    fn percentile(&self, percent: usize) -> Duration {
        let last = self.masks.len().saturating_sub(1);
        let at = self.masks.get(last * percent / 100);
        at.copied().unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        json!({
            "name": self.name,
            "compile_s": self.compile.as_secs_f64(),
            "tokens": self.masks.len(),
            "mean_s": self.mean().as_secs_f64(),
            "p95_s": self.percentile(95).as_secs_f64(),
            "max_s": self.percentile(100).as_secs_f64(),
        })
    }

    pub fn line(&self) -> String {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        format!(
            "masks: {:.0} us a token, p95 {:.0}, max {:.0}, {} ({} tokens), compiled in {:.1} ms",
            micros(self.mean()),
            micros(self.percentile(95)),
            micros(self.percentile(100)),
            self.name,
            self.masks.len(),
            micros(self.compile) / 1e3
        )
    }
}

/// A schema of the kinds that programs ask for.
const SCHEMA: &str = r##"{"type":"object","properties":{
  "title":{"type":"string"},"summary":{"type":"string","maxLength":2000},"language":{"enum":["en","de","fr","ja","other"]},
  "published":{"type":"string","format":"date"},"rating":{"type":"number","minimum":0,"maximum":5},
  "authors":{"type":"array","items":{"$ref":"#/$defs/person"},"minItems":1,"maxItems":20},
  "tags":{"type":"array","items":{"type":"string","pattern":"^[a-z][a-z0-9-]{0,30}$"}},
  "contact":{"anyOf":[{"$ref":"#/$defs/person"},{"type":"null"}]}},
 "required":["title","summary","language","published","rating","authors","tags","contact"],"additionalProperties":false,
 "$defs":{"person":{"type":"object","properties":{"name":{"type":"string"},"email":{"type":"string","format":"email"},
  "age":{"anyOf":[{"type":"integer","minimum":0,"maximum":150},{"type":"null"}]}},"required":["name","email","age"],"additionalProperties":false}}}"##;

/// What fits it.
const ANSWER: &str = r##"{"title": "Sea ice and the light beneath it", "summary": "Over three winters we measured how much light reaches the water under sea ice of different age.\nThin ice lets through up to 12 % of it, old ice less than 1 %; snow on top matters more than the ice itself. \"Windows\" of bare ice, although they cover only a twentieth of the area, admit half of the light, and the algae below follow them within days. We give a simple formula, compare it with two models (one French, one Japanese: 海氷モデル), and find that both take the snow for too bright.", "language": "en", "published": "2026-03-09", "rating": 4.25, "authors": [{"name": "Ingrid Sørensen", "email": "ingrid.sorensen@polar.example.org", "age": 47}, {"name": "Kenji Watanabe", "email": "kw@ice.example.jp", "age": null}, {"name": "Zoë O'Brien-Nakamura", "email": "z.obrien@uni.example.edu", "age": 31}], "tags": ["sea-ice", "light", "algae", "snow", "arctic-winter-2025"], "contact": {"name": "Ingrid Sørensen", "email": "ingrid.sorensen@polar.example.org", "age": 47}}"##;

const PATTERN: &str = r"([A-Z][a-z]+ [0-9]{1,3}(, )?){1,20}\.";
const PATTERN_ANSWER: &str = "Apples 12, Pears 7, Cherries 250, Plums 3, Quinces 1, Medlars 16.";
