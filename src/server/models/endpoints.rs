//! `/v1/models`: what there is, loaded or not.

use super::{App, Loaded, Source};
use crate::server::{error::ApiError, extract::PathText};
use axum::{Json, extract::State};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

/// A model as OpenAI has it, and what its file's header tells.
#[derive(Serialize, ToSchema)]
struct Model {
    /// The name to ask by
    id: String,
    /// `model`
    object: &'static str,
    /// When its file was written, in seconds since 1970
    created: u64,
    /// `openai`, or `gossamer` for the demo model
    owned_by: &'static str,
    /// The model's true name, `model` in every answer
    root: String,
    /// Other names it answers to
    aliases: Vec<String>,
    /// Type of most of its bytes
    #[schema(example = "MXFP4")]
    quantization: Option<String>,
    /// Bytes of its files
    file_size: u64,
    /// Tensors in them
    tensor_count: usize,
    /// Parameters, all experts counted
    parameters: u64,
    /// Tokens of context that the model was made for
    context_length: usize,
    /// Tokens of prompt and answer together that there is room for here
    max_model_len: usize,
    /// Whether it is in memory
    loaded: bool,
}

/// All models.
#[derive(Serialize, ToSchema)]
struct List {
    /// `list`
    object: &'static str,
    /// The models; the first is the default one
    data: Vec<Model>,
}

/// `/v1/models`.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(one))
}

/// What is served
#[utoipa::path(get, path = "/v1/models", tag = "models", responses((status = 200, body = List)))]
async fn list(State(app): State<Arc<App>>) -> Json<List> {
    let data = app.models.each(|(source, served)| {
        let names = source.names.iter().cloned();
        names
            .map(|name| Model::new(name, source, served))
            .collect::<Vec<_>>()
    });
    Json(List {
        object: "list",
        data: data.into_iter().flatten().collect(),
    })
}

/// One model, by any name it answers to
#[utoipa::path(
    get,
    path = "/v1/models/{*id}",
    tag = "models",
    params(("id" = String, Path, description = "Its name, which may hold slashes")),
    responses((status = 200, body = Model))
)]
async fn one(State(app): State<Arc<App>>, PathText(id): PathText) -> Result<Json<Model>, ApiError> {
    let wanted = app.models.find(Some(&id))?;
    let mut index = 0..;
    let models = app.models.each(|(source, served)| {
        (index.next() == Some(wanted)).then(|| Model::new(id.clone(), source, served))
    });
    let found = models.into_iter().flatten().next();
    found
        .map(Json)
        .ok_or_else(|| ApiError::model_not_found(&id, &app.models.names()))
}

impl Model {
    fn new(id: String, source: &Source, loaded: Option<&Loaded>) -> Model {
        let facts = &source.facts;
        Model {
            aliases: source.other_names(&id),
            id,
            object: "model",
            created: facts.created,
            owned_by: if facts.is_demo { "gossamer" } else { "openai" },
            root: source.names[0].clone(),
            quantization: facts.quantization.clone(),
            file_size: facts.file_bytes,
            tensor_count: facts.tensors,
            parameters: facts.parameters,
            context_length: facts.context,
            max_model_len: loaded.map_or(source.context, |s| s.engine.info().context),
            loaded: loaded.is_some(),
        }
    }
}
