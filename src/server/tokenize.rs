//! Text to token ids and back, as vLLM's `/tokenize` and `/detokenize`.

use super::{
    App, Served, Settings, chat,
    error::ApiError,
    extract::{self, Body},
};
use axum::{Json, extract::State};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{Map, Value};
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
    messages: Option<IgnoredAny>,
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
    Body(mut value): Body<Value>,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let request: TokenizeRequest = extract::typed(own_fields(&mut value))?;
    let served = app.model(request.model.as_deref()).await?;
    let shared = app.clone();
    // A long text takes long.
    let work = move || tokens_of(request, value, &served, &shared.settings);
    app.work(work).await?.map(Json)
}

/// The fields of [`TokenizeRequest`], taken out of `value`: what is left is a conversation.
fn own_fields(value: &mut Value) -> Value {
    let Some(all) = value.as_object_mut() else {
        return value.take();
    };
    let mut own = Map::new();
    for field in ["prompt", "return_token_strs"] {
        own.extend(all.remove(field).map(|found| (field.to_owned(), found)));
    }
    own.extend(all.get("model").map(|name| ("model".into(), name.clone())));
    let messages = all.get("messages").filter(|found| !found.is_null());
    own.extend(messages.map(|_| ("messages".into(), true.into())));
    Value::Object(own)
}

fn tokens_of(
    request: TokenizeRequest,
    rest: Value,
    served: &Arc<Served>,
    settings: &Settings,
) -> Result<TokenizeResponse, ApiError> {
    let is_chat = request.messages.is_some();
    let tokens = match request.prompt {
        Some(_) if is_chat => {
            let text = "Expected either 'prompt' or 'messages', found both.";
            return Err(ApiError::invalid("messages", text));
        }
        Some(prompt) if prompt.len() > settings.max_tokenize_bytes => {
            let (most, found) = (settings.max_tokenize_bytes, prompt.len());
            let text = format!("Invalid 'prompt': expected at most {most} bytes, found {found}.");
            return Err(ApiError::invalid("prompt", text));
        }
        Some(prompt) => served.tokenizer.encode(&prompt),
        None if is_chat => served.prompt(&chat::conversation(rest, served, settings)?)?,
        None => return Err(ApiError::missing("prompt")),
    };
    let texts = request.return_token_strs.unwrap_or(false);
    let (most, count) = (settings.max_token_texts, tokens.len());
    if texts && count > most {
        let text = format!(
            "Invalid 'return_token_strs': the texts of at most {most} tokens are given, found {count}."
        );
        return Err(ApiError::invalid("return_token_strs", text));
    }
    let text = |&id: &u32| text_of(served, &[id]);
    Ok(TokenizeResponse {
        count,
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
    let work = move || text_of(&served, &request.tokens);
    let prompt = app.work(work).await?;
    Ok(Json(DetokenizeResponse { prompt }))
}

fn text_of(served: &Served, tokens: &[u32]) -> String {
    crate::tokenizer::lossy(&served.tokenizer.decode(tokens)).into_owned()
}
