"""Procedural problems with visible reasoning: 14 tasks, each a function from a random generator to a Problem.

Why it exists: the shipped model must reason about things nobody wrote down for it, so its training data is made on
the fly and never repeats, and the questions it is judged by are instances that training never drew.

Held out by instance: `key` names what a problem is about (its numbers, its word), not how it is put, and one key in
HELD_OUT_ONE_IN is kept from training by a hash. Reasoning is a function of the prompt alone: which opener it uses
follows from the phrasing, so that greedy decoding meets no coin toss.

    python3 problems.py [--task add] [--seed 1]     prints one problem per task
    python3 problems.py --check 20000               checks samples: equations true, answers in the trace, speed
"""

import random
import zlib
from dataclasses import dataclass

import arithmetic as ar
from words import ANIMALS, CITIES, CODAS, COLORS, DAYS, FOODS, ITEMS, NAMES, ONSETS, VOWELS, WORDS

HELD_OUT_ONE_IN = 16
ALWAYS_HELD_OUT = {"add:47,85"}  # the README's question


@dataclass(frozen=True)
class Problem:
    task: str
    key: str  # the instance, as held out; tasks that ask for the same sum share its key
    messages: tuple  # ({"role", "content"}, ...), the last one from the user
    think: str  # the reasoning, without tags
    answer: str  # the one sentence after the reasoning


def is_held_out(key: str) -> bool:
    return key in ALWAYS_HELD_OUT or zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


def add_key(a: int, b: int) -> str:
    return f"add:{min(a, b)},{max(a, b)}"


def op_key(a: int, op: str, b: int) -> str:
    return add_key(a, b) if op == "+" else f"sub:{a},{b}" if op == "-" else f"mul:{min(a, b)},{max(a, b)}"


def _ask(task, key, question, think, answer):
    return Problem(task, key, ({"role": "user", "content": question},), "\n".join(think), answer)


def _phrase(rng, phrasings, **slots):
    """One of the phrasings, filled in, and its index (the opener follows from it)."""
    i = rng.randrange(len(phrasings))
    return i, phrasings[i].format(**slots)


def _number(rng, digits_max):
    return rng.randrange(10 ** rng.randint(1, digits_max))


def _listed(values):
    return ", ".join(map(str, values))


ADD = ["What is {a} + {b}?", "What's {a} + {b}?", "Compute {a} plus {b}.", "{a} + {b} = ?", "Add {a} and {b}.", "{a}+{b}",
       "How much is {a} plus {b}?", "What is the sum of {a} and {b}?", "Please calculate {a} + {b}.", "What is {a} plus {b}?",
       "Can you add {a} and {b} for me?", "Tell me {a} + {b}.", "Find {a} + {b}.", "what is {a}+{b}?", "Calculate {a} + {b}"]
ADD_OPEN = ["I need to add {a} and {b}.", "The sum of {a} and {b} is wanted.", "Let me work out {a}+{b}."]


def add(rng):
    a, b = _number(rng, 5), _number(rng, 5)
    i, question = _phrase(rng, ADD, a=a, b=b)
    think = [ADD_OPEN[i % 3].format(a=a, b=b)] + ar.add_lines(a, b)
    return _ask("add", add_key(a, b), question, think, f"{a} + {b} = {a + b}.")


SUB = ["What is {a} - {b}?", "What's {a} - {b}?", "Compute {a} minus {b}.", "{a} - {b} = ?", "Subtract {b} from {a}.", "{a}-{b}",
       "How much is {a} minus {b}?", "What is the difference {a} - {b}?", "Please calculate {a} - {b}.", "What is {a} minus {b}?",
       "Take {b} away from {a}.", "Tell me {a} - {b}.", "Find {a} - {b}.", "what is {a}-{b}?", "Calculate {a} - {b}"]
SUB_OPEN = ["I need to subtract {b} from {a}.", "The difference {a}-{b} is wanted.", "Let me work out {a}-{b}."]


def _signed_sub_lines(a, b):
    """Compare first, so that the columns never go below zero."""
    if a == b:
        return [f"{a} and {b} are equal, so nothing is left. That is 0."]
    lines = ar.compare_lines(a, b)
    if a > b:
        return lines + ar.sub_lines(a, b)
    return lines + [f"So {a}-{b} is minus {b}-{a}."] + ar.sub_lines(b, a) + [f"With the minus sign: {a - b}."]


def sub(rng):
    a, b = _number(rng, 5), _number(rng, 5)
    if a < b and rng.random() < 0.7:
        a, b = b, a
    i, question = _phrase(rng, SUB, a=a, b=b)
    think = [SUB_OPEN[i % 3].format(a=a, b=b)] + _signed_sub_lines(a, b)
    return _ask("sub", op_key(a, "-", b), question, think, f"{a} - {b} = {a - b}.")


MUL = ["What is {a} * {b}?", "What is {a} times {b}?", "Compute {a} times {b}.", "{a} * {b} = ?", "Multiply {a} by {b}.", "{a}*{b}",
       "How much is {a} times {b}?", "What is the product of {a} and {b}?", "Please calculate {a} * {b}.", "What's {a} x {b}?",
       "Can you multiply {a} and {b}?", "Tell me {a} times {b}.", "Find {a} * {b}.", "What is {a} x {b}?", "Calculate {a} * {b}"]
MUL_OPEN = ["I need to multiply {a} by {b}.", "The product of {a} and {b} is wanted.", "Let me work out {a}*{b}."]


def mul(rng):
    a, b = (_number(rng, 4), rng.randrange(10)) if rng.random() < 0.4 else (_number(rng, 3), _number(rng, 2))
    i, question = _phrase(rng, MUL, a=a, b=b)
    think = [MUL_OPEN[i % 3].format(a=a, b=b)] + ar.mul_lines(a, b)
    return _ask("mul", op_key(a, "*", b), question, think, f"{a} * {b} = {a * b}.")


COMPARE = ["Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?", "Compare {a} and {b}. Which one is {w}?",
           "Tell me which is {w}, {a} or {b}.", "Is {a} or {b} the {w} number?", "{a} or {b}, which is {w}?"]
COMPARE_OPEN = ["I compare {a} and {b}.", "Two numbers: {a} and {b}."]


def compare(rng):
    a = _number(rng, 6)
    b = _number(rng, 6)
    if rng.random() < 0.6:  # same length, same beginning: the hard case
        s = str(a + 10)
        cut = rng.randrange(len(s))
        a, b = int(s), int(s[:cut] + "".join(str(rng.randrange(10)) for _ in s[cut:]) or "0")
    if a == b:
        b = a + 1
    w = rng.choice(["larger", "smaller", "bigger"])
    i, question = _phrase(rng, COMPARE, a=a, b=b, w=w)
    think = [COMPARE_OPEN[i % 2].format(a=a, b=b)] + ar.compare_lines(a, b)
    large, small = max(a, b), min(a, b)
    if w == "smaller":
        think.append(f"The smaller one is {small}.")
        answer = f"{small} is smaller than {large}."
    else:
        answer = f"{large} is {w} than {small}."
    return _ask("compare", f"compare:{small},{large}", question, think, answer)


SORT = ["Sort {xs} from {way}.", "Sort these numbers from {way}: {xs}.", "Put {xs} in order from {way}.",
        "Please order {xs} from {way}.", "Arrange these from {way}: {xs}."]
SORT_OPEN = ["I pick one after another.", "I take them in turn."]


def sort(rng):
    top = rng.choice([20, 100, 1000])
    xs = rng.sample(range(top), rng.randint(3, 6))
    down = rng.random() < 0.4
    way = "largest to smallest" if down else "smallest to largest"
    i, question = _phrase(rng, SORT, xs=_listed(xs), way=way)
    think, left = [SORT_OPEN[i % 2]], list(xs)
    while len(left) > 1:
        pick = max(left) if down else min(left)
        think.append(f"Of {_listed(left)} the {'largest' if down else 'smallest'} is {pick}.")
        left.remove(pick)
    think.append(f"Only {left[0]} is left.")
    return _ask("sort", f"sort:{sorted(xs)}", question, think, f"In order: {_listed(sorted(xs, reverse=down))}.")


MAXMIN = ["What is the {w} of {xs}?", "Find the {w} number in {xs}.", "Which of these numbers is the {w}: {xs}?",
          "Give me the {w} of these: {xs}.", "{xs}: which is the {w}?"]
MAXMIN_OPEN = ["I go through the list and keep the {w}.", "I walk along and remember the {w}."]


def maxmin(rng):
    top = rng.choice([100, 1000, 10000])
    xs = rng.sample(range(top), rng.randint(3, 7))
    w, better = rng.choice([("largest", max), ("smallest", min)])
    i, question = _phrase(rng, MAXMIN, xs=_listed(xs), w=w)
    think, best = [MAXMIN_OPEN[i % 2].format(w=w), f"Start with {xs[0]}."], xs[0]
    for x in xs[1:]:
        kept = best
        best = better(best, x)
        think.append(f"{kept} and {x}: keep {best}.")
    return _ask("maxmin", f"{w}:{sorted(xs)}", question, think, f"The {w} number is {best}.")


LISTSUM = ["What is the sum of {xs}?", "Add up {xs}.", "Sum these numbers: {xs}.", "Find the total of {xs}.", "What do {xs} add up to?"]
LISTSUM_OPEN = ["I add them one by one.", "I keep a running total."]


def listsum(rng):
    xs = [rng.randrange(100) for _ in range(rng.randint(3, 4))]
    i, question = _phrase(rng, LISTSUM, xs=_listed(xs))
    think, total = [LISTSUM_OPEN[i % 2], f"Start with {xs[0]}."], xs[0]
    for x in xs[1:]:
        think.append(f"Now {total}+{x}.")
        think += ar.add_lines(total, x)
        total += x
    return _ask("listsum", f"listsum:{sorted(xs)}", question, think, f"The sum is {total}.")


def _made_up_word(rng):
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.randint(1, 3)))[:10]


def _word(rng):
    return rng.choice(WORDS) if rng.random() < 0.4 else _made_up_word(rng)


REVERSE = ["Reverse the word {w}.", "Spell {w} backwards.", "What is {w} backwards?", "Write the word {w} in reverse.",
           "How do you write {w} from back to front?", 'Reverse "{w}".']
REVERSE_OPEN = ["I spell {w}:", "The letters of {w}:"]


def reverse(rng):
    w = _word(rng)
    i, question = _phrase(rng, REVERSE, w=w)
    think = [f"{REVERSE_OPEN[i % 2].format(w=w)} {' '.join(w)}.", f"From the back: {' '.join(w[::-1])}."]
    return _ask("reverse", f"letters:{w}", question, think, f"Backwards it reads {w[::-1]}.")


COUNT = ["How many times does the letter {c} occur in {w}?", "How many {c}'s are in {w}?", "Count the letter {c} in {w}.",
         "How often does {c} appear in the word {w}?", 'How many times is {c} in "{w}"?']
COUNT_OPEN = ["I go through {w} and count {c}.", "I look for {c} in {w}."]


def count(rng):
    w = _word(rng)
    c = rng.choice(w) if rng.random() < 0.8 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    i, question = _phrase(rng, COUNT, w=w, c=c)
    seen, steps = 0, []
    for x in w:
        seen += x == c
        steps.append(f"{x} {seen}")
    n = w.count(c)
    think = [COUNT_OPEN[i % 2].format(w=w, c=c), f"{', '.join(steps)}."]
    return _ask("count", f"letters:{w}", question, think, f"The letter {c} occurs {n} {'time' if n == 1 else 'times'} in {w}.")


WEEKDAY = {1: ["What day is it {n} days after {d}?", "If today is {d}, what day is it in {n} days?",
               "Today is {d}. Which weekday comes {n} days later?"],
           -1: ["What day was it {n} days before {d}?", "If today is {d}, what day was it {n} days ago?",
                "Today is {d}. Which weekday was {n} days earlier?"]}
WEEKDAY_OPEN = ["Weekdays repeat every 7 days.", "A week has 7 days.", "I only need the rest after whole weeks."]


def weekday(rng):
    start, n, way = rng.randrange(7), rng.randint(1, 69), rng.choice([1, -1])
    i, question = _phrase(rng, WEEKDAY[way], n=n, d=DAYS[start])
    weeks, rest = divmod(n, 7)
    think = [WEEKDAY_OPEN[i], f"{n} is {weeks}*7+{rest}, so I count {rest} {'on' if way > 0 else 'back'} from {DAYS[start]}."]
    think += [f"{k}: {DAYS[(start + way * k) % 7]}." for k in range(1, rest + 1)] or ["No step is left."]
    return _ask("weekday", f"weekday:{start},{n},{way}", question, think, f"The day is {DAYS[(start + way * n) % 7]}.")


WORD_ADD = ["{p} has {a} {it} and gets {b} more. How many {it} does {p} have now?",
            "{p} buys {a} {it} on Monday and {b} {it} on Friday. How many {it} is that in all?",
            "There are {a} {it} in one box and {b} {it} in another. How many {it} are there together?"]
WORD_SUB = ["{p} has {a} {it} and gives {b} of them away. How many {it} are left?",
            "A shop has {a} {it} and sells {b}. How many {it} does it still have?",
            "There are {a} {it} on the table. {p} takes {b}. How many {it} remain?"]
WORD_MUL = ["{p} has {a} boxes with {b} {it} in each. How many {it} are there in all?",
            "One box holds {b} {it}. How many {it} do {a} boxes hold?",
            "{p} packs {b} {it} into each of {a} bags. How many {it} is that?"]
WORD_OPEN = {"+": "This asks for {a}+{b}.", "-": "This asks for {a}-{b}.", "*": "This asks for {a}*{b}."}


def word(rng):
    op = rng.choice("+-*")
    if op == "*":
        a, b = rng.randint(2, 60), rng.randint(2, 40)
        phrasings, lines, n = WORD_MUL, ar.mul_lines(a, b), a * b
    else:
        a, b = rng.randint(2, 999), rng.randint(2, 999)
        if op == "-":
            a, b = max(a, b), min(a, b)
        phrasings, lines, n = (WORD_ADD, ar.add_lines(a, b), a + b) if op == "+" else (WORD_SUB, ar.sub_lines(a, b), a - b)
    it = rng.choice(ITEMS)
    _, question = _phrase(rng, phrasings, a=a, b=b, it=it, p=rng.choice(NAMES))
    think = [WORD_OPEN[op].format(a=a, b=b)] + lines
    return _ask("word", op_key(a, op, b), question, think, f"The number of {it} is {n}.")


SEQUENCE = ["What comes next: {xs}?", "What is the next number: {xs}?", "Continue the sequence {xs}.",
            "{xs}, what comes next?", "Which number follows {xs}?"]
SEQUENCE_OPEN = ["I look at the step between neighbours.", "I find the step."]


def sequence(rng):
    d, start, length = rng.randint(1, 60), rng.randrange(500), rng.randint(3, 5)
    xs = [start + d * k for k in range(length + 1)]
    down = rng.random() < 0.4
    if down:
        xs.reverse()
    i, question = _phrase(rng, SEQUENCE, xs=_listed(xs[:-1]))
    high, low = max(xs[0], xs[1]), min(xs[0], xs[1])
    think = [SEQUENCE_OPEN[i % 2], f"Step: {high}-{low}."] + ar.sub_lines(high, low)
    last = xs[-2]
    if down:
        think += [f"It goes down by {d}. Next: {last}-{d}."] + ar.sub_lines(last, d)
    else:
        think += [f"It goes up by {d}. Next: {last}+{d}."] + ar.add_lines(last, d)
    return _ask("sequence", f"sequence:{xs[0]},{d},{down}", question, think, f"The next number is {xs[-1]}.")


FACTS = {"name": ("My name is {}.", "What is my name?", NAMES, "Your name is {}."),
         "city": ("I live in {}.", "Where do I live?", CITIES, "You live in {}."),
         "color": ("My favorite color is {}.", "What is my favorite color?", COLORS, "Your favorite color is {}."),
         "pet": ("I have a pet {}.", "Which pet do I have?", ANIMALS, "You have a pet {}."),
         "food": ("I like to eat {}.", "What do I like to eat?", FOODS, "You like to eat {}.")}


def chat(rng):
    told = {k: rng.choice(FACTS[k][2]) for k in rng.sample(list(FACTS), rng.randint(2, 4))}
    asked = rng.choice(list(told))
    said = " ".join(FACTS[k][0].format(v) for k, v in told.items())
    question, answer = FACTS[asked][1], FACTS[asked][3].format(told[asked])
    think = [f"The user asks about the {asked} and said: {FACTS[asked][0].format(told[asked])}"]
    key = "chat:" + ",".join(f"{k}={told[k]}" for k in sorted(told))
    if rng.random() < 0.5:
        return _ask("chat", key, f"{said} {question}", think, answer)
    messages = ({"role": "user", "content": said}, {"role": "assistant", "content": "Nice to know."},
                {"role": "user", "content": question})
    return Problem("chat", key, messages, "\n".join(think), answer)


FOLLOWUP = {"+": ["Now add {c}.", "Add {c} to that.", "And plus {c}?"],
            "-": ["Now subtract {c}.", "Take {c} away from that.", "And minus {c}?"],
            "*": ["Now multiply that by {c}.", "And times {c}?"]}


def followup(rng):
    a = b = 0
    while is_held_out(add_key(a, b)) or not a + b:  # the earlier sum is told, not asked; still keep it off the held-out side
        a, b = rng.randrange(500), rng.randrange(500)
    first, op = a + b, rng.choice("+-*")
    c = rng.randint(2, 9) if op == "*" else rng.randrange(min(first, 300) + 1) if op == "-" else rng.randrange(300)
    _, opening = _phrase(rng, ADD, a=a, b=b)
    _, question = _phrase(rng, FOLLOWUP[op], c=c)
    think = [f"The last result is {first}. Now {first}{op}{c}."]
    think += ar.add_lines(first, c) if op == "+" else ar.sub_lines(first, c) if op == "-" else ar.mul_lines(first, c)
    n = first + c if op == "+" else first - c if op == "-" else first * c
    messages = ({"role": "user", "content": opening}, {"role": "assistant", "content": f"{a} + {b} = {first}."},
                {"role": "user", "content": question})
    return Problem("followup", op_key(first, op, c), messages, "\n".join(think), f"{first} {op} {c} = {n}.")


TASKS = {f.__name__: f for f in (add, sub, mul, compare, sort, maxmin, listsum, reverse, count, weekday, word,
                                 sequence, chat, followup)}


def draw(rng: random.Random, task: str, held_out: bool) -> Problem:
    """A problem of the task from the training side, or from the held-out side, of the split."""
    while True:
        problem = TASKS[task](rng)
        if is_held_out(problem.key) == held_out:
            return problem


def main():
    import argparse
    import time

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for task in [args.task] if args.task else TASKS:
        p = draw(rng, task, held_out=False)
        print(f"--- {p.task} [{p.key}]")
        for m in p.messages:
            print(f"{m['role']}: {m['content']}")
        print(f"<think>\n{p.think}\n</think>\n\n{p.answer}")
    steps, begin = 0, time.time()
    for k in range(args.check):
        p = draw(rng, list(TASKS)[k % len(TASKS)], held_out=k % 5 == 0)
        steps += ar.check_equations(p.think)
    if args.check:
        print(f"ok: {steps} written steps are true, {args.check / (time.time() - begin):.0f} problems/s")


if __name__ == "__main__":
    main()
