"""Dialogues with functions: `get_weather`, `calculator`, now and then another, and what they return."""

from harmony import compact
from tables import CONDITIONS, WEATHER_WORDINGS, WORDS
from tasks import FIELDS, arithmetic_question, chat_question, city, conversation, draw, fact_question, final, polite, repeat_question, user

def weather_tool(rng):
    place = rng.choice(("city", "location"))
    p = {place: {"type": "string"}}
    if rng.random() < 0.6:
        p[place]["description"] = rng.choice(("The city", "The name of the city", "City name", "The city to look up", "City, e.g. Paris"))
    unit = rng.choice(("unit", "format")) if rng.random() < 0.5 else None
    if unit:
        p[unit] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    tool = {"name": "get_weather", "description": rng.choice(("Get the weather of a city.", "Get the current weather.", "Get current weather for a location", "Returns the weather in a city.", "Gets the current weather in the provided location.", "Current weather of a place")),
            "parameters": {"type": "object", "properties": p, "required": [place]}}
    return tool, place, unit


def calculator_tool(rng):
    p = {"expression": {"type": "string"}}
    if rng.random() < 0.6:
        p["expression"]["description"] = rng.choice(("The expression", "An arithmetic expression", "The expression to evaluate", "e.g. 2 + 2"))
    return {"name": "calculator", "description": rng.choice(("Evaluate an arithmetic expression.", "Calculate an expression.", "A calculator", "Evaluates arithmetic.", "Does arithmetic exactly.")),
            "parameters": {"type": "object", "properties": p, "required": ["expression"]}}


def other_tool(rng):
    return rng.choice(({"name": "get_time", "description": "Get the time in a city.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
                       {"name": "send_email", "description": "Send an email.", "parameters": {"type": "object", "properties": {"to": {"type": "string"}, "text": {"type": "string"}}, "required": ["to", "text"]}},
                       {"name": "search", "description": "Search the web.", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}}))


def toolbox(rng, which):
    """Declared tools: the one needed, often the other, sometimes one more; and how get_weather names its arguments."""
    weather, place, unit = weather_tool(rng)
    tools = [weather] if which == "weather" else [calculator_tool(rng)]
    if rng.random() < 0.6:
        tools.append(calculator_tool(rng) if which == "weather" else weather)
    if rng.random() < 0.2:
        tools.append(other_tool(rng))
    rng.shuffle(tools)
    return tools, place, unit


CALCULATOR_WORDINGS = ("what is {e}", "calculate {e}", "compute {e}", "use the calculator: {e}", "how much is {e}", "evaluate {e}", "{e}", "use the calculator to compute {e}", "please calculate {e}", "what's {e}",
                       "can you work out {e}", "tell me {e}", "I need the result of {e}")


def weather_call(rng, held):
    tools, place, unit = toolbox(rng, "weather")
    c = draw(held, lambda: (lambda x: ("city " + x, x))(city(rng)))
    core = rng.choice(WEATHER_WORDINGS).format(c=c)
    args = {place: c}
    if unit and rng.random() < 0.5:
        args[unit] = rng.choice(("celsius", "fahrenheit"))
        core += rng.choice((" in {u}", ", in {u}", ", use {u}")).format(u=args[unit])
    question = polite(rng, core, core[0] in "whid")
    return tools, question, f"I need the weather in {c}: get_weather.", {"role": "assistant", "channel": "commentary", "recipient": "functions.get_weather", "content": compact(args)}, c


def calculator_call(rng, held):
    tools, _, _ = toolbox(rng, "calculator")

    def make():
        a, b = (rng.randrange(10 ** rng.choice((1, 2, 3, 4, 4))) for _ in range(2))
        return f"operands {min(a, b)} {max(a, b)}", (a, b)
    a, b = draw(held, make)
    op = rng.choice("+-*/")
    b = b or 1 if op == "/" else b
    e = f"{a} {op} {b}"
    spoken = {"+": " plus ", "-": " minus ", "*": " times ", "/": " divided by "}[op]
    said = rng.choice((e, e, e.replace(" ", ""), f"{a}{spoken}{b}"))
    core = rng.choice(CALCULATOR_WORDINGS).format(e=said)
    result = {"+": a + b, "-": a - b, "*": a * b, "/": round(a / max(b, 1), 2)}[op]
    call = {"role": "assistant", "channel": "commentary", "recipient": "functions.calculator", "content": compact({"expression": e})}
    return tools, polite(rng, core, core[0] in "wh0123456789"), f"I calculate {e}: calculator.", call, str(result)


def other_call(rng, held):
    """A call of some other declared function."""
    tool = other_tool(rng)
    tools = [t for t in toolbox(rng, rng.choice(("weather", "calculator")))[0] if t["name"] != tool["name"]]
    tools.insert(rng.randrange(len(tools) + 1), tool)
    if tool["name"] == "get_time":
        c = draw(held, lambda: (lambda x: ("city " + x, x))(city(rng)))
        core, args = rng.choice(("what time is it in {c}", "what is the time in {c}", "tell me the time in {c}", "how late is it in {c}")).format(c=c), {"city": c}
    elif tool["name"] == "search":
        q = draw(held, lambda: (lambda x: ("search " + x, x))(" ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 5)))))
        core, args = rng.choice(("search for {q}", "search the web for {q}", "look up {q}", "find {q} on the web")).format(q=q), {"query": q}
    else:
        to, text = FIELDS["email"][1](rng), draw(held, lambda: (lambda x: ("mail " + x, x))(" ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 6)))))
        core, args = rng.choice(("send an email to {to}: {t}", "write to {to}: {t}", "email {to} and say {t}")).format(to=to, t=text), {"to": to, "text": text}
    call = {"role": "assistant", "channel": "commentary", "recipient": "functions." + tool["name"], "content": compact(args)}
    question = core[0].upper() + core[1:] if rng.random() < 0.8 else core
    return tools, question + ("?" if core.startswith(("what", "how")) else ""), f"I call {tool['name']}.", call, None


def weather_result(rng, c):
    """What a weather tool may say, and how it is told."""
    t, sky = str(rng.randrange(-20, 45)), rng.choice(CONDITIONS)
    style = rng.randrange(5)
    result = (compact({"temperature": int(t), "condition": sky}), compact({"condition": sky, "temperature": int(t)}),
              '{"temperature": %s, "condition": "%s"}' % (t, sky), compact({"city": c, "temp": int(t), "sky": sky}), f"{sky}, {t} degrees")[style]
    return result, f"It is {t} degrees and {sky} in {c}."


def tool_message(call, result):
    return {"role": "tool", "name": call["recipient"], "recipient": "assistant", "channel": "commentary", "content": result}


def two_cities(rng, held, done):
    """Two calls in one turn, `done` of them already answered; the reasoning between them is kept."""
    tools, place, _ = toolbox(rng, "weather")
    a, b = (draw(held, lambda: (lambda x: ("city " + x, x))(city(rng))) for _ in range(2))
    core = rng.choice(("what is the weather in {a} and {b}", "how is the weather in {a} and in {b}", "compare the weather in {a} and {b}", "weather in {a} and {b}", "is it warmer in {a} or {b}")).format(a=a, b=b)
    thoughts = [f"I need the weather in {a} and {b}: get_weather for {a}.", f"Now {b}: get_weather.", "I have the weather of both."]
    calls = [{"role": "assistant", "channel": "commentary", "recipient": "functions.get_weather", "content": compact({place: x})} for x in (a, b)]
    told, messages = [], [user(polite(rng, core, core[0] in "whi"))]
    replayed = rng.random() < 0.7
    for x, call, thought in list(zip((a, b), calls, thoughts))[:done]:
        result, answer = weather_result(rng, x)
        told.append(answer)
        messages += ([{"role": "assistant", "channel": "analysis", "content": thought}] if replayed else []) + [call, tool_message(call, result)]
    return conversation(rng, messages, [calls[done] if done < 2 else final(" ".join(told))], tools=tools, analysis=thoughts[done])


def tool_call(rng, held):
    if not held and rng.random() < 0.15:
        # Tools at hand, but nothing that needs them.
        tools, _, _ = toolbox(rng, "weather")
        tools = [t for t in tools if t["name"] != "calculator"]
        text, analysis, answer = rng.choice((fact_question, repeat_question, chat_question, arithmetic_question))(rng, held)
        thinks = analysis.startswith("Ones") or " x " in analysis or " is less " in analysis
        return conversation(rng, [user(text)], [final(answer)], tools=tools, analysis=analysis, thinks=thinks)
    if rng.random() < 0.12:
        return two_cities(rng, held, rng.randrange(2))
    tools, question, analysis, call, _ = rng.choice((weather_call, weather_call, calculator_call, calculator_call, other_call))(rng, held)
    return conversation(rng, [user(question)], [call], tools=tools, analysis=analysis)


def tool_result(rng, held):
    if rng.random() < 0.15:
        return two_cities(rng, held, 2)
    if rng.random() < 0.6:
        tools, question, analysis, call, c = weather_call(rng, held)
        result, answer = weather_result(rng, c)
        analysis2 = "I have the weather."
    else:
        tools, question, analysis, call, value = calculator_call(rng, held)
        result = rng.choice((value, compact({"result": value}), '{"result": %s}' % value))
        answer, analysis2 = value, "I have the result."
    messages = [user(question)]
    if rng.random() < 0.6:
        messages.append({"role": "assistant", "channel": "analysis", "content": analysis})
    messages += [call, tool_message(call, result)]
    return conversation(rng, messages, [final(answer)], tools=tools, analysis=analysis2)
