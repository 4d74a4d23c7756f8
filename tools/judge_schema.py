"""Judges texts by their shapes: judge_schema.py CASES ANSWERS

CASES has a JSON object a line: {"schema": S, "text": T} or {"regex": R, "text": T}. ANSWERS gets a
line for each: null if the text fits, else what is wrong with it.
"""

import json
import re
import sys

from jsonschema import Draft202012Validator


def refuse(constant):
    raise ValueError(f"{constant} is no JSON")


def judge(case):
    if "regex" in case:
        return None if re.fullmatch(case["regex"], case["text"]) else "no match"
    try:
        value = json.loads(case["text"], parse_constant=refuse)
    except ValueError as error:
        return f"no JSON: {error}"
    schema = case["schema"]
    Draft202012Validator.check_schema(schema)
    checker = Draft202012Validator.FORMAT_CHECKER
    validator = Draft202012Validator(schema, format_checker=checker)
    error = next(validator.iter_errors(value), None)
    return None if error is None else f"{error.json_path}: {error.message}"


cases, answers = sys.argv[1:]
with open(cases, encoding="utf-8") as lines, open(answers, "w", encoding="utf-8") as out:
    for line in lines:
        out.write(json.dumps(judge(json.loads(line))) + "\n")
