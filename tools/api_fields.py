"""Every request field of OpenAI's published schema, as JSON: api_fields.py > fields.json

The package `openai` is generated from OpenAI's own OpenAPI description; its `types` hold every request as a TypedDict.
This walks those of /v1/completions, /v1/chat/completions and /v1/responses and prints for each endpoint a list of

    {"path": "tools<function>.function.name", "types": ["string"], "values": [], "required": true}

A path is written as docs/api.md writes it: a dot before a field of an object, `<variant>` behind a field that holds objects
of several kinds (told apart by `type`, or `role` for messages), whether one or a list of them. `types` are JSON's, `values`
those of a closed list of strings. A variant's own entry has the type "object" and no values.
"""

import json
import sys
import types
import typing

from openai.types import completion_create_params as completions
from openai.types import responses
from openai.types.chat import completion_create_params as chat

ENDPOINTS = {
    "POST /v1/completions": completions.CompletionCreateParams,
    "POST /v1/chat/completions": chat.CompletionCreateParams,
    "POST /v1/responses": responses.response_create_params.ResponseCreateParams,
    "POST /v1/responses/input_tokens": responses.input_token_count_params.InputTokenCountParams,
    "GET /v1/responses/{id}": responses.response_retrieve_params.ResponseRetrieveParams,
    "GET /v1/responses/{id}/input_items": responses.input_item_list_params.InputItemListParams,
}
SCALARS = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def members(hint):
    """The alternatives of a type, unions flattened and wrappers taken off."""
    origin = typing.get_origin(hint)
    if origin in (typing.Required, typing.NotRequired, typing.Annotated):
        return members(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return [m for arg in typing.get_args(hint) for m in members(arg)]
    return [hint]


def fields(objects):
    """Name, type and necessity of the fields of one or several TypedDicts, those of the same name joined."""
    found = {}
    for object_type in objects:
        for name, hint in typing.get_type_hints(object_type, include_extras=True).items():
            entry = found.setdefault(name, ([], []))
            entry[0].extend(members(hint))
            entry[1].append(typing.get_origin(hint) is typing.Required)
    return {
        name: (hints, all(required) and len(required) == len(objects)) for name, (hints, required) in found.items()
    }


def variant(object_type):
    """What tells this object from others of its union: its `type`, else its `role`, else nothing."""
    for key in ("type", "role"):
        if key in typing.get_type_hints(object_type):
            hint = typing.get_type_hints(object_type)[key]
            values = [v for m in members(hint) if typing.get_origin(m) is typing.Literal for v in typing.get_args(m)]
            if values:
                return key, values
    return None, []


def walk(path, hints, required, out, above):
    """Appends the field at `path` and, below it, the fields of the objects that it can hold."""
    json_types, values, objects = [], [], []

    def add(kind):
        if kind not in json_types:
            json_types.append(kind)

    def look(hint, inside):
        """One alternative; `inside` a list its own JSON type is the list's."""
        origin = typing.get_origin(hint)
        if hasattr(hint, "__required_keys__"):
            objects.append(hint)
            if not inside:
                add("object")
        elif origin is typing.Literal:
            for value in typing.get_args(hint):
                if not inside:
                    add(SCALARS[type(value)])
                if isinstance(value, str) and value not in values:
                    values.append(value)
        elif hint is dict or origin is dict:
            if not inside:
                add("object")
        elif hint in SCALARS:
            # An open string beside a closed list (a model's name) makes the list a mere suggestion.
            if hint is str:
                open_string.append(True)
            if not inside:
                add(SCALARS[hint])
        elif hint in (object, typing.Any):
            if not inside:
                add("any")
        else:
            args = typing.get_args(hint)
            if not args:
                sys.exit(f"{path}: cannot tell what {hint} is")
            if not inside:
                add("array")
            for m in members(args[0]):
                look(m, True)

    open_string = []
    for hint in hints:
        look(hint, False)
    if open_string:
        values = []
    out.append({"path": path, "types": json_types, "values": values, "required": required})
    kinds = {}
    for object_type in objects:
        key, names = variant(object_type)
        for name in names or [None]:
            kinds.setdefault(name, []).append((object_type, key))
    for name, group in kinds.items():
        below = f"{path}<{name}>" if name is not None else path
        if below != path:
            out.append({"path": below, "types": ["object"], "values": [], "required": False})
        inner = [t for t, _ in group if t not in above]
        for field, (field_hints, needed) in fields(inner).items():
            if field == group[0][1]:
                continue  # the variant's own name
            walk(f"{below}.{field}", field_hints, needed, out, above | set(inner))


def main():
    result = {}
    for endpoint, params in ENDPOINTS.items():
        out = []
        for name, (hints, required) in fields(members(params)).items():
            walk(name, hints, required, out, frozenset())
        seen = {}
        for entry in out:
            seen.setdefault(entry["path"], entry)
        result[endpoint] = list(seen.values())
    json.dump(result, sys.stdout, indent=1)


main()
