//! What the server was told: who may ask, how much, and for how long.

use std::time::Duration;

/// Limits and permissions. Everything that grows with what a client sends has a limit here, and what
/// goes past it is refused with a 4xx that names it.
#[derive(Clone)]
pub struct Settings {
    /// Bytes of a request's body; more is 413.
    pub max_body_bytes: usize,
    /// How deep arrays and objects may stand in each other.
    pub max_json_depth: usize,
    /// Values in a body, all levels together.
    pub max_json_values: usize,
    /// Bytes of a text for `/tokenize`.
    pub max_tokenize_bytes: usize,
    /// Tokens whose texts `/tokenize` gives.
    pub max_token_texts: usize,
    /// `n` of chat and completions.
    pub max_n: usize,
    /// Prompts of one completions request.
    pub max_prompts: usize,
    /// Bytes of one JSON schema or grammar.
    pub max_schema_bytes: usize,
    /// Tools of a request.
    pub max_tools: usize,
    /// Entries of `logit_bias`.
    pub max_logit_bias: usize,
    /// Stop strings.
    pub max_stop: usize,
    /// `top_logprobs`.
    pub max_logprobs: usize,
    /// Responses that are kept for `GET /v1/responses/{id}` and `previous_response_id`.
    pub max_stored_responses: usize,
    /// Their bytes together.
    pub max_stored_bytes: usize,
    /// How long one is kept.
    pub stored_age: Duration,
    /// Background responses that run or wait at once.
    pub max_background: usize,
    /// How long a stream may be silent before something is sent to keep it open.
    pub keep_alive: Duration,
    /// The date in system messages, `YYYY-MM-DD`; `None`: today's.
    pub date: Option<String>,
    /// Seed of requests that bring none; `None`: a new one each.
    pub seed: Option<u64>,
    /// Keys of which a request must bring one; empty: none is asked for.
    pub api_keys: Vec<String>,
    /// Names besides loopback's that the `Host` header may have where no key is asked for.
    pub allowed_hosts: Vec<String>,
    /// Whoever started the server wants it reachable without a key (`--insecure`): hosts that are
    /// written out as addresses pass, which no page can have rebound.
    pub open_to_network: bool,
    /// Origins besides loopback's whose pages may read answers.
    pub cors_origins: Vec<String>,
    /// Requests a minute for each key, or each peer where no key is asked for.
    pub rate_limit: Option<u32>,
    /// Connections at once; more are closed at once.
    pub max_connections: usize,
    /// For the headers of a request to arrive.
    pub header_timeout: Duration,
    /// For the body of a request to arrive.
    pub body_timeout: Duration,
    /// For an answer to be complete; past it the answer ends as at its token limit.
    pub request_timeout: Option<Duration>,
    /// For answers to be completed when the server stops.
    pub drain_timeout: Duration,
    /// How long a request waits for its model to be loaded on demand.
    pub load_wait: Duration,
    /// Bytes that the loaded models may take together; `None`: no limit.
    pub model_memory: Option<u64>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            max_body_bytes: 16 << 20,
            max_json_depth: 100,
            max_json_values: 1 << 18,
            max_tokenize_bytes: 4 << 20,
            max_token_texts: 1 << 18,
            max_n: 16,
            max_prompts: 128,
            max_schema_bytes: crate::grammar::MAX_SCHEMA_BYTES,
            max_tools: 512,
            max_logit_bias: 1024,
            max_stop: 16,
            max_logprobs: 20,
            max_stored_responses: 1000,
            max_stored_bytes: 256 << 20,
            stored_age: Duration::from_secs(24 * 60 * 60),
            max_background: 16,
            keep_alive: Duration::from_secs(10),
            date: None,
            seed: None,
            api_keys: Vec::new(),
            allowed_hosts: Vec::new(),
            open_to_network: false,
            cors_origins: Vec::new(),
            rate_limit: None,
            max_connections: 1024,
            header_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            request_timeout: None,
            drain_timeout: Duration::from_secs(30),
            load_wait: Duration::from_secs(120),
            model_memory: None,
        }
    }
}

impl Settings {
    /// The date that system messages give: the one that was set, else today's.
    pub fn today(&self) -> String {
        self.date.clone().unwrap_or_else(crate::harmony::today)
    }
}
