//! Text to token ids and back, as vLLM's `/tokenize` and `/detokenize`.

use super::{
    App, Served, chat,
    error::ApiError,
    extract::{self, Body},
};
use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

/// What to tokenize.
#[derive(Deserialize, ToSchema)]
struct TokenizeRequest {
    /// Default: the default model
    model: Option<String>,
    /// Text; it never becomes a control token
    prompt: Option<String>,
    /// Instead of it: a conversation, as in chat completions, whose other fields (`tools`,
    /// `reasoning_effort` …) are understood too
    #[schema(value_type = Option<Vec<Object>>)]
    messages: Option<Value>,
    /// Also the tokens' texts
    return_token_strs: Option<bool>,
}

/// Its tokens.
#[derive(Serialize, ToSchema)]
struct TokenizeResponse {
    /// How many
    count: usize,
    /// The model's context
    max_model_len: usize,
    /// Token ids
    tokens: Vec<u32>,
    /// Their texts, where asked for
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<String>>,
}

/// What to turn into text.
#[derive(Deserialize, ToSchema)]
struct DetokenizeRequest {
    /// Default: the default model
    model: Option<String>,
    /// Token ids
    tokens: Vec<u32>,
}

/// The text.
#[derive(Serialize, ToSchema)]
struct DetokenizeResponse {
    /// Bytes that are no UTF-8 become U+FFFD
    prompt: String,
}

/// `/tokenize`, `/detokenize`.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(tokenize))
        .routes(routes!(detokenize))
}

/// Text or a conversation to token ids
#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "tokens",
    request_body = TokenizeRequest,
    responses((status = 200, body = TokenizeResponse))
)]
async fn tokenize(
    State(app): State<Arc<App>>,
    Body(value): Body<Value>,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let request: TokenizeRequest = extract::typed(value.clone())?;
    let served = app.model(request.model.as_deref()).await?;
    // A long text takes long.
    let work = move || tokens_of(request, value, &served, &app);
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::internal("Tokenizing failed."))?
        .map(Json)
}

fn tokens_of(
    request: TokenizeRequest,
    value: Value,
    served: &Arc<Served>,
    app: &App,
) -> Result<TokenizeResponse, ApiError> {
    let tokens = match (request.prompt, request.messages) {
        (Some(prompt), None) => served.tokenizer.encode(&prompt),
        (None, Some(_)) => served.prompt(&chat::conversation(value, served, &app.settings)?)?,
        (None, None) => return Err(ApiError::missing("prompt")),
        (Some(_), Some(_)) => {
            let text = "Expected either 'prompt' or 'messages', found both.";
            return Err(ApiError::invalid("messages", text));
        }
    };
    let texts = request.return_token_strs.unwrap_or(false);
    let text = |&id: &u32| text_of(served, &[id]);
    Ok(TokenizeResponse {
        count: tokens.len(),
        max_model_len: served.engine.info().context,
        token_strs: texts.then(|| tokens.iter().map(text).collect()),
        tokens,
    })
}

/// Token ids to text
#[utoipa::path(
    post,
    path = "/detokenize",
    tag = "tokens",
    request_body = DetokenizeRequest,
    responses((status = 200, body = DetokenizeResponse))
)]
async fn detokenize(
    State(app): State<Arc<App>>,
    Body(request): Body<DetokenizeRequest>,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let served = app.model(request.model.as_deref()).await?;
    let size = served.tokenizer.vocab_size();
    let wrong = |&(_, &id): &(usize, &u32)| id as usize >= size;
    if let Some((at, id)) = request.tokens.iter().enumerate().find(wrong) {
        let text = format!("Invalid 'tokens[{at}]': {id}; the vocabulary has {size} tokens.");
        return Err(ApiError::invalid(format!("tokens[{at}]"), text));
    }
    let prompt = text_of(&served, &request.tokens);
    Ok(Json(DetokenizeResponse { prompt }))
}

fn text_of(served: &Served, tokens: &[u32]) -> String {
    crate::tokenizer::lossy(&served.tokenizer.decode(tokens)).into_owned()
}
