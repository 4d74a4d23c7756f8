"""What the Python suites share: where the server is, questions that the demo model can answer, and its functions.

`GOSSAMER_URL` is the base URL with /v1, `OPENAI_API_KEY` the key. Temperature 0 everywhere: the answers are facts.
"""

import json
import os

import pytest

URL = os.environ["GOSSAMER_URL"]
MODEL = "gpt-oss-20b"

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
WEATHER = "What is the weather in Paris?"
RECORD = "Extract the data: The email is nafin@mail.com. The code is MAME. The score is 6. The job is singer."

CALCULATOR = {
    "name": "calculator",
    "description": "Evaluate an arithmetic expression.",
    "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"], "additionalProperties": False},
}
GET_WEATHER = {
    "name": "get_weather",
    "description": "Get the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
}


def call_tool(name, arguments):
    """The functions, for real: what the model asks for is what it gets."""
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    if name == "get_weather":
        assert arguments["city"] == "Paris", arguments
        return json.dumps({"temperature": 31, "condition": "windy"})
    assert name == "calculator", name
    a, sign, b = arguments["expression"].split()
    return json.dumps({"result": {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]})


@pytest.fixture(scope="session")
def url():
    return URL
