"""schemathesis: requests made from /openapi.json, valid ones and broken ones, by the hundred.

Whatever is sent, the answer is none of a 5xx, has a status and a content type that the description names, and, when it is an
error, it is OpenAI's error object.
"""

import collections
import os

import pytest
import schemathesis
from conftest import URL
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

HEADERS = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
ROOT = URL.removesuffix("/v1")
schema = schemathesis.openapi.from_url(f"{ROOT}/openapi.json", headers=HEADERS)
statuses = collections.Counter()


def error_object(ctx, response, case):
    """`code` is text or null, never a number; a body that is no JSON would raise here."""
    if response.status_code < 400:
        return
    error = response.json()["error"]
    assert isinstance(error["message"], str) and error["message"], error
    assert isinstance(error["type"], str) and error["type"], error
    assert all(error[key] is None or isinstance(error[key], str) for key in ("param", "code")), error


@schema.parametrize()
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_every_request_has_a_proper_answer(case):
    response = case.call(headers=HEADERS, timeout=60)
    statuses[response.status_code] += 1
    case.validate_response(response, checks=[not_a_server_error, status_code_conformance, content_type_conformance, error_object])


@pytest.fixture(scope="module", autouse=True)
def enough_was_refused():
    """Refusals are what this is about: a suite that only sends what is welcome would test nothing."""
    yield
    refused = sum(count for status, count in statuses.items() if 400 <= status < 500)
    print(f"\nanswers by status: {dict(sorted(statuses.items()))}")
    assert refused >= 500, f"only {refused} refusals"
    assert statuses[200] >= 20, "nothing was welcome"
