"""Conversations to text, in the layout of the Harmony format.

A conversation is a dict:
  reasoning          "low" | "medium" | "high"
  date               "YYYY-MM-DD" or None
  commentary         whether `commentary` stands among the valid channels (always with tools)
  instructions       str or None
  tools              [{"name", "description", "parameters"}]
  response_format    {"name", "description" or None, "schema"} or None
  messages           [{"role", "content", "channel"?, "recipient"?, "name"?}], the last one not the assistant's
  target             the assistant messages that answer it, in the same form
The layout is that of the openai-harmony package; `check_layout.py` compares the two.
"""

import json

START, END, MESSAGE, CHANNEL = "<|start|>", "<|end|>", "<|message|>", "<|channel|>"
RETURN, CALL, CONSTRAIN = "<|return|>", "<|call|>", "<|constrain|>"


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _type(schema):
    if "enum" in schema:
        return " | ".join(json.dumps(v, ensure_ascii=False) for v in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return _type(schema.get("items", {})) + "[]"
    return {"string": "string", "integer": "number", "number": "number", "boolean": "boolean"}.get(kind, "any")


def _tool(tool):
    out = f"// {tool['description']}\n"
    properties = (tool.get("parameters") or {}).get("properties") or {}
    if not properties:
        return out + f"type {tool['name']} = () => any;\n\n"
    out += f"type {tool['name']} = (_: {{\n"
    required = tool["parameters"].get("required", [])
    for name, schema in properties.items():
        if "description" in schema:
            out += f"// {schema['description']}\n"
        out += f"{name}{'' if name in required else '?'}: {_type(schema)},\n"
    return out + "}) => any;\n\n"


def system(c):
    text = "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
    if c["date"]:
        text += f"Current date: {c['date']}\n"
    channels = "analysis, commentary, final" if c["commentary"] or c["tools"] else "analysis, final"
    text += f"\nReasoning: {c['reasoning']}\n\n# Valid channels: {channels}. Channel must be included for every message."
    if c["tools"]:
        text += "\nCalls to these tools must go to the commentary channel: 'functions'."
    return text


def developer(c):
    parts = []
    if c["instructions"]:
        parts.append("# Instructions\n\n" + c["instructions"])
    if c["tools"]:
        parts.append("# Tools\n\n## functions\n\nnamespace functions {\n\n" + "".join(map(_tool, c["tools"])) + "} // namespace functions")
    if c["response_format"]:
        f = c["response_format"]
        description = f"// {f['description']}\n" if f.get("description") else ""
        parts.append(f"# Response Formats\n\n## {f['name']}\n\n{description}{compact(f['schema'])}")
    return "\n\n".join(parts)


def message(m, last=False):
    header = m["name"] if m["role"] == "tool" else m["role"]
    if m.get("recipient"):
        header += " to=" + m["recipient"]
    if m.get("channel"):
        header += CHANNEL + m["channel"]
    call = m["role"] == "assistant" and m.get("recipient")
    if call:
        header += f" {CONSTRAIN}json"
    end = CALL if call else RETURN if last else END
    return START + header + MESSAGE + m["content"] + end


def prompt(c):
    """The text up to and with the last `<|start|>assistant`."""
    out = START + "system" + MESSAGE + system(c) + END
    dev = developer(c)
    if dev:
        out += START + "developer" + MESSAGE + dev + END
    return out + "".join(map(message, c["messages"])) + START + "assistant"


def target(c):
    """The text that follows the prompt, the stop token included."""
    n = len(c["target"])
    text = "".join(message(m, last=i == n - 1) for i, m in enumerate(c["target"]))
    return text[len(START + "assistant"):]
