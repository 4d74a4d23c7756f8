"""LangChain's ChatOpenAI, through chat completions and through responses."""

import pytest
from conftest import FRANCE, MODEL, PARIS, RECORD, URL, WEATHER, call_tool
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

pytestmark = pytest.mark.parametrize("responses", [False, True])


class Record(BaseModel):
    score: int
    job: str
    email: str
    code: str


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return call_tool("get_weather", {"city": city})


@tool
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression."""
    return call_tool("calculator", {"expression": expression})


def model(responses, **more):
    return ChatOpenAI(model=MODEL, base_url=URL, temperature=0, max_retries=0, timeout=60, use_responses_api=responses, **more)


def test_invoke(responses):
    answer = model(responses).invoke(FRANCE)
    assert answer.text == PARIS
    assert answer.usage_metadata["total_tokens"] == answer.usage_metadata["input_tokens"] + answer.usage_metadata["output_tokens"]
    if responses:
        assert any(block["type"] == "reasoning" for block in answer.content_blocks)


def test_stream(responses):
    chunks = list(model(responses, stream_usage=True).stream(FRANCE))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.text == PARIS and len(chunks) > 3 and whole.usage_metadata["output_tokens"] > 0


def test_batch(responses):
    answers = model(responses).batch([f"What is {n} + 25?" for n in range(30, 36)])
    assert [answer.text for answer in answers] == [str(n + 25) for n in range(30, 36)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_loop(responses, stream):
    bound = model(responses, streaming=stream).bind_tools([get_weather, calculator])
    messages = [HumanMessage(WEATHER)]
    answer = bound.invoke(messages)
    [call] = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    messages += [answer, ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])]
    assert "31 degrees" in bound.invoke(messages).text


def test_tool_choice(responses):
    forced = model(responses).bind_tools([get_weather, calculator], tool_choice="calculator")
    assert [call["name"] for call in forced.invoke("What is 17 + 25?").tool_calls] == ["calculator"]


def test_structured_output_by_schema(responses):
    answer = model(responses).with_structured_output(Record, method="json_schema").invoke(RECORD)
    assert answer == Record(score=6, job="singer", email="nafin@mail.com", code="MAME")


def test_structured_output_by_function(responses):
    class get_weather(BaseModel):
        """Get the weather of a city."""
        city: str

    answer = model(responses).with_structured_output(get_weather, method="function_calling").invoke(WEATHER)
    assert answer == get_weather(city="Paris")


def test_text_completion(responses):
    if not responses:
        assert isinstance(OpenAI(model=MODEL, base_url=URL, max_tokens=4, max_retries=0).invoke("Hello"), str)
