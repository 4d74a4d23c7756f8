//! An engine whose every event the test sends itself.

use gossamer::{
    cli::model::Common,
    engine::{Engine, Event, EventSender, Events, ModelInfo, Request, Stats, Usage},
    server::models::{Running, Source},
    tokenizer::Tokenizer,
};
use std::sync::{Arc, OnceLock};
use tokio::sync::{Mutex, mpsc};

/// The engine; what it is asked arrives at [`Puppet::next`].
pub struct Puppet {
    info: ModelInfo,
    submit: mpsc::UnboundedSender<Asked>,
    asked: Mutex<mpsc::UnboundedReceiver<Asked>>,
    /// What it tells of itself.
    pub stats: std::sync::Mutex<Stats>,
}

/// A request, and where its events go.
pub struct Asked {
    pub request: Request,
    pub events: EventSender,
}

/// The demo model's vocabulary.
pub fn tokenizer() -> Arc<Tokenizer> {
    static DEMO: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    let demo = DEMO.get_or_init(|| {
        let demo = Common::default().open_checkpoint().expect("the demo model");
        Arc::new(demo.tokenizer().expect("its vocabulary"))
    });
    demo.clone()
}

impl Puppet {
    pub fn new() -> Arc<Puppet> {
        let (submit, asked) = mpsc::unbounded_channel();
        Arc::new(Puppet {
            info: ModelInfo {
                name: "puppet".into(),
                backend: "strings".into(),
                vocab: tokenizer().vocab_size(),
                context: 1000,
                slots: 4,
                deterministic: true,
            },
            submit,
            asked: Mutex::new(asked),
            stats: std::sync::Mutex::default(),
        })
    }

    /// The next request.
    pub async fn next(&self) -> Asked {
        let asked = self.asked.lock().await.recv().await;
        asked.expect("the puppet is here, so its sender is")
    }

    /// A model of this name that the puppet answers.
    pub fn source(self: &Arc<Puppet>, name: &str) -> Source {
        let (engine, tokenizer) = (self.clone(), tokenizer());
        Source::loaded(name, Running { engine, tokenizer })
    }
}

impl Engine for Puppet {
    fn submit(&self, request: Request) -> Events {
        let (events, stream) = Events::channel();
        let _ = self.submit.send(Asked { request, events });
        stream
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn stats(&self) -> Stats {
        self.stats.lock().expect("no panic").clone()
    }
}

impl Asked {
    /// The prompt is done.
    pub fn admit(&self) {
        let total = self.request.tokens.len();
        self.send(Event::Prefill {
            done: total,
            total,
            cached: 0,
            miss: None,
        });
    }

    /// The tokens of `text` come.
    pub fn say(&self, text: &str) {
        for id in tokenizer().encode(text) {
            self.send(Event::Token {
                id,
                logprob: None,
                top: Vec::new(),
            });
        }
    }

    /// The answer ends.
    pub fn finish(&self, reason: gossamer::engine::FinishReason) {
        let usage = Usage {
            prompt_tokens: self.request.tokens.len(),
            ..Usage::default()
        };
        self.send(Event::Finish { reason, usage });
    }

    pub fn send(&self, event: Event) {
        self.events.send(event).expect("somebody listens");
    }
}
