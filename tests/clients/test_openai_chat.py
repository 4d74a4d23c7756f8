"""openai-python against chat completions, completions and models."""

import asyncio
import json

import openai
import pytest
from conftest import CALCULATOR, FRANCE, GET_WEATHER, MODEL, PARIS, RECORD, SUM, URL, WEATHER, call_tool
from pydantic import BaseModel

client = openai.OpenAI(base_url=URL, max_retries=0, timeout=60)
TOOLS = [{"type": "function", "function": f} for f in (CALCULATOR, GET_WEATHER)]


class Record(BaseModel):
    score: int
    job: str
    email: str
    code: str


def chat(messages=SUM, **more):
    return client.chat.completions.create(model=MODEL, messages=messages, temperature=0, **more)


def test_models_are_listed_and_found_by_every_name():
    names = [model.id for model in client.models.list()]
    assert len(names) == 1
    for name in (names[0], "gpt-oss-20b", "openai/gpt-oss-20b", "gpt-oss:20b"):
        assert client.models.retrieve(name).object == "model"
        assert chat(max_tokens=1).model == names[0]


def test_an_answer_with_its_reasoning_and_usage():
    answer = chat()
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("42", "stop")
    assert choice.message.refusal is None and choice.message.tool_calls is None
    assert choice.message.reasoning and choice.message.reasoning == choice.message.reasoning_content
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens
    assert chat(reasoning_effort="none", messages=[{"role": "user", "content": FRANCE}]).choices[0].message.content == PARIS


def test_a_stream_is_the_answer_in_pieces():
    whole = chat(seed=1)
    chunks = list(chat(seed=1, stream=True, stream_options={"include_usage": True}))
    *deltas, last = chunks
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in deltas)
    assert len({(c.id, c.created, c.model, c.system_fingerprint) for c in chunks}) == 1
    assert [c.choices[0].delta.role for c in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert [c.choices[0].finish_reason for c in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert "".join(c.choices[0].delta.content or "" for c in deltas) == whole.choices[0].message.content
    pieces = [getattr(c.choices[0].delta, "reasoning_content", None) for c in deltas]
    assert "".join(piece or "" for piece in pieces) == whole.choices[0].message.reasoning_content
    # Clients that don't ask for usage index choices[0].
    assert all(len(chunk.choices) == 1 for chunk in chat(stream=True))


def test_the_stream_helper():
    with client.chat.completions.stream(model=MODEL, messages=SUM, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "42"
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)


@pytest.mark.parametrize("question, tool, says", [(WEATHER, "get_weather", "31 degrees"), ("Use the calculator: 8651 * 3", "calculator", "25953")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_loop(question, tool, says, stream):
    messages = [{"role": "user", "content": question}]
    for calls in range(2):
        if stream:
            with client.chat.completions.stream(model=MODEL, messages=messages, tools=TOOLS, temperature=0) as events:
                choice = events.get_final_completion().choices[0]
        else:
            choice = chat(messages, tools=TOOLS).choices[0]
        messages.append(choice.message.to_dict())
        for call in choice.message.tool_calls or []:
            assert call.function.name == tool and choice.finish_reason == "tool_calls" and not choice.message.content
            messages.append({"role": "tool", "tool_call_id": call.id, "content": call_tool(call.function.name, call.function.arguments)})
        if choice.finish_reason == "stop":
            break
    assert calls == 1 and says in choice.message.content


def test_deltas_of_a_call_name_it_once():
    deltas = [c.choices[0].delta for c in chat([{"role": "user", "content": WEATHER}], tools=TOOLS, stream=True)]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert all(call.index == 0 for call in calls) and len(calls) > 2
    assert calls[0].id and calls[0].type == "function" and calls[0].function.name == "get_weather" and calls[0].function.arguments == ""
    assert all(call.id is None and call.function.name is None for call in calls[1:])
    assert not deltas[0].content


def test_tool_choice():
    weather = [{"role": "user", "content": WEATHER}]
    assert chat(weather, tools=TOOLS, tool_choice="none").choices[0].message.tool_calls is None
    for choice, name in (("required", None), ({"type": "function", "function": {"name": "calculator"}}, "calculator")):
        answer = chat(SUM, tools=TOOLS, tool_choice=choice).choices[0]
        assert answer.finish_reason == "tool_calls"
        assert name in (None, answer.message.tool_calls[0].function.name)
    with pytest.raises(openai.BadRequestError):
        chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "absent"}})


def test_parse_gives_objects():
    parsed = client.chat.completions.parse(model=MODEL, messages=[{"role": "user", "content": RECORD}], response_format=Record, temperature=0)
    assert parsed.choices[0].message.parsed == Record(score=6, job="singer", email="nafin@mail.com", code="MAME")


def test_parse_gives_arguments():
    class GetWeather(BaseModel):
        city: str

    tool = openai.pydantic_function_tool(GetWeather, name="get_weather", description="Get the weather of a city.")
    parsed = client.chat.completions.parse(model=MODEL, messages=[{"role": "user", "content": WEATHER}], tools=[tool], temperature=0)
    assert parsed.choices[0].message.tool_calls[0].function.parsed_arguments == GetWeather(city="Paris")


def test_json_object_and_extensions():
    # The demo model knows no JSON without a schema, and may talk in a string until it is cut.
    cut = chat(response_format={"type": "json_object"}, max_tokens=100).choices[0]
    assert cut.message.content.startswith("{") and (cut.finish_reason == "length" or isinstance(json.loads(cut.message.content), dict))
    text = chat(extra_body={"response_format": {"type": "regex", "pattern": "[a-c]{5}"}}).choices[0].message.content
    assert len(text) == 5 and set(text) <= set("abc")
    text = chat(extra_body={"response_format": {"type": "lark", "grammar": 'start: "yes" | "no"'}}).choices[0].message.content
    assert text in ("yes", "no")


def test_choices_logprobs_stop_and_length():
    answer = chat([{"role": "user", "content": FRANCE}], n=3, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert choice.message.content == PARIS
        assert "".join(token.token for token in choice.logprobs.content) == PARIS
        assert all(token.logprob <= 0 and token.top_logprobs[0].token == token.token for token in choice.logprobs.content)
    stopped = chat([{"role": "user", "content": FRANCE}], stop=[" of Fra"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("The capital", "stop")
    cut = chat(max_completion_tokens=3).choices[0]
    assert cut.finish_reason == "length" and cut.message.content is None
    assert chat(seed=7, top_p=0.9).choices[0].message.content == "42"


def test_completions():
    answer = client.completions.create(model=MODEL, prompt="Hello", max_tokens=5, temperature=0, logprobs=2, echo=True)
    choice = answer.choices[0]
    assert choice.text.startswith("Hello") and "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None and answer.usage.completion_tokens <= 5
    chunks = list(client.completions.create(model=MODEL, prompt="Hello", max_tokens=5, temperature=0, stream=True))
    assert "Hello" + "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    several = client.completions.create(model=MODEL, prompt=["Hello", "The capital"], n=2, max_tokens=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    by_ids = client.completions.create(model=MODEL, prompt=[[65, 66], [67]], max_tokens=1)
    assert len(by_ids.choices) == 2 and by_ids.usage.prompt_tokens == 3


@pytest.mark.parametrize("kind, code, param, request_", [
    (openai.NotFoundError, "model_not_found", "model", {"model": "gpt-7"}),
    (openai.BadRequestError, "invalid_value", "temperature", {"temperature": 3}),
    (openai.BadRequestError, "invalid_type", "temperature", {"temperature": "hot"}),
    (openai.BadRequestError, "invalid_value", "messages", {"messages": []}),
    (openai.BadRequestError, "unsupported_parameter", "messages[0].content[0]", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]}),
    (openai.BadRequestError, "context_length_exceeded", "messages", {"messages": [{"role": "user", "content": "one 2 three " * 60_000}]}),
])
def test_errors_are_the_exceptions_that_openai_has_for_them(kind, code, param, request_):
    with pytest.raises(kind) as error:
        client.chat.completions.create(**{"model": MODEL, "messages": SUM, **request_})
    assert (error.value.code, error.value.param, error.value.type) == (code, param, error.value.body["type"])
    assert error.value.body["message"]


def test_a_wrong_key_is_an_authentication_error():
    with pytest.raises(openai.AuthenticationError) as error:
        client.with_options(api_key="sk-wrong").models.list()
    assert error.value.code == "invalid_api_key"


def test_streams_side_by_side_some_of_them_abandoned():
    async def ask(a, b, leave):
        stream = await aclient.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": f"What is {a} + {b}?"}], temperature=0, stream=True)
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if leave:
                await stream.close()
                return None
        return text

    async def all_of_them():
        async with aclient:
            return await asyncio.gather(*(ask(a, b, (a + b) % 3 == 0) for a in range(10, 14) for b in range(20, 24)))

    aclient = openai.AsyncOpenAI(base_url=URL, max_retries=0, timeout=60)
    sums = [None if (a + b) % 3 == 0 else str(a + b) for a in range(10, 14) for b in range(20, 24)]
    assert asyncio.run(all_of_them()) == sums
