"""openai-python against the Responses API: whole and streamed, chained, stored, in the background."""

import time

import openai
import pytest
from conftest import CALCULATOR, FRANCE, GET_WEATHER, MODEL, PARIS, RECORD, URL, WEATHER, call_tool
from pydantic import BaseModel

client = openai.OpenAI(base_url=URL, max_retries=0, timeout=60)
TOOLS = [{"type": "function", "strict": False, **f} for f in (CALCULATOR, GET_WEATHER)]


class Record(BaseModel):
    score: int
    job: str
    email: str
    code: str


def create(text="What is 17 + 25?", **more):
    return client.responses.create(model=MODEL, input=text, temperature=0, **more)


def test_an_answer():
    response = create(metadata={"a": "b"}, instructions="Be brief.")
    assert response.output_text == "42" and response.status == "completed" and response.error is None
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].type == "reasoning_text" and response.output[0].content[0].text
    assert response.metadata == {"a": "b"} and response.instructions == "Be brief."
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens
    assert usage.input_tokens_details.cached_tokens <= usage.input_tokens


def test_every_event_of_a_stream_in_order():
    events = list(create(stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if not event.type.endswith(".delta")]
    assert [kind.removeprefix("response.") for kind in kinds] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.done", "content_part.done", "output_item.done",
        "completed"]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == "42"
    assert events[0].response.output == [] and events[0].response.id == events[-1].response.id


def test_the_stream_helper_and_its_final_response():
    with client.responses.stream(model=MODEL, input=FRANCE, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == PARIS


def test_parse():
    parsed = client.responses.parse(model=MODEL, input=RECORD, text_format=Record, temperature=0)
    assert parsed.output_parsed == Record(score=6, job="singer", email="nafin@mail.com", code="MAME")
    with client.responses.stream(model=MODEL, input=RECORD, text_format=Record, temperature=0) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chained", [False, True])
def test_a_tool_loop(chained, stream):
    def ask(items, **more):
        if not stream:
            return create(items, tools=TOOLS, **more)
        with client.responses.stream(model=MODEL, input=items, tools=TOOLS, temperature=0, **more) as events:
            return events.get_final_response()

    first = ask([{"role": "user", "content": WEATHER}])
    call = next(item for item in first.output if item.type == "function_call")
    assert call.name == "get_weather" and call.status == "completed"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": call_tool(call.name, call.arguments)}
    if chained:
        last = ask([result], previous_response_id=first.id)
    else:
        last = ask([{"role": "user", "content": WEATHER}, *(item.to_dict() for item in first.output), result], store=False)
    assert "31 degrees" in last.output_text and "windy" in last.output_text


def test_arguments_stream():
    events = list(create(WEATHER, tools=TOOLS, stream=True))
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta") == done.arguments
    added = [event.item for event in events if event.type == "response.output_item.added" and event.item.type == "function_call"]
    assert [item.arguments for item in added] == [""]


def test_a_conversation_by_previous_response_id():
    first = create("Hello, my name is Nokave.")
    assert first.output_text == "Nice to meet you, Nokave!"
    second = create("What is my name?", previous_response_id=first.id)
    assert "Nokave" in second.output_text and second.previous_response_id == first.id
    assert second.usage.input_tokens_details.cached_tokens > 0


def test_stored_listed_deleted():
    response = create([{"role": "user", "content": "What is 1 + 2?"}])
    assert client.responses.retrieve(response.id).output_text == response.output_text == "3"
    items = list(client.responses.input_items.list(response.id))
    assert [item.content[0].text for item in items] == ["What is 1 + 2?"]
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError) as error:
        create("And now?", previous_response_id=response.id)
    assert error.value.code == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(create(store=False).id)


def test_in_the_background():
    response = create(background=True)
    assert response.status in ("queued", "in_progress", "completed")
    deadline = time.monotonic() + 60
    while response.status in ("queued", "in_progress") and time.monotonic() < deadline:
        response = client.responses.retrieve(response.id)
    assert response.status == "completed" and response.output_text == "42"
    # Too long to be over before it is cancelled.
    words = " ".join(["parrot", "gray", "camel"] * 400)
    long = create(f"Repeat exactly: {words}", background=True)
    assert client.responses.cancel(long.id).status == "cancelled"
    assert client.responses.retrieve(long.id).status == "cancelled"


def test_a_background_stream_is_taken_up_again():
    seen = []
    for event in create(background=True, stream=True):
        seen.append(event)
        if event.sequence_number == 3:
            break
    rest = list(client.responses.retrieve(seen[0].response.id, stream=True, starting_after=3))
    assert [event.sequence_number for event in seen + rest] == list(range(len(seen) + len(rest)))
    assert rest[-1].type == "response.completed" and rest[-1].response.output_text == "42"


def test_too_few_tokens_are_an_incomplete_response():
    response = create(max_output_tokens=16)
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    assert list(create(max_output_tokens=16, stream=True))[-1].type == "response.incomplete"


def test_input_tokens_are_counted_as_they_are_billed():
    count = client.responses.input_tokens.count(model=MODEL, input="What is 17 + 25?", tools=TOOLS)
    assert count.input_tokens == create(tools=TOOLS).usage.input_tokens


@pytest.mark.parametrize("kind, code, param, request_", [
    (openai.NotFoundError, "model_not_found", "model", {"model": "gpt-7"}),
    (openai.BadRequestError, "invalid_value", "temperature", {"temperature": 3}),
    (openai.BadRequestError, "invalid_type", "max_output_tokens", {"max_output_tokens": "many"}),
    (openai.BadRequestError, "unsupported_parameter", None, {"tools": [{"type": "file_search", "vector_store_ids": ["x"]}]}),
    (openai.BadRequestError, "context_length_exceeded", None, {"input": "one 2 three " * 60_000}),
])
def test_errors_are_the_exceptions_that_openai_has_for_them(kind, code, param, request_):
    with pytest.raises(kind) as error:
        client.responses.create(**{"model": MODEL, "input": "Hello", **request_})
    assert error.value.code == code and (param is None or error.value.param == param)
