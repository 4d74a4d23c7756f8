//! `truncation: "auto"`: a conversation that has grown too long loses its oldest turns.
//!
//! What goes are whole turns, each from what the user says to what the user says next, so that a
//! tool's output keeps its call. The instructions and the last turn stay. Once something has to go,
//! the prompt is brought down to three quarters of the context: the answer needs room, and the turns
//! that follow find their beginning in the cache instead of losing one more turn each.

use super::create::begin;
use crate::{
    harmony::{Message, Role},
    server::{
        error::ApiError,
        models::Served,
        turn::{Ask, TurnStream},
    },
};
use std::sync::Arc;

/// Starts the turn, without the oldest ones if need be.
///
/// # Errors
/// As without: also if what has to stay does not fit.
pub(super) async fn begin_shortened(
    served: &Arc<Served>,
    ask: Ask,
) -> Result<TurnStream, ApiError> {
    let error = match begin(served, ask.clone()).await {
        Err(error) if error.code == Some("context_length_exceeded") => error,
        begun => return begun,
    };
    let model = served.clone();
    let shortened = tokio::task::spawn_blocking(move || shorten(&model, ask)).await;
    let shortened =
        shortened.map_err(|_| ApiError::internal("Shortening the prompt failed."))??;
    match shortened {
        Some(ask) => begin(served, ask).await,
        None => Err(error),
    }
}

/// `ask` with as many turns as fit; none if there is only one left.
fn shorten(served: &Served, mut ask: Ask) -> Result<Option<Ask>, ApiError> {
    let messages = std::mem::take(&mut ask.conversation.messages);
    let starts = starts(&messages);
    let most = served.engine.info().context / 4 * 3;
    // The first turn from which on the rest fits, by halving; the last one is the least there is.
    let (mut low, mut high) = (1, starts.len().saturating_sub(1));
    while low < high {
        let middle = low.midpoint(high);
        ask.conversation.messages = messages[starts[middle]..].to_vec();
        match served.prompt(&ask.conversation)?.len() > most {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    let Some(&start) = starts.get(low) else {
        return Ok(None);
    };
    tracing::info!(
        model = served.name,
        turns = low,
        messages = start,
        "the oldest turns were left out of a prompt that did not fit"
    );
    ask.conversation.messages = messages[start..].to_vec();
    Ok(Some(ask))
}

/// Where turns begin: at what the user says, once if several messages follow each other.
fn starts(messages: &[Message]) -> Vec<usize> {
    let mut before = None;
    let mut starts = Vec::new();
    for (i, message) in messages.iter().enumerate() {
        if message.role == Role::User && before != Some(Role::User) {
            starts.push(i);
        }
        before = Some(message.role);
    }
    starts
}
