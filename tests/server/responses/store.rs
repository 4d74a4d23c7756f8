//! Stored responses: chains, listings, references, owners, limits.

use super::*;
use axum::http::{self, Method};
use std::sync::Mutex;

const ANSWER: &str = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final\
                      <|message|>Hello.<|return|>";

fn id(response: &Value) -> &str {
    response["id"].as_str().expect("an id")
}

#[tokio::test]
async fn a_stored_response_can_be_read_listed_and_deleted() {
    let client = says(ANSWER);
    let input = json!(["a", "b", "c"].map(|text| json!({"role": "user", "content": text})));
    let response = respond(&client, json!({"input": input})).await;
    let path = format!("/v1/responses/{}", id(&response));
    assert_eq!(client.get(&path).await.json(), response);

    let list = |query: &'static str| client_list(&client, &path, query);
    let texts = |list: &Value| -> Vec<String> {
        let items = list["data"].as_array().expect("items").iter();
        items.map(text_of).collect()
    };
    let all = list("").await;
    assert_eq!(texts(&all), ["c", "b", "a"]);
    assert_eq!(
        (&all["has_more"], &all["object"]),
        (&json!(false), &json!("list"))
    );
    assert_eq!(all["first_id"], all["data"][0]["id"]);
    assert_eq!(all["last_id"], all["data"][2]["id"]);
    serde_json::from_value::<async_openai::types::responses::ResponseItemList>(all.clone())
        .expect("async-openai reads it");
    assert_eq!(texts(&list("?order=asc").await), ["a", "b", "c"]);
    let page = list("?order=asc&limit=2").await;
    assert_eq!(
        (texts(&page), &page["has_more"]),
        (vec!["a".into(), "b".into()], &json!(true))
    );
    let after = page["last_id"].as_str().expect("an id");
    let rest = client_list(&client, &path, &format!("?order=asc&after={after}")).await;
    assert_eq!(
        (texts(&rest), &rest["has_more"]),
        (vec!["c".into()], &json!(false))
    );
    for (query, param) in [
        ("?limit=0", "limit"),
        ("?limit=101", "limit"),
        ("?limit=x", "limit"),
        ("?order=up", "order"),
        ("?after=msg_none", "after"),
    ] {
        let answer = client.get(&format!("{path}/input_items{query}")).await;
        answer.is_error(400).expect(query);
        assert_eq!(answer.json()["error"]["param"], param, "{query}");
    }

    // A client that goes on from a response and sends its items again, ids and all.
    let mut items = all["data"].as_array().expect("items").clone();
    items.push(json!({"type": "item_reference", "id": items[0]["id"]}));
    let twice = json!({"input": items, "previous_response_id": id(&response)});
    let twice = respond(&client, twice).await;
    let mut after = String::new();
    for n in 1.. {
        let path = format!("/v1/responses/{}", id(&twice));
        let page = client_list(&client, &path, &format!("?order=asc&limit=1{after}")).await;
        after = format!("&after={}", page["last_id"].as_str().expect("an id"));
        assert_eq!(page["has_more"], n < 3 + 2 + 3 + 1, "page {n}");
        if page["has_more"] == false {
            break;
        }
    }

    client
        .post(&format!("{path}/cancel"), &json!({}))
        .await
        .is_error(400)
        .expect("not in the background");
    client
        .get(&format!("{path}?stream=true"))
        .await
        .is_error(400)
        .expect("not in the background");
    let gone = client.send(Method::DELETE, &path).await;
    assert_eq!(
        gone.json(),
        json!({"id": id(&response), "object": "response", "deleted": true})
    );
    for (method, path) in [
        (Method::GET, path.clone()),
        (Method::DELETE, path.clone()),
        (Method::GET, format!("{path}/input_items")),
        (Method::POST, format!("{path}/cancel")),
    ] {
        let answer = client.send(method, &path).await;
        answer.is_error(404).expect(&path);
        assert_eq!(answer.json()["error"]["code"], "response_not_found");
    }
}

async fn client_list(client: &Client, path: &str, query: &str) -> Value {
    let answer = client.get(&format!("{path}/input_items{query}")).await;
    assert_eq!(answer.status, 200, "{answer}");
    answer.json()
}

#[tokio::test]
async fn what_is_not_to_be_stored_is_not() {
    let client = says(ANSWER);
    for stream in [false, true] {
        let response = match stream {
            true => check(&super::stream(&client, json!({"input": "?", "store": false})).await),
            false => respond(&client, json!({"input": "?", "store": false})).await,
        };
        let path = format!("/v1/responses/{}", id(&response));
        client.get(&path).await.is_error(404).expect("not stored");
        let next = json!({"input": "?", "previous_response_id": id(&response)});
        let answer = create(&client, next).await;
        answer.is_error(400).expect("not stored");
        assert_eq!(
            answer.json()["error"]["code"],
            "previous_response_not_found"
        );
        assert_eq!(answer.json()["error"]["param"], "previous_response_id");
    }
}

/// A model that calls `f` where the user asks for it, and the prompts that it was asked. It is asked
/// each prompt once: the second time the script remembers.
fn lengthy() -> (Client, Arc<Mutex<Vec<String>>>) {
    let prompts = Arc::new(Mutex::new(Vec::new()));
    let seen = prompts.clone();
    let client = client(move |prompt| {
        seen.lock().expect("a lock").push(prompt.text.clone());
        let last = prompt.text.rsplit("<|start|>user").next();
        let asked = last.is_some_and(|last| last.contains("Please call"));
        match asked && prompt.results == 0 {
            true => "<|channel|>analysis<|message|>I need f.<|end|><|start|>assistant<|channel|>commentary\
                     <|message|>One moment.<|end|><|start|>assistant to=functions.f<|channel|>commentary \
                     <|constrain|>json<|message|>{\"a\":1}<|call|>",
            false => "<|channel|>analysis<|message|>Count.<|end|><|start|>assistant<|channel|>final<|message|>\
                      Done.<|return|>",
        }
        .to_owned()
    });
    (client, prompts)
}

#[tokio::test]
async fn a_chain_has_the_prompt_of_the_whole_conversation() {
    let (client, prompts) = lengthy();
    let tools = json!([{"type": "function", "name": "f", "parameters": {"type": "object"}}]);
    let steps = [
        json!("Hello."),
        json!([{"role": "user", "content": "Please call f."}]),
        json!([{"type": "function_call_output", "call_id": "CALL", "output": "fine"}]),
        json!([{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
               {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And now?"}]}]),
    ];
    let mut whole: Vec<Value> = Vec::new();
    let mut previous = Value::Null;
    let mut call = String::new();
    for (i, step) in steps.iter().enumerate() {
        let step = step.to_string().replace("CALL", &call);
        let step: Value = serde_json::from_str(&step).expect("JSON");
        let common = json!({"tools": tools, "instructions": format!("Number {i}.")});
        let mut chained = common.clone();
        chained["input"] = step.clone();
        chained["previous_response_id"] = previous.clone();
        match step {
            Value::Array(items) => whole.extend(items),
            text => whole.push(json!({"role": "user", "content": text})),
        }
        let mut sent = common;
        sent["input"] = json!(whole);
        sent["store"] = json!(false);
        let chained = respond(&client, chained).await;
        let sent = respond(&client, sent).await;
        assert_eq!(
            chained["usage"]["input_tokens"], sent["usage"]["input_tokens"],
            "step {i}"
        );
        let seen = prompts.lock().expect("a lock").clone();
        assert_eq!(seen.len(), i + 1, "two prompts in step {i}: {seen:#?}");
        // Only the newest instructions; the reasoning of this turn, not of those before.
        let last = &seen[i];
        assert_eq!(last.matches("Number").count(), 1, "{last}");
        assert!(last.contains(&format!("Number {i}.")), "{last}");
        assert_eq!(last.contains("I need f."), i == 2, "{last}");
        assert!(!last.contains("Count."), "{last}");
        let output = chained["output"].as_array().expect("items");
        let made = output.iter().find_map(|item| item["call_id"].as_str());
        call = made.unwrap_or(&call).to_owned();
        whole.extend(output.iter().cloned());
        assert_eq!(chained["previous_response_id"], previous);
        previous = chained["id"].clone();
    }
    // The last one's input are all the items before its output.
    let path = format!("/v1/responses/{}", previous.as_str().expect("an id"));
    let list = client_list(&client, &path, "?order=asc&limit=100").await;
    let kinds: Vec<&str> = list["data"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| item["type"].as_str().expect("a type"))
        .collect();
    assert_eq!(
        kinds,
        [
            "message",
            "reasoning",
            "message",
            "message",
            "reasoning",
            "message",
            "function_call",
            "function_call_output",
            "reasoning",
            "message",
            "message",
            "message"
        ]
    );
}

#[tokio::test]
async fn references_stand_for_stored_items() {
    let (client, prompts) = lengthy();
    let tools = json!([{"type": "function", "name": "f", "parameters": {"type": "object"}}]);
    let first = respond(&client, json!({"input": "Please call.", "tools": tools})).await;
    let output = first["output"].as_array().expect("items");
    let result =
        json!({"type": "function_call_output", "call_id": output[2]["call_id"], "output": "fine"});
    let user = json!({"role": "user", "content": "Please call."});
    let mut whole = vec![user.clone()];
    let mut referred = vec![user];
    for item in output {
        whole.push(item.clone());
        referred.push(json!({"type": "item_reference", "id": item["id"]}));
    }
    whole.push(result.clone());
    referred.push(result);
    respond(&client, json!({"input": whole, "tools": tools})).await;
    respond(&client, json!({"input": referred, "tools": tools})).await;
    let seen = prompts.lock().expect("a lock").clone();
    assert_eq!(seen.len(), 2, "{seen:#?}");
    assert!(seen[1].contains("I need f."), "{seen:#?}");
    let unknown = create(
        &client,
        json!({"input": [{"type": "item_reference", "id": "rs_none"}]}),
    )
    .await;
    unknown.is_error(404).expect("unknown");
    assert_eq!(unknown.json()["error"]["param"], "input[0]");
}

#[tokio::test]
async fn a_response_belongs_to_the_key_that_made_it() {
    let settings = Settings {
        api_keys: vec!["first".into(), "second".into()],
        ..Settings::default()
    };
    let client = client_with(settings, |_| ANSWER.to_owned());
    let ask = |key: &'static str, method: Method, path: String, body: Value| {
        let client = &client;
        async move {
            let request = http::Request::builder()
                .method(method)
                .uri(path)
                .header("authorization", format!("Bearer {key}"))
                .header("content-type", "application/json");
            client
                .ask(request.body(body.to_string().into()).expect("a request"))
                .await
        }
    };
    let made = ask(
        "first",
        Method::POST,
        "/v1/responses".into(),
        json!({"input": "?"}),
    )
    .await
    .json();
    let path = format!("/v1/responses/{}", id(&made));
    ask("second", Method::GET, path.clone(), Value::Null)
        .await
        .is_error(404)
        .expect("another's");
    ask("second", Method::DELETE, path.clone(), Value::Null)
        .await
        .is_error(404)
        .expect("another's");
    let chained = json!({"input": "?", "previous_response_id": id(&made)});
    let answer = ask("second", Method::POST, "/v1/responses".into(), chained).await;
    answer.is_error(400).expect("another's");
    let reference = json!({"input": [{"type": "item_reference", "id": made["output"][0]["id"]}]});
    let answer = ask("second", Method::POST, "/v1/responses".into(), reference).await;
    answer.is_error(404).expect("another's");
    assert_eq!(
        ask("first", Method::GET, path, Value::Null).await.json(),
        made
    );
}

#[tokio::test]
async fn the_least_recently_used_make_room() {
    let settings = Settings {
        max_stored_responses: 3,
        ..Settings::default()
    };
    let client = client_with(settings, |_| ANSWER.to_owned());
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(id(&respond(&client, json!({"input": "?"})).await).to_owned());
    }
    let get = |id: &str| {
        let path = format!("/v1/responses/{id}");
        let client = &client;
        async move { client.get(&path).await.status }
    };
    assert_eq!(get(&ids[0]).await, 200);
    ids.push(id(&respond(&client, json!({"input": "?"})).await).to_owned());
    let mut found = Vec::new();
    for id in &ids {
        found.push(get(id).await);
    }
    assert_eq!(found, [200, 404, 200, 200]);
}

#[tokio::test]
async fn bytes_and_age_are_bounded() {
    let settings = Settings {
        max_stored_bytes: 100_000,
        ..Settings::default()
    };
    let client = client_with(settings, |_| ANSWER.to_owned());
    let mut ids = Vec::new();
    for _ in 0..4 {
        let response = respond(&client, json!({"input": "x".repeat(30_000)})).await;
        ids.push(id(&response).to_owned());
    }
    let mut found = Vec::new();
    for id in &ids {
        found.push(client.get(&format!("/v1/responses/{id}")).await.status);
    }
    assert_eq!(found.first(), Some(&404), "{found:?}");
    assert_eq!(found.last(), Some(&200), "{found:?}");

    let settings = Settings {
        stored_age: std::time::Duration::ZERO,
        ..Settings::default()
    };
    let client = client_with(settings, |_| ANSWER.to_owned());
    let response = respond(&client, json!({"input": "?"})).await;
    let path = format!("/v1/responses/{}", id(&response));
    client.get(&path).await.is_error(404).expect("too old");
}
