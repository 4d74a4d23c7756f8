#!/usr/bin/env python3
"""openai-harmony's rendering and parsing.

    judge_harmony.py IN.json OUT.json

IN is {"conversations": [...], "completions": [[id, ...], ...]}; a conversation has the fields of
Conversation in src/harmony/message.rs. OUT has for each conversation {"ids", "auto"}: rendered with
the analysis of finished turns left out by `past` below, and by the library's own rule, which knows
the first answer only; and for each completion the parsed messages.

Needs no network: TIKTOKEN_ENCODINGS_BASE names a folder with o200k_base.tiktoken, whose hash the
library checks.
"""
import json
import sys

from openai_harmony import (
    Author,
    Conversation,
    DeveloperContent,
    HarmonyEncodingName,
    Message,
    ReasoningEffort,
    RenderConversationConfig,
    Role,
    SystemContent,
    TextContent,
    ToolDescription,
    load_harmony_encoding,
)


def system(given):
    content = SystemContent.new().with_reasoning_effort(ReasoningEffort(given["effort"].capitalize()))
    if given["identity"] is not None:
        content = content.with_model_identity(given["identity"])
    if given["date"] is not None:
        content = content.with_conversation_start_date(given["date"])
    if "browser" in given["builtins"]:
        content = content.with_browser_tool()
    if "python" in given["builtins"]:
        content = content.with_python_tool()
    channels = given["channels"]
    if channels is None:
        tools = given["tools"] or given["builtins"]
        channels = ["analysis", "commentary", "final"] if tools else ["analysis", "final"]
    return Message.from_role_and_content(Role.SYSTEM, content.with_required_channels(channels))


def developer(given):
    content = DeveloperContent.new()
    if given["instructions"] is not None:
        content = content.with_instructions(given["instructions"])
    if given["tools"]:
        content = content.with_function_tools([
            ToolDescription.new(t["name"], t.get("description") or "", parameters=t.get("parameters"))
            for t in given["tools"]
        ])
    return Message.from_role_and_content(Role.DEVELOPER, content)


def message(given):
    role = Role(given["role"])
    content = TextContent(text=given["content"])
    if role == Role.DEVELOPER:
        content = DeveloperContent.new().with_instructions(given["content"])
    return Message(
        author=Author(role=role, name=given.get("name")),
        content=[content],
        channel=given.get("channel"),
        recipient=given.get("recipient"),
        content_type=given.get("content_type"),
    )


def past(messages):
    """Messages before this index belong to finished turns."""
    finals = [i for i, m in enumerate(messages[:-1]) if m.get("channel") == "final"]
    return finals[-1] if finals else 0


def function_of(m):
    address = m.get("name") if m["role"] == "tool" else m.get("recipient")
    return (address or "").startswith("functions.")


def render(encoding, given):
    head = [system(given)]
    if given["instructions"] is not None or given["tools"]:
        head.append(developer(given))
    messages = given["messages"]
    border = 0 if given["keep_analysis"] else past(messages)
    kept = [
        m for i, m in enumerate(messages)
        if not (i < border and m.get("channel") == "analysis" and not function_of(m))
    ]

    def ids(these, auto):
        conversation = Conversation.from_messages(head + [message(m) for m in these])
        config = RenderConversationConfig(auto_drop_analysis=auto)
        return encoding.render_conversation_for_completion(conversation, Role.ASSISTANT, config)

    return {"ids": ids(kept, False), "auto": ids(messages, True)}


def parse(encoding, ids):
    messages = encoding.parse_messages_from_completion_tokens(ids, Role.ASSISTANT)
    return [
        {
            "role": m.author.role.value,
            "name": m.author.name,
            "channel": m.channel,
            "recipient": m.recipient,
            "content_type": m.content_type,
            "content": "".join(part.text for part in m.content),
        }
        for m in messages
    ]


def main():
    encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    with open(sys.argv[1], encoding="utf-8") as file:
        given = json.load(file)
    answer = {
        "conversations": [render(encoding, c) for c in given["conversations"]],
        "completions": [parse(encoding, ids) for ids in given["completions"]],
    }
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
