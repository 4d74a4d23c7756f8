"""LiteLLM, as people point it at an OpenAI-compatible server: `openai/NAME` and a base URL."""

import asyncio
import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else importing it asks the network for a price list

import litellm
import pytest
from conftest import CALCULATOR, FRANCE, GET_WEATHER, MODEL, PARIS, RECORD, SUM, URL, WEATHER, call_tool

TO = {"model": f"openai/{MODEL}", "api_base": URL, "temperature": 0, "num_retries": 0, "timeout": 60}
TOOLS = [{"type": "function", "function": f} for f in (CALCULATOR, GET_WEATHER)]


def test_an_answer_and_its_reasoning():
    message = litellm.completion(messages=SUM, **TO).choices[0].message
    assert message.content == "42" and message.reasoning_content


def test_a_stream():
    chunks = list(litellm.completion(messages=SUM, stream=True, stream_options={"include_usage": True}, **TO))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "42"
    assert "".join(getattr(c.choices[0].delta, "reasoning_content", None) or "" for c in chunks if c.choices)
    whole = litellm.stream_chunk_builder(chunks, messages=SUM)
    assert whole.choices[0].message.content == "42" and whole.usage.total_tokens > whole.usage.completion_tokens > 0


def test_many_at_once():
    async def all_of_them():
        asked = [[{"role": "user", "content": f"What is {n} + 25?"}] for n in range(10, 16)]
        return await asyncio.gather(*(litellm.acompletion(messages=messages, **TO) for messages in asked))

    answers = [answer.choices[0].message.content for answer in asyncio.run(all_of_them())]
    assert answers == [str(n + 25) for n in range(10, 16)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_loop(stream):
    def ask(messages):
        answer = litellm.completion(messages=messages, tools=TOOLS, stream=stream, **TO)
        return (litellm.stream_chunk_builder(list(answer)) if stream else answer).choices[0]

    messages = [{"role": "user", "content": WEATHER}]
    choice = ask(messages)
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    result = call_tool(call.function.name, call.function.arguments)
    messages += [choice.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": result}]
    assert "31 degrees" in ask(messages).message.content


def test_a_schema():
    fields = {"score": {"type": "integer"}, "job": {"type": "string"}, "email": {"type": "string"}, "code": {"type": "string"}}
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    shape = {"type": "json_schema", "json_schema": {"name": "record", "strict": True, "schema": schema}}
    answer = litellm.completion(messages=[{"role": "user", "content": RECORD}], response_format=shape, **TO)
    assert json.loads(answer.choices[0].message.content) == {"score": 6, "job": "singer", "email": "nafin@mail.com", "code": "MAME"}


def test_responses():
    assert litellm.responses(input=FRANCE, **TO).output_text == PARIS
    events = list(litellm.responses(input=FRANCE, stream=True, **TO))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == PARIS


def test_text_completion():
    answer = litellm.text_completion(prompt="Hello", max_tokens=4, **{**TO, "model": f"text-completion-openai/{MODEL}"})
    assert isinstance(answer.choices[0].text, str) and 0 < answer.usage.completion_tokens <= 4


def test_exceptions():
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=[], **TO)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=SUM, **{**TO, "model": "openai/gpt-7"})
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=[{"role": "user", "content": "one 2 three " * 60_000}], **TO)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(messages=SUM, api_key="sk-wrong", **TO)
