//! The exact sequence of events of each kind of turn.

use super::*;

/// The events in short, one line each; deltas that follow each other are one line.
fn lines(events: &[Value]) -> Vec<String> {
    let mut ids = HashMap::new();
    let mut lines: Vec<(String, String)> = Vec::new();
    for event in events {
        let event = plain_with(event, &mut ids);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let kind = text(&event["type"])
            .expect("a type")
            .replace("response.", "");
        let mut line = kind.clone();
        let mut say = |value: Option<String>| {
            if let Some(value) = value {
                line += " ";
                line += &value;
            }
        };
        let item = &event["item"];
        say(text(&event["response"]["status"]));
        say(text(&event["response"]["incomplete_details"]["reason"]));
        say(text(&event["response"]["error"]["code"]));
        say(event["output_index"].as_u64().map(|i| i.to_string()));
        say(text(&event["item_id"]).or(text(&item["id"])));
        for field in ["type", "status", "phase", "namespace", "name", "call_id"] {
            say(text(&item[field]));
        }
        say(text(&event["part"]["type"]));
        let said = ["text", "arguments", "input", "delta"]
            .iter()
            .find_map(|f| text(&event[*f]));
        let said = said.or((kind == "output_item.done").then(|| text_of(&event["item"])));
        match lines.last_mut() {
            Some((before, all)) if kind.ends_with(".delta") && *before == line => {
                *all += &said.expect("a delta");
            }
            _ => lines.push((line, said.unwrap_or_default())),
        }
    }
    let whole = lines.into_iter().map(|(line, said)| match said.is_empty() {
        true => line,
        false => format!("{line}: {said}"),
    });
    whole.collect()
}

async fn lines_of(client: &Client, body: Value) -> Vec<String> {
    let events = stream(client, body).await;
    check(&events);
    lines(&events)
}

const THOUGHT: &str = "<|channel|>analysis<|message|>Hm, 42.<|end|><|start|>assistant";

#[tokio::test]
async fn reasoning_and_a_message() {
    let client = says(&format!(
        "{THOUGHT}<|channel|>final<|message|>It is 42.<|return|>"
    ));
    let expected = [
        "created in_progress",
        "in_progress in_progress",
        "output_item.added 0 rs_1 reasoning in_progress",
        "content_part.added 0 rs_1 reasoning_text",
        "reasoning_text.delta 0 rs_1: Hm, 42.",
        "reasoning_text.done 0 rs_1: Hm, 42.",
        "content_part.done 0 rs_1 reasoning_text",
        "output_item.done 0 rs_1 reasoning completed: Hm, 42.",
        "output_item.added 1 msg_1 message in_progress final_answer",
        "content_part.added 1 msg_1 output_text",
        "output_text.delta 1 msg_1: It is 42.",
        "output_text.done 1 msg_1: It is 42.",
        "content_part.done 1 msg_1 output_text",
        "output_item.done 1 msg_1 message completed final_answer: It is 42.",
        "completed completed",
    ];
    assert_eq!(lines_of(&client, json!({"input": "?"})).await, expected);
    let summary = lines_of(
        &client,
        json!({"input": "?", "reasoning": {"summary": "auto"}}),
    )
    .await;
    assert_eq!(
        summary[2..8],
        [
            "output_item.added 0 rs_1 reasoning in_progress",
            "reasoning_summary_part.added 0 rs_1 summary_text",
            "reasoning_summary_text.delta 0 rs_1: Hm, 42.",
            "reasoning_summary_text.done 0 rs_1: Hm, 42.",
            "reasoning_summary_part.done 0 rs_1 summary_text",
            "output_item.done 0 rs_1 reasoning completed: Hm, 42.",
        ]
    );
}

#[tokio::test]
async fn the_objects_are_whole() {
    let client = says(&format!(
        "{THOUGHT}<|channel|>final<|message|>It is 42.<|return|>"
    ));
    let body = json!({"input": "?", "instructions": "Be brief.", "metadata": {"a": "b"}, "user": 5,
        "temperature": 0.5, "prompt_cache_key": "k", "store": false, "max_output_tokens": 1000});
    let events = stream(&client, body.clone()).await;
    let last = check(&events);
    let message = json!({"id": "msg_1", "type": "message", "status": "completed", "role": "assistant",
        "content": [{"type": "output_text", "text": "It is 42.", "annotations": [], "logprobs": []}],
        "phase": "final_answer"});
    let reasoning = json!({"id": "rs_1", "type": "reasoning", "status": "completed", "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm, 42."}]});
    let usage = last["usage"].clone();
    let count = |path: &str| {
        usage
            .pointer(path)
            .and_then(Value::as_u64)
            .expect("a count")
    };
    assert_eq!(
        count("/total_tokens"),
        count("/input_tokens") + count("/output_tokens")
    );
    assert!(count("/output_tokens_details/reasoning_tokens") < count("/output_tokens"));
    assert!(count("/output_tokens_details/reasoning_tokens") > 0);
    assert_eq!(count("/input_tokens_details/cache_write_tokens"), 0);
    let expected = json!({"id": "resp_1", "object": "response", "created_at": 0, "completed_at": 0,
        "status": "completed", "incomplete_details": null, "error": null, "model": "scripted",
        "output": [reasoning, message], "usage": usage, "previous_response_id": null,
        "instructions": "Be brief.", "tools": [], "tool_choice": "auto", "truncation": "disabled",
        "parallel_tool_calls": true, "text": {"format": {"type": "text"}}, "top_p": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "top_logprobs": 0, "temperature": 0.5,
        "reasoning": {"effort": "medium", "summary": null}, "max_output_tokens": 1000,
        "max_tool_calls": null, "store": false, "background": false, "service_tier": "default",
        "metadata": {"a": "b"}, "safety_identifier": null, "prompt_cache_key": "k"});
    assert_eq!(plain(&last), expected);
    // Asked for without a stream it is the same, but for what the cache saved the second time.
    let mut whole = plain(&respond(&client, body).await);
    whole["usage"]["input_tokens_details"] = usage["input_tokens_details"].clone();
    assert_eq!(whole, expected);
}

#[tokio::test]
async fn the_open_names_of_the_reasoning() {
    let client = says(&format!(
        "{THOUGHT}<|channel|>final<|message|>It is 42.<|return|>"
    ));
    let request = axum::http::Request::post("/v1/responses")
        .header("x-open-responses", "1")
        .header("content-type", "application/json")
        .body(json!({"input": "?", "stream": true}).to_string().into());
    let events = named_events(&client.ask(request.expect("a request")).await);
    check(&events);
    let lines = lines(&events);
    assert_eq!(
        lines[4..6],
        [
            "reasoning.delta 0 rs_1: Hm, 42.",
            "reasoning.done 0 rs_1: Hm, 42."
        ]
    );
}

fn weather() -> Value {
    json!([
        {"type": "function", "name": "get-weather", "parameters": {"type": "object"}, "strict": false},
        {"type": "namespace", "name": "files", "description": "d", "tools": [
            {"type": "function", "name": "read", "parameters": {"type": "object"}},
        ]},
        {"type": "custom", "name": "patch"},
        {"type": "web_search"},
    ])
}

#[tokio::test]
async fn a_preamble_and_two_calls() {
    let client = says(
        "<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant to=functions.get_weather\
         <|channel|>commentary <|constrain|>json<|message|>{\"c\":\"Ulm\"}<|end|><|start|>assistant\
         <|channel|>commentary to=functions.files_read<|message|>{}<|call|>",
    );
    let expected = [
        "created in_progress",
        "in_progress in_progress",
        "output_item.added 0 msg_1 message in_progress commentary",
        "content_part.added 0 msg_1 output_text",
        "output_text.delta 0 msg_1: Let me look.",
        "output_text.done 0 msg_1: Let me look.",
        "content_part.done 0 msg_1 output_text",
        "output_item.done 0 msg_1 message completed commentary: Let me look.",
        "output_item.added 1 fc_1 function_call in_progress get-weather call_1",
        "function_call_arguments.delta 1 fc_1: {\"c\":\"Ulm\"}",
        "function_call_arguments.done 1 fc_1: {\"c\":\"Ulm\"}",
        "output_item.done 1 fc_1 function_call completed get-weather call_1: {\"c\":\"Ulm\"}",
        "output_item.added 2 fc_2 function_call in_progress files read call_2",
        "function_call_arguments.delta 2 fc_2: {}",
        "function_call_arguments.done 2 fc_2: {}",
        "output_item.done 2 fc_2 function_call completed files read call_2: {}",
        "completed completed",
    ];
    assert_eq!(
        lines_of(&client, json!({"input": "?", "tools": weather()})).await,
        expected
    );
}

#[tokio::test]
async fn a_custom_tool_gets_text() {
    let client = client(|prompt| {
        let arguments = match prompt.text.contains("raw") {
            true => "*** Begin Patch",
            false => "{\"input\": \"a \\\"b\\\"\\n\\u00e9\"}",
        };
        format!("<|channel|>commentary to=functions.patch<|message|>{arguments}<|call|>")
    });
    let expected = [
        "output_item.added 0 ctc_1 custom_tool_call in_progress patch call_1",
        "custom_tool_call_input.delta 0 ctc_1: a \"b\"\né",
        "custom_tool_call_input.done 0 ctc_1: a \"b\"\né",
        "output_item.done 0 ctc_1 custom_tool_call completed patch call_1: a \"b\"\né",
        "completed completed",
    ];
    let lines = lines_of(&client, json!({"input": "?", "tools": weather()})).await;
    assert_eq!(lines[2..], expected);
    let raw = respond(&client, json!({"input": "raw", "tools": weather()})).await;
    assert_eq!(raw["output"][0]["input"], "*** Begin Patch");
}

#[tokio::test]
async fn a_length_limit_is_incomplete() {
    let client = says(&format!(
        "{THOUGHT}<|channel|>final<|message|>One two three four.<|return|>"
    ));
    let mut cut = Vec::new();
    for most in 1..30 {
        let events = stream(&client, json!({"input": "?", "max_output_tokens": most})).await;
        let last = check(&events);
        let used = last["usage"]["output_tokens"].as_u64().expect("a count");
        if last["status"] == "completed" {
            cut.push("completed");
            break;
        }
        assert_eq!(used, most);
        assert_eq!(
            last["incomplete_details"],
            json!({"reason": "max_output_tokens"})
        );
        assert_eq!(
            events.last().map(|e| &e["type"]),
            Some(&json!("response.incomplete"))
        );
        let item = last["output"].as_array().and_then(|items| items.last());
        let Some(item) = item else {
            cut.push("nothing");
            continue;
        };
        cut.push(match (item["type"].as_str(), item["status"].as_str()) {
            (Some("reasoning"), Some("incomplete")) => "reasoning cut",
            (Some("reasoning"), Some("completed")) => "reasoning",
            (Some("message"), Some("incomplete")) => "message cut",
            other => panic!("{other:?}"),
        });
    }
    cut.dedup();
    let expected = [
        "nothing",
        "reasoning cut",
        "reasoning",
        "message cut",
        "completed",
    ];
    assert_eq!(cut, expected);
}

#[tokio::test]
async fn a_failure_in_the_middle_is_the_last_event() {
    // The script ends without an end: the back end fails.
    let client = says("<|channel|>final<|message|>It is");
    let lines = lines_of(&client, json!({"input": "?"})).await;
    let expected = [
        "output_item.added 0 msg_1 message in_progress final_answer",
        "content_part.added 0 msg_1 output_text",
        "output_text.delta 0 msg_1: It is",
        "output_text.done 0 msg_1: It is",
        "content_part.done 0 msg_1 output_text",
        "output_item.done 0 msg_1 message incomplete final_answer: It is",
        "failed failed internal_error",
    ];
    assert_eq!(lines[2..], expected);
    let whole = create(&client, json!({"input": "?"})).await;
    whole.is_error(500).expect("an error object");
}

#[tokio::test]
async fn a_turn_without_an_answer_has_an_empty_one() {
    for (text, items) in [
        ("<|return|>", 1),
        ("<|channel|>analysis<|message|>Hm<|return|>", 2),
    ] {
        let client = says(text);
        let last = check(&stream(&client, json!({"input": "?"})).await);
        let output = last["output"].as_array().expect("items");
        assert_eq!(output.len(), items, "{last}");
        assert_eq!(output[items - 1]["content"][0]["text"], "");
        assert_eq!(last["status"], "completed");
    }
}

#[tokio::test]
async fn a_schema_holds_for_all_output_text() {
    let client = client(|prompt| {
        assert!(
            prompt.text.contains("## city"),
            "the model is told: {}",
            prompt.text
        );
        "<|channel|>analysis<|message|>{\"no<|end|><|start|>assistant<|channel|>final<|message|>\
         {\"name\":\"Ulm\"}<|return|>"
            .to_owned()
    });
    let format = json!({"type": "json_schema", "name": "city", "strict": true, "schema": {
        "type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"],
        "additionalProperties": false}});
    let body = json!({"input": "?", "text": {"format": format}});
    let last = check(&stream(&client, body).await);
    assert_eq!(last["text"]["format"], format);
    assert_eq!(text_of(&last["output"][1]), "{\"name\":\"Ulm\"}");
}

#[tokio::test]
async fn log_probabilities_add_up_to_the_text() {
    let client = says(&format!(
        "{THOUGHT}<|channel|>final<|message|>It is 42 🪢.<|return|>"
    ));
    let body =
        json!({"input": "?", "include": ["message.output_text.logprobs"], "top_logprobs": 3});
    let events = stream(&client, body).await;
    let last = check(&events);
    let list = last["output"][1]["content"][0]["logprobs"]
        .as_array()
        .expect("a list")
        .clone();
    let bytes = |token: &Value| -> Vec<u8> {
        let bytes = token["bytes"].as_array().expect("bytes").iter();
        bytes.map(|b| b.as_u64().expect("a byte") as u8).collect()
    };
    let text: Vec<u8> = list.iter().flat_map(bytes).collect();
    assert_eq!(String::from_utf8_lossy(&text), "It is 42 🪢.");
    assert!(
        list.iter()
            .all(|token| token["top_logprobs"].as_array().map(Vec::len) == Some(3))
    );
    let deltas = events
        .iter()
        .filter(|e| e["type"] == "response.output_text.delta");
    let told: Vec<Value> = deltas
        .flat_map(|e| e["logprobs"].as_array().expect("a list").clone())
        .collect();
    assert_eq!(told, list);
}
