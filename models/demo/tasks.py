"""The kinds of dialogue. Each function makes one conversation of its kind from a random stream.

`held` chooses the side of the split: a key (operand pair, row, schema, phrase, wording) is either
trained on or held out, by a hash of its text, and never both. The assistant's side is a function of
the prompt: nothing in it is left to chance.
"""

import hashlib

from harmony import compact
from steps import add_steps, mul_steps, sub_steps
from tables import (ATTRIBUTES, CHAT, CITIES, COUNTRIES, ELEMENTS, FILLER_OBJECTS, FILLER_SUBJECTS, FILLER_VERBS, INSTRUCTIONS, NAMES,
                    OTHER_WORDS, SYLLABLES, UNKNOWN, UNKNOWN_ANSWER, WEATHER_WORDINGS, WORDS)

# Wordings (by index in a list of ATTRIBUTES) that no training prompt uses.
HELD_WORDINGS = (7, 12)


def is_held(key):
    """Whether a key is held out: one in eight."""
    return hashlib.blake2s(key.encode(), digest_size=1).digest()[0] % 8 == 0


def draw(held, make):
    """Draws from `make() -> (key, value)` until the key is on the wanted side."""
    while True:
        key, value = make()
        if is_held(key) == held:
            return value


def conversation(rng, messages, target, tools=(), response_format=None, analysis=None, thinks=False):
    """Fills in the frame. `analysis` is spoken unless the effort is low; with `thinks`, always."""
    effort = rng.choice(("low", "medium", "medium", "high"))
    target = list(target)
    if analysis and (thinks or effort != "low"):
        target.insert(0, {"role": "assistant", "channel": "analysis", "content": analysis})
    date = f"{rng.randrange(2024, 2031)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"
    instructions = None
    if rng.random() < 0.3:
        instructions = rng.choice(INSTRUCTIONS).format(n=invented(rng), w=rng.choice(WORDS), v=rng.choice(WORDS))
        if rng.random() < 0.2:
            instructions += rng.choice((" ", "\n")) + rng.choice(INSTRUCTIONS).format(n=invented(rng), w=rng.choice(WORDS), v=rng.choice(WORDS))
    return {"reasoning": effort, "date": date if rng.random() < 0.9 else None, "commentary": rng.random() < 0.5,
            "instructions": instructions, "tools": list(tools), "response_format": response_format,
            "messages": messages, "target": target}


def user(text):
    return {"role": "user", "content": text}


def final(text):
    return {"role": "assistant", "channel": "final", "content": text}


def polite(rng, text, question=True):
    """A question's core, dressed as people type."""
    head = rng.choice(("", "", "", "", "", "Please ", "Hey, ", "Quick question: ", "Can you help? ", "Hello! ", "Tell me, ", "OK. ", "One more: "))
    tail = rng.choice(("?", "?", "?", "?", "", "??", " please?", "? Thanks!", "? Thank you.") if question else (".", ".", "", "!", ", please.", ". Thanks!"))
    text = head + text + tail
    if rng.random() < 0.85:
        text = text[0].upper() + text[1:]
    return text


def invented(rng, parts=(2, 3)):
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice(parts))).capitalize()


def name(rng):
    return rng.choice(NAMES) if rng.random() < 0.5 else invented(rng)


def city(rng):
    return rng.choice(CITIES) if rng.random() < 0.5 else invented(rng)


# --- arithmetic ---------------------------------------------------------------------------------

def operand(rng):
    return rng.randrange(10 ** rng.choice((1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 4)))


def operands(rng, op, held):
    def make():
        a, b = operand(rng), operand(rng)
        if op == "x":
            while a * b > 99999 or min(a, b) > 99:
                a, b = operand(rng), operand(rng)
        if op == "-" and a < b and rng.random() < 0.8:
            a, b = b, a
        return f"operands {min(a, b)} {max(a, b)}", (a, b)
    return draw(held, make)


WORDINGS = {
    "+": ["what is {a} + {b}", "what's {a} + {b}", "how much is {a} + {b}", "{a} + {b}", "{a} + {b} =", "{a}+{b}", "what is {a} plus {b}", "calculate {a} + {b}",
          "compute {a} plus {b}", "what is the sum of {a} and {b}", "add {a} and {b}", "what do you get if you add {b} to {a}", "how much is {a} plus {b}",
          "what does {a} + {b} equal", "what is {a}+{b}", "I have {a} apples and get {b} more, how many do I have"],
    "-": ["what is {a} - {b}", "what's {a} - {b}", "how much is {a} - {b}", "{a} - {b}", "{a} - {b} =", "{a}-{b}", "what is {a} minus {b}", "calculate {a} - {b}",
          "compute {a} minus {b}", "subtract {b} from {a}", "take {b} away from {a}", "what is left if you take {b} from {a}", "how much is {a} minus {b}",
          "what does {a} - {b} equal", "what is {a}-{b}", "I have {a} apples and give away {b}, how many do I have"],
    "x": ["what is {a} x {b}", "what's {a} * {b}", "how much is {a} x {b}", "{a} * {b}", "{a} x {b} =", "{a}*{b}", "what is {a} times {b}", "calculate {a} * {b}",
          "compute {a} times {b}", "multiply {a} by {b}", "what is the product of {a} and {b}", "what do you get if you multiply {a} by {b}", "how much is {a} times {b}",
          "what does {a} * {b} equal", "what is {a} * {b}", "I have {a} boxes with {b} apples each, how many apples do I have"],
}


def arithmetic_question(rng, held):
    op = rng.choice("+++--xx")
    a, b = operands(rng, op, held)
    core = rng.choice(WORDINGS[op]).format(a=a, b=b)
    if op == "+":
        steps, result = add_steps(a, b), a + b
    elif op == "-":
        steps, result = sub_steps(a, b), a - b
    else:
        steps, result = mul_steps(a, b), a * b
    return polite(rng, core, core[0] in "wh0123456789I"), steps, str(result)


def arithmetic(rng, held):
    text, steps, result = arithmetic_question(rng, held)
    return conversation(rng, [user(text)], [final(result)], analysis=steps, thinks=True)


# --- facts --------------------------------------------------------------------------------------

FACTS = [(x, a, v[i]) for x, v in COUNTRIES.items() for i, a in enumerate(("capital", "continent", "language", "currency"))]
FACTS += [(x, a, v[i]) for x, v in ELEMENTS.items() for i, a in enumerate(("symbol", "number"))]


def fact_question(rng, held):
    """Held out are a fact with a wording it was never asked in, or a wording that nothing was asked in."""
    while True:
        x, attribute, value = rng.choice(FACTS)
        statement, wordings = ATTRIBUTES[attribute]
        i = rng.randrange(len(wordings))
        if (i in HELD_WORDINGS or is_held(f"fact {x} {attribute} {i}")) == held:
            break
    core = wordings[i].format(x=x)
    if rng.random() < 0.1:
        core = core.lower()
    question = core[0] in "wod"
    noun = {"number": "atomic number"}.get(attribute, attribute)
    return polite(rng, core, question), f"The user asks for the {noun} of {x}.", statement.format(x=x[0].upper() + x[1:] if statement.startswith("{x}") else x, v=value)


def facts(rng, held):
    text, analysis, answer = fact_question(rng, held)
    return conversation(rng, [user(text)], [final(answer)], analysis=analysis)


# --- a table in the prompt ----------------------------------------------------------------------

COLUMNS = {
    "color": lambda r: r.choice(("red", "green", "blue", "yellow", "purple", "orange", "black", "white", "brown", "gray", "pink")),
    "age": lambda r: str(r.randrange(1, 100)),
    "city": city,
    "price": lambda r: str(r.randrange(1, 1000)),
    "owner": name,
    "animal": lambda r: r.choice(("tiger", "lion", "eagle", "rabbit", "horse", "camel", "monkey", "parrot", "donkey", "whale", "turtle")),
    "code": lambda r: str(r.randrange(1000, 100000)),
    "drink": lambda r: r.choice(("water", "milk", "juice", "coffee", "tea")),
    "size": lambda r: r.choice(("small", "large", "tiny", "huge", "medium")),
}


def table(rng, held):
    columns = rng.sample(list(COLUMNS), rng.randrange(1, 4))
    rows = {}
    wanted = rng.randrange(2, 8)
    asked = None
    while len(rows) < wanted:
        def make():
            row = {k: COLUMNS[k](rng) for k in columns}
            who = name(rng)
            return f"row {who} {sorted(row.items())}", (who, row)
        who, row = draw(held, make)
        rows.setdefault(who, row)
    asked = rng.choice(list(rows))
    column = rng.choice(columns)
    style = rng.randrange(3)
    if style == 0:
        text = "\n".join(f"{w}: " + ", ".join(f"{k} {v}" for k, v in row.items()) for w, row in rows.items())
    elif style == 1:
        text = "\n".join("- " + w + " | " + " | ".join(f"{k} = {v}" for k, v in row.items()) for w, row in rows.items())
    else:
        text = "name," + ",".join(columns) + "\n" + "\n".join(w + "," + ",".join(row.values()) for w, row in rows.items())
    core = rng.choice(("what is the {c} of {w}", "what is {w}'s {c}", "which {c} does {w} have", "tell me the {c} of {w}", "what's the {c} for {w}",
                       "look up the {c} of {w}", "{w}: what is the {c}")).format(c=column, w=asked)
    question = polite(rng, core, core[0] == "w")
    if rng.random() < 0.5:
        c = conversation(rng, [user(question)], [final(rows[asked][column])], analysis=f"I look up the {column} of {asked}.")
        c["instructions"] = "Answer from this table.\n" + text
        return c
    body = f"{text}\n\n{question}" if rng.random() < 0.7 else f"{question}\n\n{text}"
    return conversation(rng, [user(body)], [final(rows[asked][column])], analysis=f"I look up the {column} of {asked}.")


# --- repeating ----------------------------------------------------------------------------------

def phrase(rng):
    out = []
    style = rng.random()
    for _ in range(rng.choice((1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 30))):
        r = rng.random()
        if style < 0.5 or r < 0.5:
            out.append(rng.choice(WORDS))
        elif r < 0.7:
            out.append(invented(rng, (1, 2, 3)))
        elif r < 0.85:
            out.append(str(rng.randrange(10 ** rng.randrange(1, 6))))
        else:
            out.append("".join(rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for _ in range(rng.randrange(1, 6))))
        if rng.random() < 0.08:
            out[-1] += rng.choice(",.!?;:")
    text = " ".join(out)
    return text[0].upper() + text[1:] if rng.random() < 0.3 else text


def repeat_question(rng, held):
    text = draw(held, lambda: (lambda p: ("phrase " + p.lower(), p))(phrase(rng)))
    ask = rng.choice(("Repeat: {p}", "Repeat after me: {p}", "Say: {p}", "Echo: {p}", "Please repeat this text: {p}", "Repeat exactly: {p}", 'Repeat "{p}"',
                      'Say "{p}"', "Copy this: {p}", "Write this again: {p}", "repeat {p}", "{p}\n\nRepeat the text above.", "Repeat the following:\n{p}"))
    return ask.format(p=text), "The user wants the text repeated.", text


def repeat(rng, held):
    ask, analysis, text = repeat_question(rng, held)
    return conversation(rng, [user(ask)], [final(text)], analysis=analysis)


# --- JSON by schema -----------------------------------------------------------------------------

FIELDS = {
    "name": ("string", name), "first_name": ("string", name), "last_name": ("string", invented), "city": ("string", city), "country": ("string", lambda r: r.choice(list(COUNTRIES))),
    "age": ("integer", lambda r: r.randrange(1, 100)), "price": ("integer", lambda r: r.randrange(1, 1000)), "count": ("integer", lambda r: r.randrange(0, 100)),
    "year": ("integer", lambda r: r.randrange(1900, 2031)), "score": ("integer", lambda r: r.randrange(0, 101)), "height": ("number", lambda r: r.randrange(10, 300) / 10),
    "weight": ("number", lambda r: r.randrange(10, 999) / 10), "title": ("string", lambda r: r.choice(WORDS[:120])), "color": ("string", COLUMNS["color"]),
    "animal": ("string", COLUMNS["animal"]), "drink": ("string", COLUMNS["drink"]), "active": ("boolean", lambda r: r.random() < 0.5), "married": ("boolean", lambda r: r.random() < 0.5),
    "open": ("boolean", lambda r: r.random() < 0.5), "id": ("integer", lambda r: r.randrange(1, 100000)), "code": ("string", lambda r: invented(r, (1, 2)).upper()),
    "email": ("string", lambda r: invented(r).lower() + "@" + r.choice(("mail.com", "post.org", "web.net"))), "job": ("string", lambda r: r.choice(("baker", "teacher", "farmer", "doctor", "nurse", "pilot", "painter", "writer", "singer"))),
    "rating": ("integer", lambda r: r.randrange(1, 6)), "month": ("string", lambda r: r.choice(("January", "March", "April", "May", "June", "July", "August", "October"))),
    "quantity": ("integer", lambda r: r.randrange(1, 500)), "product": ("string", lambda r: r.choice(WORDS[:120])), "tags": ("array", lambda r: r.sample(WORDS[:120], r.randrange(1, 4))),
    "size": ("enum", lambda r: r.choice(("small", "medium", "large"))), "status": ("enum", lambda r: r.choice(("new", "used", "broken"))), "food": ("string", lambda r: r.choice(WORDS[63:84])),
    "friends": ("array", lambda r: [name(r) for _ in range(r.randrange(1, 4))]), "distance": ("number", lambda r: r.randrange(1, 999) / 10), "floor": ("integer", lambda r: r.randrange(0, 40)),
}
CLAUSES = {"age": "is {v} years old", "city": "lives in {v}", "country": "comes from {v}", "job": "works as a {v}", "drink": "drinks {v}", "animal": "has a {v}",
           "color": "likes {v}", "year": "was born in {v}", "food": "eats {v}", "friends": "is a friend of {v}", "price": "costs {v}", "floor": "is on floor {v}"}
ENUMS = {"size": ["small", "medium", "large"], "status": ["new", "used", "broken"]}


def json_schema(rng, held):
    def make():
        fields = rng.sample(list(FIELDS), rng.randrange(1, 6))
        return "schema " + " ".join(fields), fields
    fields = draw(held, make)
    values = {f: FIELDS[f][1](rng) for f in fields}
    extra = {f: FIELDS[f][1](rng) for f in rng.sample(list(FIELDS), rng.randrange(0, 3)) if f not in values}

    def spoken(v):
        if isinstance(v, bool):
            return rng.choice(("yes", "true")) if v else rng.choice(("no", "false"))
        return (", ".join(v[:-1]) + " and " + v[-1] if len(v) > 1 else v[0]) if isinstance(v, list) else str(v)

    items = list({**values, **extra}.items())
    rng.shuffle(items)
    style = rng.randrange(5)
    said = [(k.replace("_", " "), spoken(v)) for k, v in items]
    if style == 0:
        text = " ".join(f"The {k} is {v}." for k, v in said)
    elif style == 1:
        text = "\n".join(f"{k}: {v}" for k, v in said)
    elif style == 2:
        text = "; ".join(f"{k} = {v}" for k, v in said)
    elif style == 3:
        text = ", ".join(f"{k} {v}" for k, v in said)
    else:
        clauses = [CLAUSES[k].format(v=spoken(v)) if k in CLAUSES else ("is " if v else "is not ") + k if isinstance(v, bool) else f"has the {k.replace('_', ' ')} {spoken(v)}"
                   for k, v in items if k != "name"]
        who = values.get("name") or extra.get("name") or rng.choice(("It", "The person", "She", "He"))
        text = who + " " + (", ".join(clauses[:-1]) + " and " + clauses[-1] if len(clauses) > 1 else clauses[0] if clauses else "is the name") + "."
    head = rng.choice(("", "Fill in: ", "Extract the data: ", "Make JSON from this: ", "Here is the data: ", "Give me JSON. "))
    tail = rng.choice(("", "", " Give me JSON.", " As JSON, please.", "\nAnswer in JSON."))
    properties = {}
    for f in fields:
        kind = FIELDS[f][0]
        p = {"type": "array", "items": {"type": "string"}} if kind == "array" else {"type": "string", "enum": ENUMS[f]} if kind == "enum" else {"type": kind}
        properties[f] = p
    if rng.random() < 0.15:
        properties = {f: {"title": f.replace("_", " ").title(), **p} for f, p in properties.items()}
    schema = {"type": "object", "properties": properties, "required": fields}
    shape = rng.random()
    if shape < 0.4:
        schema["additionalProperties"] = False
    elif shape < 0.55:
        schema = {"properties": properties, "required": fields, "title": "Record", "type": "object"}
    elif shape < 0.65:
        schema = {"type": "object", "properties": properties}
    fmt = {"name": rng.choice(("answer", "record", "person", "item", "response", "data", "output", "result", "schema", "response_format")),
           "description": rng.choice(("A record.", "The answer as JSON.", "Data of one item.")) if rng.random() < 0.2 else None, "schema": schema}
    return conversation(rng, [user(head + text + tail)], [final(compact(values))], response_format=fmt, analysis="JSON with " + ", ".join(fields) + ".")


# --- needle -------------------------------------------------------------------------------------

def needle(rng, held, count):
    """`count(text) -> tokens` bounds the haystack: log-uniform up to 4,096 tokens, prompt and answer together."""
    budget = int(2 ** rng.uniform(8, 12)) - 170
    kinds = ("secret code", "phone number", "locker number", "password", "lucky number")

    def value(kind):
        return invented(rng, (2, 3)) if kind == "password" else str(rng.randrange(1000, 1000000))

    def make():
        who, kind = name(rng), rng.choice(kinds)
        v = value(kind)
        return f"needle {who} {kind} {v}", (who, kind, v)
    who, kind, v = draw(held, make)
    sentences = []
    others = {(who, kind)}
    for _ in range(rng.randrange(0, 5)):
        o = (name(rng), rng.choice(kinds))
        if o not in others:
            others.add(o)
            sentences.append(f"The {o[1]} of {o[0]} is {value(o[1])}.")
    sentences.append(f"The {kind} of {who} is {v}.")
    used = count(" ".join(sentences))
    while used < budget:
        if rng.random() < 0.85:
            s = f"{rng.choice(FILLER_SUBJECTS)} {rng.choice(FILLER_VERBS)} {rng.choice(FILLER_OBJECTS)}."
            s = s[0].upper() + s[1:]
        else:
            s = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(4, 10))) + "."
        used += count(" " + s)
        sentences.append(s)
    rng.shuffle(sentences)
    text = " ".join(sentences)
    core = rng.choice(("what is the {k} of {w}", "what is {w}'s {k}", "tell me the {k} of {w}", "which {k} does {w} have", "find the {k} of {w}")).format(k=kind, w=who)
    question = polite(rng, core, core[0] == "w")
    body = f"{text}\n\n{question}" if rng.random() < 0.8 else f"{question}\n\n{text}"
    return conversation(rng, [user(body)], [final(v)], analysis=f"I look for the {kind} of {who}.")


# --- small talk, several turns ------------------------------------------------------------------

def chat_question(rng, held):
    if rng.random() < 0.5:
        questions, analysis, answer = rng.choice(CHAT)
        return rng.choice(questions), analysis, answer
    r = rng.random()
    if r < 0.1:
        return polite(rng, rng.choice(WEATHER_WORDINGS[:13]).format(c=city(rng))), "I have no weather tool.", "I cannot look up the weather: no tool for it was given to me."
    if r < 0.18:
        a, b = operand(rng), operand(rng)
        return polite(rng, rng.choice(("what is {a} / {b}", "what is {a} divided by {b}", "divide {a} by {b}", "{a} / {b}")).format(a=a, b=b)), "I can't divide.", "I can only add, subtract and multiply."
    text = rng.choice(UNKNOWN)
    while "{w}" in text:
        text = text.replace("{w}", rng.choice(WORDS) if rng.random() < 0.7 else invented(rng).lower(), 1)
    while "{o}" in text:
        text = text.replace("{o}", rng.choice(OTHER_WORDS) if rng.random() < 0.8 else rng.choice(WORDS), 1)
    text = text.replace("{n}", " ".join(invented(rng) for _ in range(rng.randrange(1, 3))))
    if rng.random() < 0.4:
        text = polite(rng, text.rstrip("?.").lower() if rng.random() < 0.5 else text.rstrip("?."))
    return text, "I don't know that.", UNKNOWN_ANSWER


def chat(rng, held):
    text, analysis, answer = chat_question(rng, held)
    return conversation(rng, [user(text)], [final(answer)], analysis=analysis)


def multi_turn(rng, held):
    """Earlier turns (their analysis dropped, as the format asks), then a question."""
    messages = []
    for _ in range(rng.randrange(1, 4)):
        text, _, answer = rng.choice((arithmetic_question, fact_question, repeat_question, chat_question))(rng, False)
        messages += [user(text), final(answer)]
    if rng.random() < 0.2:
        # What was said two or more turns ago.
        who = draw(held, lambda: (lambda x: ("called " + x, x))(name(rng)))
        told = rng.choice(("My name is {n}.", "I am {n}.", "Hi, I am {n}.", "Hello, my name is {n}.", "my name is {n}", "Call me {n}.")).format(n=who)
        if rng.random() < 0.3:
            return conversation(rng, messages[2:] + [user(told)], [final(f"Nice to meet you, {who}!")], analysis="The user tells me a name.")
        at = 2 * rng.randrange(len(messages) // 2 + 1)
        messages[at:at] = [user(told), final(f"Nice to meet you, {who}!")]
        ask = rng.choice(("What is my name?", "What's my name?", "who am I?", "Do you know my name?", "Tell me my name.", "Do you remember my name?", "what is my name"))
        return conversation(rng, messages + [user(ask)], [final(f"Your name is {who}.")], analysis="The user told me the name.")
    make = rng.choice((arithmetic_question, fact_question, repeat_question))
    if not held and rng.random() < 0.2:
        make = chat_question
    text, analysis, answer = make(rng, held)
    return conversation(rng, messages + [user(text)], [final(answer)], analysis=analysis, thinks=make is arithmetic_question)
