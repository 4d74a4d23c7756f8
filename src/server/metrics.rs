//! Counters and gauges for Prometheus, by vLLM's names where vLLM has one, so that its dashboards
//! work.
//!
//! Each server has its own recorder, none is global. Labels have few values: models by their true
//! names, routes as written in the router, never what a client sent.

use crate::{
    backend::KV_BLOCK,
    engine::{Event, Failure, FinishReason, Stats},
};
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use rustc_hash::FxHashMap;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

const TTFT: &str = "vllm:time_to_first_token_seconds";
const INTER_TOKEN: &str = "vllm:inter_token_latency_seconds";
const WHOLE: &str = "vllm:e2e_request_latency_seconds";
const QUEUE: &str = "vllm:request_queue_time_seconds";

/// Name and meaning of every metric.
const COUNTERS: [(&str, &str); 11] = [
    ("vllm:prompt_tokens_total", "Tokens of admitted prompts."),
    ("vllm:generation_tokens_total", "Tokens generated."),
    (
        "vllm:request_success_total",
        "Requests that came to their end.",
    ),
    (
        "vllm:prefix_cache_queries_total",
        "Prompt tokens looked for in the prefix cache.",
    ),
    (
        "vllm:prefix_cache_hits_total",
        "Prompt tokens that the prefix cache saved.",
    ),
    (
        "vllm:num_preemptions_total",
        "Requests that gave their room to others and were resumed.",
    ),
    (
        "gossamer_request_failures_total",
        "Requests that failed in the engine.",
    ),
    (
        "gossamer_harmony_repairs_total",
        "Repairs of malformed Harmony.",
    ),
    ("gossamer_engine_steps_total", "Forward passes."),
    ("gossamer_http_requests_total", "HTTP requests answered."),
    (
        "gossamer_http_panics_total",
        "Requests whose handler failed.",
    ),
];
const GAUGES: [(&str, &str); 12] = [
    ("vllm:num_requests_running", "Requests that run."),
    ("vllm:num_requests_waiting", "Requests that wait."),
    (
        "vllm:kv_cache_usage_perc",
        "Share of the KV cache that live requests hold, 0 to 1.",
    ),
    ("vllm:cache_config_info", "The KV cache's shape, in labels."),
    ("gossamer_kv_blocks", "Blocks of the KV cache."),
    (
        "gossamer_kv_blocks_in_use",
        "KV blocks that live requests hold.",
    ),
    ("gossamer_kv_blocks_cached", "KV blocks kept for reuse."),
    (
        "gossamer_snapshots",
        "Places for snapshots of the sliding windows.",
    ),
    ("gossamer_snapshots_used", "Snapshots kept."),
    ("gossamer_batch_tokens", "Rows of the last forward pass."),
    ("gossamer_model_loaded", "1 while the model is in memory."),
    (
        "gossamer_http_requests_in_flight",
        "HTTP requests whose answers are not complete.",
    ),
];
const HISTOGRAMS: [(&str, &str, &[f64]); 4] = [
    (
        TTFT,
        "From a request's arrival to its first token.",
        &[
            0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
            10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
        ],
    ),
    (
        INTER_TOKEN,
        "From one token to the next.",
        &[
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
            1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
        ],
    ),
    (WHOLE, "From a request's arrival to its end.", LONG),
    (
        QUEUE,
        "From a request's arrival to its first piece of the prompt.",
        LONG,
    ),
];
const LONG: &[f64] = &[
    0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// The server's counters; clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    models: Mutex<FxHashMap<String, Arc<Model>>>,
    in_flight: Gauge,
    panics: Counter,
}

/// What is counted for each model.
struct Model {
    prompt: Counter,
    generated: Counter,
    cache_queries: Counter,
    cache_hits: Counter,
    stop: Counter,
    length: Counter,
    abort: Counter,
    ttft: Histogram,
    inter_token: Histogram,
    whole: Histogram,
    queue: Histogram,
}

impl Metrics {
    pub(super) fn new() -> Metrics {
        let mut builder = PrometheusBuilder::new();
        for (name, _, buckets) in HISTOGRAMS {
            let with = builder.set_buckets_for_metric(Matcher::Full(name.into()), buckets);
            // Only a list without buckets is refused, and a test knows that none is empty.
            builder = with.unwrap_or_default();
        }
        let recorder = builder.build_recorder();
        for (name, meaning) in COUNTERS {
            recorder.describe_counter(name.into(), None, meaning.into());
        }
        for (name, meaning) in GAUGES {
            recorder.describe_gauge(name.into(), None, meaning.into());
        }
        for (name, meaning, _) in HISTOGRAMS {
            recorder.describe_histogram(name.into(), Some(Unit::Seconds), meaning.into());
        }
        let gauge = |name| recorder.register_gauge(&Key::from_name(name), &METADATA);
        let in_flight = gauge("gossamer_http_requests_in_flight");
        let panics = Key::from_name("gossamer_http_panics_total");
        Metrics(Arc::new(Inner {
            handle: recorder.handle(),
            models: Mutex::default(),
            in_flight,
            panics: recorder.register_counter(&panics, &METADATA),
            recorder,
        }))
    }

    /// Counts repairs of malformed Harmony of one kind in an answer of `model`.
    pub fn harmony_repairs(&self, model: &str, kind: &str, count: usize) {
        let labels = [("model_name", model), ("kind", kind)];
        let counter = self.counter("gossamer_harmony_repairs_total", &labels);
        counter.increment(count as u64);
    }

    /// Counts an HTTP request. `route` is a path as the router has it.
    pub(super) fn http_request(&self, method: &'static str, route: &str, status: u16) {
        let status = status.to_string();
        let labels = [
            ("method", method),
            ("route", route),
            ("status", status.as_str()),
        ];
        let counter = self.counter("gossamer_http_requests_total", &labels);
        counter.increment(1);
    }

    /// HTTP requests whose answers are not complete.
    pub(super) fn in_flight(&self) -> &Gauge {
        &self.0.in_flight
    }

    /// Counts a handler that panicked.
    pub(super) fn panicked(&self) {
        self.0.panics.increment(1);
    }

    /// All of it in Prometheus' text format. `models`: name, whether it is loaded, what it tells.
    pub(super) fn render(&self, models: &[(String, bool, Stats)]) -> String {
        for (name, loaded, stats) in models {
            self.model(name);
            self.note_stats(name, *loaded, stats);
        }
        self.0.handle.render()
    }

    /// Folds what histograms have collected; without it they grow until they are read.
    pub(super) fn upkeep(&self) {
        self.0.handle.run_upkeep();
    }

    fn note_stats(&self, name: &str, loaded: bool, stats: &Stats) {
        let model = [("model_name", name)];
        let used = stats.kv_blocks_in_use as f64 / stats.kv_blocks.max(1) as f64;
        for (name, value) in [
            ("vllm:num_requests_running", stats.running as f64),
            ("vllm:num_requests_waiting", stats.waiting as f64),
            ("vllm:kv_cache_usage_perc", used),
            ("gossamer_kv_blocks", stats.kv_blocks as f64),
            ("gossamer_kv_blocks_in_use", stats.kv_blocks_in_use as f64),
            ("gossamer_kv_blocks_cached", stats.kv_blocks_cached as f64),
            ("gossamer_snapshots", stats.snapshots as f64),
            ("gossamer_snapshots_used", stats.snapshots_used as f64),
            ("gossamer_batch_tokens", stats.batch_tokens as f64),
            ("gossamer_model_loaded", f64::from(u8::from(loaded))),
        ] {
            self.gauge(name, &model).set(value);
        }
        for (name, value) in [
            ("vllm:num_preemptions_total", stats.preemptions),
            ("gossamer_engine_steps_total", stats.steps),
        ] {
            self.counter(name, &model).absolute(value);
        }
        if !loaded {
            return;
        }
        let block = KV_BLOCK.to_string();
        let blocks = stats.kv_blocks.to_string();
        let labels = [
            model[0],
            ("block_size", block.as_str()),
            ("num_gpu_blocks", blocks.as_str()),
        ];
        self.gauge("vllm:cache_config_info", &labels).set(1.0);
    }

    fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.0
            .recorder
            .register_counter(&key(name, labels), &METADATA)
    }

    fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.0
            .recorder
            .register_gauge(&key(name, labels), &METADATA)
    }

    /// The counters of `name`, all there from the first call on.
    fn model(&self, name: &str) -> Arc<Model> {
        let mut models = self.0.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = models.get(name) {
            return model.clone();
        }
        let labels = [("model_name", name)];
        let ended = |reason| {
            let labels = [labels[0], ("finished_reason", reason)];
            self.counter("vllm:request_success_total", &labels)
        };
        let histogram = |name| {
            let key = key(name, &labels);
            self.0.recorder.register_histogram(&key, &METADATA)
        };
        let model = Arc::new(Model {
            prompt: self.counter("vllm:prompt_tokens_total", &labels),
            generated: self.counter("vllm:generation_tokens_total", &labels),
            cache_queries: self.counter("vllm:prefix_cache_queries_total", &labels),
            cache_hits: self.counter("vllm:prefix_cache_hits_total", &labels),
            stop: ended("stop"),
            length: ended("length"),
            abort: ended("abort"),
            ttft: histogram(TTFT),
            inter_token: histogram(INTER_TOKEN),
            whole: histogram(WHOLE),
            queue: histogram(QUEUE),
        });
        models.insert(name.to_owned(), model.clone());
        model
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let label = |&(key, value): &(&'static str, &str)| Label::new(key, value.to_owned());
    Key::from_parts(name, labels.iter().map(label).collect::<Vec<_>>())
}

/// Times and counts one request of the engine, from its start to its drop.
pub(super) struct Timer {
    metrics: Metrics,
    name: String,
    model: Arc<Model>,
    started: Instant,
    last_token: Option<Instant>,
    admitted: bool,
    ended: bool,
}

impl Timer {
    /// A request of `model` arrives.
    pub fn start(metrics: &Metrics, model: &str) -> Timer {
        Timer {
            metrics: metrics.clone(),
            name: model.to_owned(),
            model: metrics.model(model),
            started: Instant::now(),
            last_token: None,
            admitted: false,
            ended: false,
        }
    }

    /// Something happens to it.
    pub fn note(&mut self, event: &Event) {
        let model = &self.model;
        match event {
            Event::Queued | Event::PromptLogprobs(_) => {}
            Event::Prefill { total, cached, .. } => {
                if !std::mem::replace(&mut self.admitted, true) {
                    model.queue.record(self.started.elapsed());
                    model.prompt.increment(*total as u64);
                    model.cache_queries.increment(*total as u64);
                    model.cache_hits.increment(*cached as u64);
                }
            }
            Event::Token { .. } => {
                let now = Instant::now();
                match self.last_token.replace(now) {
                    None => model.ttft.record(now - self.started),
                    Some(last) => model.inter_token.record(now - last),
                }
                model.generated.increment(1);
            }
            Event::Finish { reason, .. } => {
                self.ended = true;
                model.whole.record(self.started.elapsed());
                match reason {
                    FinishReason::Stop => model.stop.increment(1),
                    FinishReason::Length => model.length.increment(1),
                    FinishReason::Cancelled => model.abort.increment(1),
                }
            }
            Event::Error(failure) => {
                self.ended = true;
                let reason = match failure {
                    Failure::Invalid(_) => "invalid",
                    Failure::ContextLength { .. } => "context_length",
                    Failure::Busy { .. } => "busy",
                    Failure::Stopped => "stopped",
                    Failure::Broken(_) => "broken",
                    Failure::Unavailable { .. } => "unavailable",
                };
                let labels = [("model_name", self.name.as_str()), ("reason", reason)];
                let counter = self
                    .metrics
                    .counter("gossamer_request_failures_total", &labels);
                counter.increment(1);
            }
        }
    }
}

impl Drop for Timer {
    /// Without a last event: the client went away.
    fn drop(&mut self) {
        if !self.ended {
            self.model.abort.increment(1);
        }
    }
}
