//! A turn between wire and engine: which events come, what a stop string cuts off, whose
//! log-probabilities are whose, how failures are told.

use crate::scripted::{demo, marked};
use axum::http::StatusCode;
use gossamer::{
    engine::{
        Cancel, Engine, Event, Events, Failure, FinishReason, ModelInfo, Request, Stats, Usage,
    },
    grammar::{RuledTool, Rules},
    harmony::{Channel, Conversation, Message, Tool},
    server::{
        App, Served, Settings,
        error::ApiError,
        turn::{Ask, Finish, Outcome, TokenLogprob, TurnEvent, TurnStream},
    },
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// What an engine was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub tokens: Vec<u32>,
    pub seed: Option<u64>,
    pub max_tokens: Option<usize>,
    pub constrained: bool,
    pub cancel: Cancel,
}

type Tell = Box<dyn Fn(&Asked) -> Vec<Event> + Send + Sync>;

/// An engine that tells given events, whatever it is asked.
pub struct Told {
    info: ModelInfo,
    tell: Tell,
    pub asked: Mutex<Vec<Asked>>,
}

impl Told {
    pub fn new(tell: impl Fn(&Asked) -> Vec<Event> + Send + Sync + 'static) -> Arc<Told> {
        Arc::new(Told {
            info: ModelInfo {
                name: "told".into(),
                backend: "none".into(),
                vocab: demo().1.vocab_size(),
                context: 4096,
                slots: 2,
                deterministic: true,
            },
            tell: Box::new(tell),
            asked: Mutex::default(),
        })
    }

    /// One that answers `text`, control tokens by their names, and ends as told.
    pub fn text(text: &str, reason: FinishReason) -> Arc<Told> {
        let ids = marked(&demo().1, text);
        Told::new(move |asked| events(&ids, asked.tokens.len(), reason))
    }

    pub fn app(self: &Arc<Told>, settings: Settings) -> Arc<App> {
        let engine = self.clone();
        App::for_engine("told", engine, demo().1, settings).expect("a server")
    }

    async fn served(self: &Arc<Told>) -> Arc<Served> {
        let app = self.app(Settings::default());
        app.model(None).await.expect("a model")
    }

    async fn turn(self: &Arc<Told>, ask: Ask) -> TurnStream {
        let prepared = self.served().await.prepare(ask).await;
        prepared.expect("a turn").start(0)
    }
}

impl Engine for Told {
    fn submit(&self, request: Request) -> Events {
        let (sender, events) = Events::channel();
        let asked = Asked {
            tokens: request.tokens,
            seed: request.sampling.seed,
            max_tokens: request.max_tokens,
            constrained: request.constraint.is_some(),
            cancel: request.cancel,
        };
        for event in (self.tell)(&asked) {
            let _ = sender.send(event);
        }
        self.asked.lock().expect("the list").push(asked);
        events
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }
}

/// An answer of `ids`. Token `i` has log-probability `-i` and one rival.
pub fn events(ids: &[u32], prompt: usize, reason: FinishReason) -> Vec<Event> {
    let admitted = Event::Prefill {
        done: prompt,
        total: prompt,
        cached: 0,
        miss: None,
    };
    let tokens = ids.iter().enumerate().map(|(i, &id)| Event::Token {
        id,
        logprob: Some(-(i as f32)),
        top: vec![(id, -(i as f32)), (7, -99.0)],
    });
    let usage = Usage {
        prompt_tokens: prompt,
        generated_tokens: ids.len(),
        ..Usage::default()
    };
    [Event::Queued, admitted]
        .into_iter()
        .chain(tokens)
        .chain([Event::Finish { reason, usage }])
        .collect()
}

pub fn conversation(functions: &[&str]) -> Conversation {
    let tool = |name: &&str| Tool {
        name: name.to_string(),
        description: None,
        parameters: None,
    };
    Conversation {
        tools: functions.iter().map(tool).collect(),
        messages: vec![Message::user("Hi")],
        ..Conversation::default()
    }
}

async fn all(turn: &mut TurnStream) -> Vec<TurnEvent> {
    let mut events = Vec::new();
    while let Some(event) = turn.next().await {
        events.push(event);
    }
    events
}

/// The turn's text events by message, and how it ended.
fn told(events: &[TurnEvent]) -> (Vec<String>, Box<Outcome>) {
    let mut texts: Vec<String> = Vec::new();
    for event in events {
        match event {
            TurnEvent::Open { index, .. } => {
                assert_eq!(*index, texts.len());
                texts.push(String::new());
            }
            TurnEvent::Text { index, text, .. } => {
                assert_eq!(
                    *index + 1,
                    texts.len(),
                    "a message goes on after the next began"
                );
                texts[*index] += text;
            }
            _ => {}
        }
    }
    match events.last() {
        Some(TurnEvent::Done(outcome)) => (texts, outcome.clone()),
        other => panic!("the last event is {other:?}"),
    }
}

#[tokio::test]
async fn the_events_of_a_turn_with_reasoning_a_preamble_and_a_call() {
    let told = Told::text(
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>Wait<|end|>\
         <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        FinishReason::Stop,
    );
    let ask = Ask {
        conversation: conversation(&["f"]),
        ..Ask::default()
    };
    let mut turn = told.turn(ask).await;
    let mut events = all(&mut turn).await;
    let Some(TurnEvent::Done(outcome)) = events.pop() else {
        panic!("{events:?}");
    };
    let prompt = told.asked.lock().unwrap()[0].tokens.len();
    let progress = TurnEvent::Progress {
        done: prompt,
        total: prompt,
        cached: 0,
    };
    assert_eq!(events.remove(0), progress);
    let mut short = Vec::new();
    for event in events {
        match event {
            TurnEvent::Open {
                index,
                part,
                header,
            } => {
                assert_eq!(header.content, "");
                let channel = header.channel.map_or("-", Channel::as_str);
                short.push(format!("open {index} {part:?} {channel}"));
            }
            TurnEvent::Text { index, text, .. } => match short.last_mut() {
                Some(last) if last.starts_with(&format!("text {index} ")) => *last += &text,
                _ => short.push(format!("text {index} {text}")),
            },
            TurnEvent::Close { index } => short.push(format!("close {index}")),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        short,
        [
            "open 0 Reasoning analysis",
            "text 0 Hm.",
            "close 0",
            "open 1 Text commentary",
            "text 1 Wait",
            "close 1",
            "open 2 Call { name: \"f\" } commentary",
            "text 2 {}",
            "close 2"
        ]
    );
    assert_eq!(outcome.finish, Finish::ToolCalls);
    assert_eq!(outcome.turn.repairs.total(), 0);
    assert_eq!(outcome.usage.prompt_tokens, prompt);
    assert_eq!(outcome.reasoning_tokens, marked(&demo().1, "Hm.").len());
    assert_eq!(turn.next().await, None);
}

#[tokio::test]
async fn a_stop_string_ends_the_final_text_wherever_tokens_are_cut() {
    // Byte tokens, so that every stop string is split over tokens.
    let (_, tok) = demo();
    let bytes = |text: &str| -> Vec<u32> {
        let byte = |b| (0..tok.vocab_size() as u32).find(|&id| tok.token_bytes(id) == [b]);
        text.bytes()
            .map(|b| byte(b).expect("a byte's token"))
            .collect()
    };
    let header = marked(
        &tok,
        "<|channel|>analysis<|message|>say STOP<|end|><|start|>assistant<|channel|>final<|message|>",
    );
    let text = "Zürich: SToP, ST STST\u{1F9F5}OP and more";
    let mut ids = header.clone();
    ids.extend(bytes(text));
    ids.extend(tok.special("<|return|>"));
    for (stops, stopped_by) in [
        (vec!["STOP", "ST\u{1F9F5}OP"], Some("ST\u{1F9F5}OP")),
        (vec!["more", "\u{1F9F5}"], Some("\u{1F9F5}")),
        (vec!["S"], Some("S")),
        (vec!["STOP"], None),
    ] {
        let ids = ids.clone();
        let said = stopped_by.map_or(text, |stop| text.split_once(stop).expect("it is there").0);
        let tokens = match stopped_by {
            Some(stop) => header.len() + said.len() + stop.len(),
            None => ids.len(),
        };
        let told_ids = ids.clone();
        let engine =
            Told::new(move |asked| events(&told_ids, asked.tokens.len(), FinishReason::Stop));
        let ask = Ask {
            conversation: conversation(&[]),
            stop: stops.iter().map(|s| s.to_string()).collect(),
            logprobs: Some(1),
            ..Ask::default()
        };
        let mut turn = engine.turn(ask).await;
        let events = all(&mut turn).await;
        let mut sent = String::new();
        for event in &events {
            if let TurnEvent::Text { index: 1, text, .. } = event {
                sent += text;
                assert!(
                    said.starts_with(sent.as_str()),
                    "{sent:?} is more than {said:?}"
                );
            }
        }
        let (texts, outcome) = told(&events);
        assert_eq!(texts, ["say STOP", said]);
        assert_eq!(outcome.stopped_by.as_deref(), stopped_by);
        assert_eq!(outcome.finish, Finish::Stop);
        assert_eq!(outcome.usage.generated_tokens, tokens);
        assert_eq!(outcome.turn.answer(), said);
        let cancelled = engine.asked.lock().unwrap()[0].cancel.is_cancelled();
        assert_eq!(cancelled, stopped_by.is_some());
        let spelled: Vec<u8> = logprobs(&events, 1).flat_map(|t| t.bytes.clone()).collect();
        assert_eq!(spelled, said.as_bytes());
    }
}

fn logprobs(events: &[TurnEvent], message: usize) -> impl Iterator<Item = &TokenLogprob> {
    events.iter().flat_map(move |event| match event {
        TurnEvent::Text {
            index, logprobs, ..
        } if *index == message => logprobs.as_slice(),
        _ => &[],
    })
}

#[tokio::test]
async fn each_text_comes_with_its_own_tokens_and_headers_with_none() {
    let (_, tok) = demo();
    for text in [
        "<|channel|>analysis<|message|>Hm, a🧵b.<|end|><|start|>assistant<|channel|>final<|message|>Yes 🪢 é<|return|>",
        // Malformed: held back until it is clear that no header comes.
        "Yes, bare text",
        "<|channel|>final {\"answer\":1}<|return|>",
        "<|channel|>analysis<|message|>r<|end|>{\"country\":\"France\"}",
        "<|channel|>final<|message|>a <|channel|> b<|message|>c<|return|>",
        "<|start|><|start|>assistant<|channel|>final<|message|>ok<|return|>",
    ] {
        let ids = marked(&tok, text);
        let given = ids.clone();
        let engine = Told::new(move |asked| events(&given, asked.tokens.len(), FinishReason::Stop));
        let ask = Ask {
            conversation: conversation(&[]),
            logprobs: Some(2),
            ..Ask::default()
        };
        let mut turn = engine.turn(ask).await;
        let events = all(&mut turn).await;
        let (texts, _) = told(&events);
        assert!(!texts.is_empty(), "{text}");
        let mut last = -1.0;
        for (index, said) in texts.iter().enumerate() {
            let mut spelled = Vec::new();
            for token in logprobs(&events, index) {
                // In order, none twice, each with its own figure.
                let place = -token.logprob;
                assert!(place > last, "{text}: {place} after {last}");
                last = place;
                assert_eq!(token.id, ids[place as usize]);
                assert_eq!(token.bytes, tok.token_bytes(token.id));
                assert_eq!(token.top.len(), 2);
                spelled.extend_from_slice(&token.bytes);
            }
            let spelled = String::from_utf8_lossy(&spelled).into_owned();
            // A token that a header and a text share is the header's.
            assert!(
                said == &spelled || said.ends_with(&spelled) && said.len() < spelled.len() + 8,
                "{text}: {said:?} has the tokens of {spelled:?}"
            );
        }
    }
}

#[tokio::test]
async fn how_turns_end() {
    let call = |name: &str| {
        format!("<|start|>assistant<|channel|>commentary to=functions.{name}<|message|>{{}}<|end|>")
    };
    let two = format!(
        "<|channel|>analysis<|message|>x<|end|>{}{}",
        call("f"),
        call("f")
    );
    let stopped = format!("{two}<|start|>assistant<|channel|>final<|message|>One END two");
    let cases: [(&str, FinishReason, bool, Finish, &[&str]); 9] = [
        (
            "<|channel|>final<|message|>Yes<|return|>",
            FinishReason::Stop,
            true,
            Finish::Stop,
            &["Yes"],
        ),
        (
            "<|channel|>final<|message|>Yes",
            FinishReason::Length,
            true,
            Finish::Length,
            &["Yes"],
        ),
        (
            "<|channel|>analysis<|message|>Hm",
            FinishReason::Length,
            true,
            Finish::Length,
            &["Hm"],
        ),
        (
            "<|channel|>analysis<|message|>Hm<|return|>",
            FinishReason::Stop,
            true,
            Finish::Stop,
            &["Hm"],
        ),
        ("<|return|>", FinishReason::Stop, true, Finish::Stop, &[]),
        (
            &two,
            FinishReason::Stop,
            true,
            Finish::ToolCalls,
            &["x", "{}", "{}"],
        ),
        (
            &two,
            FinishReason::Stop,
            false,
            Finish::ToolCalls,
            &["x", "{}"],
        ),
        // Whoever called waits for an answer, whatever came after the calls.
        (
            &stopped,
            FinishReason::Length,
            true,
            Finish::ToolCalls,
            &["x", "{}", "{}", "One "],
        ),
        (
            "<|channel|>final<|message|>Ye",
            FinishReason::Cancelled,
            true,
            Finish::Cancelled,
            &["Ye"],
        ),
    ];
    for (text, reason, parallel, finish, texts) in cases {
        let engine = Told::text(text, reason);
        let ask = Ask {
            conversation: conversation(&["f"]),
            rules: Rules {
                tools: vec![RuledTool {
                    name: "f".into(),
                    strict: None,
                }],
                parallel,
                ..Rules::default()
            },
            stop: vec!["END".into()],
            ..Ask::default()
        };
        let mut turn = engine.turn(ask).await;
        let (said, outcome) = told(&all(&mut turn).await);
        assert_eq!(said, texts, "{text}");
        assert_eq!(outcome.finish, finish, "{text}");
        let messages = outcome.turn.messages.iter().map(|m| m.content.as_str());
        assert_eq!(messages.collect::<Vec<_>>(), texts, "{text}");
    }
}

#[tokio::test]
async fn failures_have_their_status_before_admission_and_are_the_last_event_after() {
    let busy = Failure::Busy {
        waiting: 3,
        retry_after: Duration::from_secs(2),
    };
    let long = Failure::ContextLength {
        prompt: 9000,
        context: 4096,
    };
    for (failure, status, code) in [
        (Failure::Invalid("no".into()), 400, "invalid_value"),
        (long, 400, "context_length_exceeded"),
        (busy, 429, "rate_limit_exceeded"),
        (Failure::Stopped, 503, "server_shutting_down"),
        (Failure::Broken("oh".into()), 500, "internal_error"),
    ] {
        let check = |error: &ApiError| {
            assert_eq!(error.status, StatusCode::from_u16(status).unwrap());
            assert_eq!(error.code, Some(code));
        };
        let event = Event::Error(failure);
        let early = event.clone();
        let engine = Told::new(move |_| vec![Event::Queued, early.clone()]);
        let ask = || Ask {
            conversation: conversation(&[]),
            ..Ask::default()
        };
        let mut turn = engine.turn(ask()).await;
        check(&turn.admitted().await.expect_err("a failure"));
        let last = turn.next().await;
        assert!(matches!(last, Some(TurnEvent::Failed(_))), "{last:?}");
        assert_eq!(turn.next().await, None);

        let ids = marked(&demo().1, "<|channel|>final<|message|>Yes");
        let engine = Told::new(move |asked| {
            let mut events = events(&ids, asked.tokens.len(), FinishReason::Stop);
            events.pop();
            events.push(event.clone());
            events
        });
        let mut turn = engine.turn(ask()).await;
        turn.admitted().await.expect("it was admitted");
        let events = all(&mut turn).await;
        let said = events.iter().filter_map(|event| match event {
            TurnEvent::Text { text, .. } => Some(text.as_str()),
            _ => None,
        });
        assert_eq!(said.collect::<String>(), "Yes");
        match events.last() {
            Some(TurnEvent::Failed(error)) => check(error),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_never_reaches_the_engine() {
    let engine = Told::new(|_| panic!("it was asked"));
    let mut conversation = conversation(&[]);
    conversation
        .messages
        .push(Message::user("word ".repeat(5000)));
    let ask = Ask {
        conversation,
        ..Ask::default()
    };
    let served = engine.served().await;
    let error = served.prepare(ask).await.map(drop);
    let error = error.expect_err("it does not fit");
    assert_eq!(error.code, Some("context_length_exceeded"));
    assert!(error.message.contains("4096"), "{}", error.message);
}

#[tokio::test]
async fn turns_of_one_prompt_draw_with_seeds_of_their_own() {
    let engine = Told::text(
        "<|channel|>final<|message|>Yes<|return|>",
        FinishReason::Stop,
    );
    let mut ask = Ask {
        conversation: conversation(&[]),
        max_tokens: Some(9),
        ..Ask::default()
    };
    ask.sampling.seed = Some(u64::MAX);
    let prepared = engine.served().await.prepare(ask).await.expect("a turn");
    let _turns = [0, 1, 2].map(|choice| prepared.start(choice));
    let asked = engine.asked.lock().unwrap();
    let seeds: Vec<_> = asked.iter().map(|a| a.seed).collect();
    assert_eq!(seeds, [Some(u64::MAX), Some(0), Some(1)]);
    assert!(
        asked
            .iter()
            .all(|a| a.tokens == asked[0].tokens && a.max_tokens == Some(9))
    );
}
