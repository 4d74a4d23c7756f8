//! A model that means what it says: the demo model answers held-out questions the same with its schema
//! enforced as without, wherever the free answer fitted, and fits where it did not.

use super::{common, judge};
use flate2::read::GzDecoder;
use gossamer::{
    backend::{Backend, Batch, LogitRows},
    gguf::Gguf,
    grammar::{Constraint, Format, Grammars, RuledTool, Rules},
    harmony::{Conversation, Parser, Turn},
    sampler::{Mask, MaskSource, Sampler, Sampling},
    tokenizer::Tokenizer,
    weights::Model,
};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{BufRead, BufReader},
    sync::Arc,
};

struct Demo {
    tok: Arc<Tokenizer>,
    grammars: Grammars,
    backend: Box<dyn Backend>,
}

impl Demo {
    fn open() -> Demo {
        let gguf =
            Gguf::open(&common::root().join("models/demo/demo.gguf")).expect("the demo model");
        let tok = Arc::new(Tokenizer::from_gguf(&gguf).expect("its vocabulary"));
        let model = Arc::new(Model::load(&gguf).expect("its weights"));
        Demo {
            grammars: Grammars::new(tok.clone()),
            tok,
            backend: common::open(&model, "cpu", 1, 2048),
        }
    }

    /// The greedy answer to `conversation`.
    fn answer(
        &mut self,
        conversation: &Conversation,
        mut constraint: Option<Box<Constraint>>,
    ) -> (Vec<u32>, Turn) {
        let tok = &self.tok;
        let sampling = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(&sampling, tok.vocab_size(), tok.padding_ids(), None, &[]);
        let mut tokens = conversation.render(tok).expect("a prompt");
        let mut parser = Parser::new(tok.clone(), conversation.tool_names()).expect("a parser");
        let mut start = 0;
        let mut answer = Vec::new();
        while answer.len() < 400 {
            let batch = Batch {
                segments: vec![common::segment(start, &tokens, LogitRows::Last)],
            };
            self.backend.forward(&batch).expect("logits");
            start += tokens.len();
            let mask = match &mut constraint {
                Some(source) => source.mask().expect("a mask"),
                None => Mask::Any,
            };
            let id = sampler
                .sample(self.backend.logits(0), &mask)
                .expect("a token")
                .id;
            if let Some(source) = &mut constraint {
                source.accept(id).expect("what the mask allows");
            }
            parser.push(id);
            answer.push(id);
            if tok.stop_ids().contains(&id) {
                break;
            }
            tokens = vec![id];
        }
        (answer, parser.finish().1)
    }
}

/// Every third held-out conversation of `kind`.
fn conversations(kind: &str) -> Vec<Conversation> {
    let file = File::open(common::root().join("models/demo/heldout.jsonl.gz"))
        .expect("the held-out items");
    let items = BufReader::new(GzDecoder::new(file)).lines();
    let items =
        items.map(|line| serde_json::from_str::<Value>(&line.expect("text")).expect("JSON"));
    let items = items.filter(|item| item["kind"] == kind).step_by(3);
    items
        .map(|item| serde_json::from_value(item["conversation"].clone()).expect("a conversation"))
        .collect()
}

#[test]
fn an_enforced_schema_changes_no_answer_that_fits() {
    let mut demo = Demo::open();
    let (mut same, mut cases) = (0, Vec::new());
    let asked = conversations("json_schema");
    for conversation in &asked {
        let schema = conversation.response_formats[0].schema.clone();
        let rules = Rules {
            format: Some(Format::JsonSchema {
                schema: schema.clone(),
            }),
            ..Rules::default()
        };
        let (free, _) = demo.answer(conversation, None);
        let constraint = demo
            .grammars
            .constrain(&rules, conversation)
            .expect("a schema");
        let (bound, turn) = demo.answer(conversation, constraint);
        cases.push(json!({"schema": schema, "text": turn.answer()}));
        same += usize::from(free == bound);
    }
    println!("{same} of {} answers the same", asked.len());
    assert!(
        asked.len() >= 30 && same * 10 >= asked.len() * 9,
        "{same} of {}",
        asked.len()
    );
    judge(&cases);
}

#[test]
fn strict_tools_change_no_call_that_fits() {
    let mut demo = Demo::open();
    let (mut same, mut cases) = (0, Vec::new());
    let asked = conversations("tool_call");
    for conversation in &asked {
        let strict = |tool: &gossamer::harmony::Tool| RuledTool {
            name: tool.name.clone(),
            strict: Some(
                tool.parameters
                    .clone()
                    .unwrap_or_else(|| json!({"type": "object"})),
            ),
        };
        let rules = Rules {
            tools: conversation.tools.iter().map(strict).collect(),
            parallel: false,
            ..Rules::default()
        };
        let (free, _) = demo.answer(conversation, None);
        let constraint = demo
            .grammars
            .constrain(&rules, conversation)
            .expect("schemas");
        let (bound, turn) = demo.answer(conversation, constraint);
        same += usize::from(free == bound);
        assert_eq!(turn.repairs.total(), 0);
        for call in turn.calls() {
            let tool = rules
                .tools
                .iter()
                .find(|tool| tool.name == call.name)
                .expect("a declared function");
            cases.push(json!({"schema": tool.strict, "text": call.arguments}));
        }
    }
    println!("{same} of {} calls the same", asked.len());
    assert!(
        asked.len() >= 30 && same * 10 >= asked.len() * 9,
        "{same} of {}",
        asked.len()
    );
    assert!(cases.len() >= asked.len() * 9 / 10);
    judge(&cases);
}

/// The same question under a schema of another kind: the answer is bent to it.
#[test]
fn a_schema_of_another_kind_bends_the_answer() {
    let mut demo = Demo::open();
    let conversation = Conversation {
        messages: vec![gossamer::harmony::Message::user("What is 17 + 25?")],
        date: Some("2026-01-01".to_owned()),
        ..Conversation::default()
    };
    let schema = json!({"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"], "additionalProperties": false});
    let rules = Rules {
        format: Some(Format::JsonSchema {
            schema: schema.clone(),
        }),
        ..Rules::default()
    };
    let constraint = demo
        .grammars
        .constrain(&rules, &conversation)
        .expect("a schema");
    let (free, plain) = demo.answer(&conversation, None);
    let (bound, turn) = demo.answer(&conversation, constraint);
    assert_eq!(plain.answer(), "42");
    judge(&[json!({"schema": schema, "text": turn.answer()})]);
    // The analysis is the same, token for token.
    let end = demo.tok.special("<|end|>").expect("a control token");
    let thought =
        |ids: &[u32]| ids[..=ids.iter().position(|&id| id == end).expect("an end")].to_vec();
    assert_eq!(thought(&free), thought(&bound));
    assert_eq!(plain.reasoning(), turn.reasoning());
}
