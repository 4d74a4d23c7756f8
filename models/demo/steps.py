"""Written arithmetic, digit by digit: what the model thinks before it answers."""

PLACES = ("Ones", "Tens", "Hundreds", "Thousands", "Ten thousands")


def digits(n):
    return [int(d) for d in str(n)[::-1]]


def add_steps(a, b):
    da, db = digits(a), digits(b)
    steps, carry = [], 0
    for i in range(max(len(da), len(db))):
        x, y = da[i] if i < len(da) else 0, db[i] if i < len(db) else 0
        s = x + y + carry
        text = f"{PLACES[i]}: {x} + {y}" + (" + 1" if carry else "") + f" = {s}"
        carry = s // 10
        steps.append(text + (f", write {s % 10}, carry 1." if carry else f", write {s}."))
    return " ".join(steps) + f" {a} + {b} = {a + b}."


def sub_steps(a, b):
    if a < b:
        return f"{a} is less than {b}: minus {b} - {a}. " + sub_steps(b, a) + f" {a} - {b} = {a - b}."
    da, db = digits(a), digits(b)
    steps, borrow = [], 0
    for i, x in enumerate(da):
        y = db[i] if i < len(db) else 0
        s = x - y - borrow
        text = f"{PLACES[i]}: {x} - {y}" + (" - 1" if borrow else "")
        borrow = int(s < 0)
        s %= 10
        steps.append(text + (f" + 10 = {s}, write {s}, borrow 1." if borrow else f" = {s}, write {s}."))
    return " ".join(steps) + f" {a} - {b} = {a - b}."


def mul_digit_steps(a, m):
    steps, carry = [], 0
    for i, x in enumerate(digits(a)):
        s = x * m + carry
        text = f"{PLACES[i]}: {x} x {m} = {x * m}" + (f" + {carry} = {s}" if carry else "")
        carry = s // 10
        steps.append(text + (f", write {s % 10}, carry {carry}." if carry else f", write {s}."))
    return " ".join(steps) + f" {a} x {m} = {a * m}."


def mul_steps(a, b):
    if b < 10:
        return mul_digit_steps(a, b)
    if a < 10 or b > 99:
        return f"{a} x {b} is {b} x {a}. " + mul_steps(b, a) + f" {a} x {b} = {a * b}."
    ones, tens = b % 10, b // 10
    return (mul_digit_steps(a, ones) + " " + mul_digit_steps(a, tens) + f" {a} x {tens}0 = {a * tens * 10}. "
            + add_steps(a * ones, a * tens * 10) + f" {a} x {b} = {a * b}.")
