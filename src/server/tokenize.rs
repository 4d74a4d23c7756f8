//! Text to token ids and back, as vLLM's `/tokenize` and `/detokenize`.

use super::{App, Served, error::ApiError, extract::Body};
use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
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

/// Text to token ids
#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "tokens",
    request_body = TokenizeRequest,
    responses((status = 200, body = TokenizeResponse))
)]
async fn tokenize(
    State(app): State<Arc<App>>,
    Body(request): Body<TokenizeRequest>,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let served = app.model(request.model.as_deref()).await?;
    let prompt = request.prompt.ok_or_else(|| ApiError::missing("prompt"))?;
    let tokens = served.tokenizer.encode(&prompt);
    let texts = request.return_token_strs.unwrap_or(false);
    let text = |&id: &u32| text_of(&served, &[id]);
    Ok(Json(TokenizeResponse {
        count: tokens.len(),
        max_model_len: served.engine.info().context,
        token_strs: texts.then(|| tokens.iter().map(text).collect()),
        tokens,
    }))
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
