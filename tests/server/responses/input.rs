//! What clients send: items, tools, formats; and what is wrong with some of it.

use super::*;

/// A model that repeats its prompt.
fn mirror() -> Client {
    client(|prompt| format!("<|channel|>final<|message|>{}<|return|>", quoted(prompt)))
}

/// The prompt that `body` becomes, from the developer message on.
async fn prompt(client: &Client, body: Value) -> String {
    let response = respond(client, body).await;
    let text = text_of(&response["output"][0]);
    let text = text.replace('«', "<|").replace('»', "|>");
    let begin = text.find("<|end|>").expect("a system message") + "<|end|>".len();
    text[begin..].to_owned()
}

#[tokio::test]
async fn items_become_messages() {
    let client = mirror();
    assert_eq!(
        prompt(&client, json!({"input": "Hi"})).await,
        "<|start|>user<|message|>Hi<|end|><|start|>assistant"
    );
    let body = json!({
        "instructions": "First.",
        "input": [
            {"role": "system", "content": "Second."},
            {"type": "message", "role": "developer", "content": [
                {"type": "input_text", "text": "Third,"}, {"type": "input_text", "text": "fourth."}]},
            {"role": "user", "content": "Hi", "id": 7, "status": 8},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": null,
             "content": [{"type": "reasoning_text", "text": "Think."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait.", "annotations": []}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "More."}]},
            {"type": "function_call", "call_id": "c1", "namespace": "files", "name": "read", "arguments": "{\"a\":1}"},
            {"type": "function_call_output", "call_id": "c1", "output": [
                {"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
            {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "a \"b\""},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "<|end|>"},
        ],
    });
    let expected = "<|start|>developer<|message|># Instructions\n\nFirst.\n\nSecond.\n\nThird,\nfourth.<|end|>\
        <|start|>user<|message|>Hi<|end|>\
        <|start|>assistant<|channel|>analysis<|message|>Think.<|end|>\
        <|start|>assistant<|channel|>commentary<|message|>Wait.<|end|>\
        <|start|>assistant<|channel|>analysis<|message|>More.<|end|>\
        <|start|>assistant to=functions.files_read<|channel|>commentary <|constrain|>json<|message|>{\"a\":1}<|call|>\
        <|start|>functions.files_read to=assistant<|channel|>commentary<|message|>one\ntwo<|end|>\
        <|start|>assistant to=functions.patch<|channel|>commentary <|constrain|>json<|message|>{\"input\":\"a \\\"b\\\"\"}<|call|>\
        <|start|>functions.patch to=assistant<|channel|>commentary<|message|><|end|><|end|><|start|>assistant";
    assert_eq!(prompt(&client, body).await, expected);
    // Whatever is said before a call is said within the turn.
    let preambles = json!([
        {"role": "user", "content": "A"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Think."}]},
        {"role": "assistant", "content": "One."},
        {"role": "assistant", "content": "Two."},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
    ]);
    let text = prompt(&client, json!({"input": preambles})).await;
    for said in [
        "analysis<|message|>Think.",
        "commentary<|message|>One.",
        "commentary<|message|>Two.",
    ] {
        assert!(text.contains(said), "{said} is not in {text}");
    }
    // Reasoning of a finished turn goes, unless it is asked for; a phase decides for itself.
    let turns = json!([
        {"role": "user", "content": "A"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Think."}]},
        {"role": "assistant", "content": "Said.", "phase": "commentary"},
        {"role": "assistant", "content": "Done.", "phase": "final_answer"},
        {"role": "user", "content": "B"},
    ]);
    let kept = prompt(
        &client,
        json!({"input": turns, "reasoning": {"context": "all_turns"}}),
    )
    .await;
    assert!(
        kept.contains("Think.") && kept.contains("commentary<|message|>Said."),
        "{kept}"
    );
    let usual = prompt(&client, json!({"input": turns})).await;
    assert!(
        !usual.contains("Think.") && usual.contains("final<|message|>Done."),
        "{usual}"
    );
}

#[tokio::test]
async fn tools_are_flattened_skipped_or_refused() {
    let client = mirror();
    let tools = json!([
        {"type": "function", "name": "look-up", "description": "Looks.", "parameters": {
            "type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}},
        {"type": "namespace", "name": "mcp__git__", "description": "Git.", "tools": [
            {"type": "function", "name": "log", "parameters": {"type": "object", "properties": {}}, "strict": false}]},
        {"type": "custom", "name": "patch", "description": "Patches.", "format": {
            "type": "grammar", "syntax": "lark", "definition": "start: \"x\""}},
        {"type": "web_search"}, {"type": "local_shell"},
    ]);
    let text = prompt(&client, json!({"input": "?", "tools": tools})).await;
    for part in [
        "// Looks.\ntype look_up = (_: {\nq: string,\n}) => any;",
        "type mcp__git__log =",
        "// Patches.\n// The input follows this Lark grammar:\n// start: \"x\"\ntype patch = (_: {\ninput: string,\n}) => any;",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("web_search") && !text.contains("shell"));
    let newer = json!({"input": "?", "tools": [{"type": "of_tomorrow", "name": 5}]});
    let answer = create(&client, newer.clone()).await;
    assert_eq!(answer.json()["tools"], newer["tools"], "{answer}");
    let chosen = json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look-up"}]});
    let text = prompt(
        &client,
        json!({"input": "?", "tools": tools, "tool_choice": chosen}),
    )
    .await;
    // The prompt is the same, and with it what the cache holds of it: see the test below.
    assert!(text.contains("look_up") && text.contains("patch"), "{text}");
    for kind in ["file_search", "mcp"] {
        let answer = create(
            &client,
            json!({"input": "?", "tools": [{"type": "web_search"}, {"type": kind}]}),
        )
        .await;
        answer.is_error(400).expect(kind);
        assert_eq!(answer.json()["error"]["param"], "tools[1].type");
    }
}

#[tokio::test]
async fn a_choice_of_tools_is_enforced() {
    // Whatever the script wants: the mask leaves it no other way.
    let client =
        says("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\":1}<|call|>");
    let tools = json!([{"type": "function", "name": "f", "parameters": {"type": "object"}},
        {"type": "function", "name": "g", "parameters": {"type": "object"}}]);
    for choice in [json!("required"), json!({"type": "function", "name": "f"})] {
        let body = json!({"input": "?", "tools": tools, "tool_choice": choice});
        let response = respond(&client, body).await;
        assert_eq!(response["tool_choice"], choice);
        assert_eq!(response["output"][0]["name"], "f", "{response}");
    }
}

#[tokio::test]
async fn what_is_not_allowed_is_not_called() {
    const CALL: &str =
        "<|channel|>commentary to=functions.files_read <|constrain|>json<|message|>{}<|call|>";
    let tools = json!([{"type": "function", "name": "f", "parameters": {"type": "object"}},
        {"type": "namespace", "name": "files", "description": "d",
            "tools": [{"type": "function", "name": "read"}]}]);
    let body = |mode: &str, allowed: &[Value]| {
        json!({"input": "?", "tools": tools,
            "tool_choice": {"type": "allowed_tools", "mode": mode, "tools": allowed}})
    };
    let f = json!({"type": "function", "name": "f"});
    let read = json!({"type": "function", "namespace": "files", "name": "read"});
    // The mask leaves this model nothing that it knows to say, so it fails.
    let client = says(CALL);
    for (mode, allowed) in [
        ("auto", vec![f.clone()]),
        ("required", vec![f.clone()]),
        ("auto", vec![]),
    ] {
        let answer = create(&client, body(mode, &allowed)).await;
        answer.is_error(500).expect("no other way");
    }
    for allowed in [vec![read.clone()], vec![f.clone(), read]] {
        let response = respond(&client, body("auto", &allowed)).await;
        assert_eq!(response["output"][0]["namespace"], "files", "{response}");
    }
    // Where it is called all the same, the client still hears of it by its name.
    let response = respond(
        &any_turn(|_| CALL.to_owned()),
        body("auto", std::slice::from_ref(&f)),
    )
    .await;
    assert_eq!(response["output"][0]["namespace"], "files", "{response}");
    assert_eq!(response["output"][0]["name"], "read", "{response}");
    let many = create(&client, body("auto", &vec![f; 513])).await;
    many.is_error(400).expect("too many");
    assert_eq!(many.json()["error"]["param"], "tool_choice.tools");
}

#[tokio::test]
async fn a_custom_tool_that_has_to_be_called_gets_its_input_in_json() {
    let client = client(|prompt| {
        let arguments = match prompt.text.contains("raw") {
            true => "*** Begin Patch",
            false => "{\"input\":\"a \\\"b\\\"\"}",
        };
        format!(
            "<|channel|>commentary to=functions.patch <|constrain|>json<|message|>{arguments}<|call|>"
        )
    });
    let body = |input: &str, choice: Value| json!({"input": input, "tool_choice": choice, "tools": [{"type": "custom", "name": "patch"}]});
    for choice in [
        json!("required"),
        json!({"type": "custom", "name": "patch"}),
    ] {
        let fine = respond(&client, body("fine", choice.clone())).await;
        assert_eq!(fine["output"][0]["input"], "a \"b\"");
        // The mask keeps the model from it, and this one can say nothing else.
        let raw = create(&client, body("raw", choice)).await;
        raw.is_error(500).expect("no other way");
    }
    let raw = respond(&client, body("raw", json!("auto"))).await;
    assert_eq!(raw["output"][0]["input"], "*** Begin Patch");
}

#[tokio::test]
async fn a_long_conversation_loses_its_oldest_turns() {
    let client = mirror();
    let turn = |name: &str| {
        vec![
            json!({"role": "user", "content": format!("{name} {}", "word ".repeat(5_000))}),
            json!({"type": "function_call", "call_id": name, "name": "f", "arguments": "{}"}),
            json!({"type": "function_call_output", "call_id": name, "output": format!("result of {name}")}),
            json!({"role": "assistant", "content": format!("answer to {name}")}),
        ]
    };
    let mut input: Vec<Value> = ["first", "second", "third", "fourth", "fifth"]
        .into_iter()
        .flat_map(turn)
        .collect();
    input.push(json!({"role": "user", "content": "Now?"}));
    input.push(json!({"role": "user", "content": "Well?"}));
    let counted = client
        .post("/v1/responses/input_tokens", &json!({"input": input}))
        .await
        .json();
    let all = counted["input_tokens"].as_u64().expect("a count");
    assert!(all > 40_000, "{all} tokens fit");
    let mut body = json!({"instructions": "Be brief.", "input": input, "truncation": "auto"});
    body["max_output_tokens"] = json!(1);
    let response = respond(&client, body.clone()).await;
    assert_eq!(response["truncation"], "auto");
    let used = response["usage"]["input_tokens"].as_u64().expect("a count");
    // As many turns as three quarters of the context hold.
    assert!(
        used <= 30_000 && used + all / 5 > 30_000,
        "{used} of {all} tokens"
    );
    body["truncation"] = json!("disabled");
    let refused = create(&client, body).await;
    refused.is_error(400).expect("too long");
    assert_eq!(refused.json()["error"]["code"], "context_length_exceeded");
    // One turn can't be shortened.
    let one = json!({"input": "word ".repeat(50_000), "truncation": "auto"});
    let refused = create(&client, one).await;
    refused.is_error(400).expect("too long");
    assert_eq!(refused.json()["error"]["code"], "context_length_exceeded");
    assert_eq!(refused.json()["error"]["param"], "input");
}

#[tokio::test]
async fn a_custom_tool_is_held_to_its_regular_expression() {
    let client = says(
        "<|channel|>commentary to=functions.number <|constrain|>json<|message|>{\"input\":\"42\"}<|call|>",
    );
    let tools = |definition: &str| {
        json!([{"type": "web_search"}, {"type": "custom", "name": "number", "format": {
            "type": "grammar", "syntax": "regex", "definition": definition}}])
    };
    let body = json!({"input": "?", "tools": tools("[0-9]+")});
    let response = respond(&client, body).await;
    assert_eq!(response["output"][0]["input"], "42");
    let answer = create(&client, json!({"input": "?", "tools": tools("(")})).await;
    answer.is_error(400).expect("no regular expression");
    assert_eq!(
        answer.json()["error"]["param"],
        "tools[1].format",
        "{answer}"
    );
}

#[tokio::test]
async fn prompts_are_counted() {
    let client = mirror();
    let body = json!({"input": "How long am I?", "instructions": "Count."});
    let response = respond(&client, body.clone()).await;
    let counted = client.post("/v1/responses/input_tokens", &body).await;
    assert_eq!(counted.status, 200, "{counted}");
    let expected = json!({"object": "response.input_tokens", "input_tokens": response["usage"]["input_tokens"]});
    assert_eq!(counted.json(), expected);
    let missing = client.post("/v1/responses/input_tokens", &json!({})).await;
    missing.is_error(400).expect("no input");
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let client = says("<|channel|>final<|message|>Fine.<|return|>");
    let function = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
    let cases = [
        (json!({}), "input", "missing_required_parameter"),
        (json!({"input": []}), "input", "invalid_value"),
        (json!({"input": 5}), "input", "invalid_type"),
        (json!({"input": [5]}), "input[0]", "invalid_type"),
        (
            json!({"input": [{"role": "user"}]}),
            "input[0].content",
            "missing_required_parameter",
        ),
        (
            json!({"input": [{"role": "king", "content": "x"}]}),
            "input[0].role",
            "invalid_value",
        ),
        (
            json!({"input": [{"content": "x"}]}),
            "input[0].type",
            "missing_required_parameter",
        ),
        (
            json!({"input": [{"type": "dream", "content": "x"}]}),
            "input[0].type",
            "unsupported_parameter",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": "x"}]}]}),
            "input[0].content[1]",
            "unsupported_parameter",
        ),
        (
            json!({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}),
            "input[0].call_id",
            "invalid_value",
        ),
        (
            json!({"input": [{"type": "web_search_call"}, {"role": "user", "content": "x"},
                {"type": "custom_tool_call_output", "call_id": "c", "output": "x"}]}),
            "input[2].call_id",
            "invalid_value",
        ),
        (
            json!({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}),
            "input[0].arguments",
            "missing_required_parameter",
        ),
        (
            json!({"input": "?", "conversation": "conv_1"}),
            "conversation",
            "unsupported_parameter",
        ),
        (
            json!({"input": "?", "prompt": {"id": "p"}}),
            "prompt",
            "unsupported_parameter",
        ),
        (
            json!({"input": "?", "include": ["everything"]}),
            "include[0]",
            "invalid_value",
        ),
        (
            json!({"input": "?", "stream": "yes"}),
            "stream",
            "invalid_type",
        ),
        (
            json!({"input": "?", "max_output_tokens": 0}),
            "max_output_tokens",
            "invalid_value",
        ),
        (
            json!({"input": "?", "temperature": 3}),
            "temperature",
            "invalid_value",
        ),
        (
            json!({"input": "?", "top_logprobs": 21}),
            "top_logprobs",
            "invalid_value",
        ),
        (
            json!({"input": "?", "truncation": "some"}),
            "truncation",
            "invalid_value",
        ),
        (
            json!({"input": "?", "metadata": {"a": 5}}),
            "metadata.a",
            "invalid_type",
        ),
        (
            json!({"input": "?", "reasoning": {"effort": "huge"}}),
            "reasoning.effort",
            "invalid_value",
        ),
        (
            json!({"input": "?", "reasoning": {"summary": "long"}}),
            "reasoning.summary",
            "invalid_value",
        ),
        (
            json!({"input": "?", "text": {"format": {"type": "xml"}}}),
            "text.format.type",
            "invalid_value",
        ),
        (
            json!({"input": "?", "text": {"format": {"type": "json_schema", "name": "x"}}}),
            "text.format.schema",
            "missing_required_parameter",
        ),
        (
            json!({"input": "?", "text": {"format": {"type": "regex", "pattern": "("}}}),
            "text.format",
            "invalid_value",
        ),
        (
            json!({"input": "?", "tools": [{"type": "function"}]}),
            "tools[0].name",
            "missing_required_parameter",
        ),
        (
            json!({"input": "?", "tools": [function, function]}),
            "tools[1].name",
            "invalid_value",
        ),
        (
            json!({"input": "?", "tools": [function], "tool_choice": {"type": "function", "name": "g"}}),
            "tool_choice.name",
            "invalid_value",
        ),
        (
            json!({"input": "?", "tool_choice": "required"}),
            "tool_choice",
            "invalid_value",
        ),
        (
            json!({"input": "?", "tool_choice": {"type": "web_search_preview"}}),
            "tool_choice.type",
            "unsupported_parameter",
        ),
        (
            json!({"input": "?", "previous_response_id": "resp_none"}),
            "previous_response_id",
            "previous_response_not_found",
        ),
        (
            json!({"input": "?", "model": "gpt-7"}),
            "model",
            "model_not_found",
        ),
        (
            json!({"input": "word ".repeat(50_000)}),
            "input",
            "context_length_exceeded",
        ),
    ];
    for (mut body, param, code) in cases {
        for stream in [false, true] {
            if body.get("stream").is_none_or(|stream| stream.is_boolean()) {
                body["stream"] = json!(stream);
            }
            let answer = create(&client, body.clone()).await;
            let status = if code == "model_not_found" { 404 } else { 400 };
            let text = body.to_string();
            answer
                .is_error(status)
                .unwrap_or_else(|e| panic!("{e} for {text:.300}"));
            let error = &answer.json()["error"];
            assert_eq!(
                (&error["param"], &error["code"]),
                (&json!(param), &json!(code)),
                "{text:.300}: {error}"
            );
        }
    }
}

#[tokio::test]
async fn codex_and_the_ai_sdk_are_understood() {
    let client = mirror();
    let codex = json!({
        "model": "gpt-oss-20b", "instructions": "", "stream": true, "store": false, "tool_choice": "auto",
        "parallel_tool_calls": true, "reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199", "client_metadata": {"x": "y"}, "text": {"verbosity": "low"},
        "tools": [
            {"type": "function", "name": "exec_command", "description": "Runs.", "strict": false, "parameters": {
                "type": "object", "properties": {"cmd": {"type": "string"}}, "required": ["cmd"], "additionalProperties": false}},
            {"type": "namespace", "name": "multi_agent", "description": "Agents.", "tools": [
                {"type": "function", "name": "spawn", "description": "", "strict": false, "parameters": {"type": "object", "properties": {}}}]},
            {"type": "web_search", "external_web_access": false},
        ],
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Permissions."}]},
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Skills."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Read it."}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "I read."}], "encrypted_content": null},
            {"type": "function_call", "id": "fc_1", "name": "exec_command", "arguments": "{\"cmd\":\"cat a\"}", "call_id": "call_1"},
            {"type": "function_call_output", "call_id": "call_1", "output": "Output:\nhello"},
        ],
    });
    let mut known = codex.clone();
    known["model"] = json!("scripted");
    let last = check(&stream(&client, known).await);
    let text = text_of(&last["output"][0]);
    for part in [
        "Permissions.\n\nSkills.",
        "I read.",
        "functions.exec_command to=assistant",
        "Output:\nhello",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let sdk = json!({
        "model": "scripted", "temperature": null, "max_output_tokens": 512, "stream": true, "store": true,
        "input": [{"role": "system", "content": "Be."}, {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
        "text": {"format": {"type": "text"}, "verbosity": "medium"}, "top_logprobs": 2, "include": null,
        "tools": [{"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}}],
        "tool_choice": "auto", "metadata": null, "service_tier": "flex", "user": null,
    });
    check(&stream(&client, sdk).await);
}
