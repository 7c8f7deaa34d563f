"""Written-out arithmetic: the steps that the model's visible reasoning is made of.

Why it exists: a model this small cannot know the product of two long numbers, but it can follow
the school method if every step stands on the page. So each function returns lines of text in which
every single step is a one-digit fact, working from the right, and ends in "that is N".

Nothing here draws random numbers. `python3 arithmetic.py` checks every equation that is written.
"""


def _digits(n: int, width: int) -> list[int]:
    """Digits of n from the right, padded with zeros."""
    return [(n // 10**i) % 10 for i in range(width)]


def _spaced(digits: list[int]) -> str:
    return " ".join(map(str, digits))


def _forwards(written: list[int]) -> str:
    value = sum(d * 10**i for i, d in enumerate(written))
    return f"Forwards: {_spaced(written[::-1])}, that is {value}."


def add_lines(a: int, b: int) -> list[str]:
    """a + b, column by column."""
    width = max(len(str(a)), len(str(b)))
    da, db = _digits(a, width), _digits(b, width)
    lines = [f"Digits from the right: {_spaced(da)} and {_spaced(db)}."]
    carry, written = 0, []
    for x, y in zip(da, db):
        total = x + y + carry
        shown = f"{x}+{y}+1" if carry else f"{x}+{y}"
        carry, digit = divmod(total, 10)
        written.append(digit)
        lines.append(f"{shown}={total}, write {digit}, carry {carry}.")
    if carry:
        written.append(1)
        lines.append("Write the last carry 1.")
    lines.append(_forwards(written))
    return lines


def sub_lines(a: int, b: int) -> list[str]:
    """a - b for a >= b, column by column."""
    assert a >= b
    width = len(str(a))
    da, db = _digits(a, width), _digits(b, width)
    lines = [f"Digits from the right: {_spaced(da)} and {_spaced(db)}."]
    borrow, written = 0, []
    for x, y in zip(da, db):
        tail = "-1" if borrow else ""
        digit = x - y - borrow
        if digit >= 0:
            lines.append(f"{x}-{y}{tail}={digit}, write {digit}, borrow 0.")
            borrow = 0
        else:
            digit += 10
            lines.append(f"{x}-{y}{tail} is below 0, {x + 10}-{y}{tail}={digit}, write {digit}, borrow 1.")
            borrow = 1
        written.append(digit)
    lines.append(_forwards(written))
    return lines


def mul_digit_lines(a: int, d: int) -> list[str]:
    """a * d for one digit d, digit by digit."""
    lines = [f"{a} times {d}:"]
    carry, written = 0, []
    for x in _digits(a, len(str(a))):
        total = x * d + carry
        shown = f"{x}*{d}={x * d}"
        if carry:
            shown += f", {x * d}+{carry}={total}"
        carry, digit = divmod(total, 10)
        written.append(digit)
        lines.append(f"{shown}, write {digit}, carry {carry}.")
    if carry:
        written.append(carry)
        lines.append(f"Write the last carry {carry}.")
    lines.append(_forwards(written))
    return lines


def mul_lines(a: int, b: int) -> list[str]:
    """a * b by partial products, one per digit of b, summed as they come."""
    lines, total = [], None
    for place, d in enumerate(_digits(b, len(str(b)))):
        lines += mul_digit_lines(a, d)
        part = a * d * 10**place
        if place:
            zeros = "1 zero" if place == 1 else f"{place} zeros"
            lines.append(f"With {zeros} behind: {part}.")
        if total is None:
            total = part
        else:
            lines.append(f"Now {total}+{part}.")
            lines += add_lines(total, part)
            total += part
    return lines


def compare_lines(a: int, b: int) -> list[str]:
    """Which of two different numbers is larger: by length, then digit by digit from the left."""
    sa, sb = str(a), str(b)
    larger = max(a, b)
    if len(sa) != len(sb):
        return [f"{a} has {len(sa)} digits and {b} has {len(sb)} digits, so {larger} is larger."]
    lines = [f"Both have {len(sa)} digits. From the left: {' '.join(sa)} and {' '.join(sb)}."]
    for x, y in zip(sa, sb):
        if x == y:
            lines.append(f"{x}={y}, go on.")
        else:
            sign = "<" if x < y else ">"
            lines.append(f"{x}{sign}{y}, so {larger} is larger.")
            break
    return lines


def check_equations(text: str) -> int:
    """Evaluate every `expression=number` in the text; raise on a false one, return how many there were."""
    import re

    count = 0
    for left, right in re.findall(r"(?<![\d+*-])(\d+(?:[+*-]\d+)+)=(\d+)", text):
        total, op = 0, "+"
        if "*" in left:
            factors = re.match(r"(\d+)\*(\d+)(?:\+(\d+))?$", left)
            total = int(factors[1]) * int(factors[2]) + int(factors[3] or 0)
        else:
            for op, number in re.findall(r"([+-]?)(\d+)", left):
                total += -int(number) if op == "-" else int(number)
        if total != int(right):
            raise AssertionError(f"false step {left}={right} in: {text}")
        count += 1
    return count


if __name__ == "__main__":
    import random

    rng, steps = random.Random(0), 0
    for _ in range(5000):
        a, b = rng.randrange(10 ** rng.randint(1, 5)), rng.randrange(10 ** rng.randint(1, 3))
        for lines, want in ((add_lines(a, b), a + b), (mul_lines(a, b), a * b), (sub_lines(max(a, b), min(a, b)), abs(a - b))):
            steps += check_equations("\n".join(lines))
            assert lines[-1].endswith(f"that is {want}."), (a, b, lines)
    print(f"ok: {steps} steps are true")
