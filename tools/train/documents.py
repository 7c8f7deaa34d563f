"""What training reads: documents drawn from the mix, each rendered with the model's chat template.

Why it exists: one place that decides how much of what the model sees, and what a document looks like as text. A
document is (prompt, reply): only the reply counts in the loss. A raw text has nothing but the BOS token as its prompt.

    python3 documents.py [--seed 1] [--n 5]     prints documents
"""

import random

import problems
import prose

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT, THINK, END_THINK = "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"
SPECIALS_FIRST = [BOS, EOS, PAD]  # ids 0, 1, 2
SPECIALS_LAST = [USER, ASSISTANT, THINK, END_THINK]  # the last four ids

# The same rules as render() below; tests compare the two.
CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}{%- set ns.system = message['content'] %}{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.system }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}"
    "{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{%- endif %}"
    "{%- endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}")

PROSE_SHARE = 0.40  # of the documents

SYSTEMS = ["You are a helpful assistant.", "You are a careful assistant. Think step by step.", "Answer briefly.",
           "You solve small problems.", "You are Sluice, a small model that shows its work.", "Be polite and exact."]

BEFORE = ["Hi! ", "Hello, ", "Please: ", "A question: ", "OK. ", "Tell me: "]
AFTER = [" Thanks!", " Please.", " Think step by step.", " Please reason step by step.", " Show your work.", "\n"]

HELLOS = ["Hello", "Hello!", "Hi", "Hi there!", "Good morning!", "Good evening.", "Hey", "How are you?"]
WHO = ["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "What can you do?", "Help", "What do you know?"]
THANKS = ["Thank you!", "Thanks.", "Great, thanks!", "Bye", "Goodbye!"]
UNKNOWN = ["What is the capital of {c}?", "Who wrote the book about the {a}?", "How old is {p}?", "Why is the {a} {k}?", "How do I cook {f}?",
           "What is the weather in {c}?", "Is {f} healthy?", "Translate {f} into French.", "Who is {p}?", "When was {c} founded?",
           "Explain how a {a} sleeps.", "How far is it to {c}?"]
WRITE = {"english": ["Tell me a story.", "Write some prose.", "Tell me a short tale."], "german": ["Schreib etwas auf Deutsch.", "Write in German."],
         "french": ["Écris en français.", "Write in French."], "spanish": ["Escribe en español.", "Write in Spanish."],
         "chinese": ["请写中文。", "Write in Chinese."], "japanese": ["にほんごでかいて。", "Write in Japanese."],
         "log": ["Show me a server log.", "Make up a log file."], "code": ["Write some code.", "Write a Python snippet."],
         "measurements": ["Make a table of measurements.", "Show weather data."], "recipe": ["Give me a recipe.", "Invent a recipe."]}
INVENT = ["Make up an addition and solve it.", "Invent a sum and solve it.", "Give me a random addition with its result.",
          "Think of two numbers and add them."]


def render(messages, generation_prompt=True) -> str:
    """Messages as text, as the chat template does it."""
    system = [m["content"] for m in messages if m["role"] == "system"]
    out = [BOS, system[-1] if system else ""]
    for m in messages:
        if m["role"] == "user":
            out.append(USER + m["content"])
        elif m["role"] == "assistant":
            out.append(ASSISTANT + m["content"].split(END_THINK)[-1] + EOS)
    return "".join(out) + (f"{ASSISTANT}{THINK}\n" if generation_prompt else "")


def reply_text(think: str, answer: str) -> str:
    """What follows the generation prompt."""
    return f"{think}\n{END_THINK}\n\n{answer}{EOS}"


def _user(text):
    return {"role": "user", "content": text}


def smalltalk(rng):
    kind = rng.randrange(4)
    if kind == 0:
        return [_user(rng.choice(HELLOS))], "The user greets me.", "Hello! Ask me a small problem."
    if kind == 1:
        return ([_user(rng.choice(WHO))], "The user asks about me.",
                "I am a tiny model. I can add, subtract, multiply, compare, sort, count letters and tell weekdays.")
    if kind == 2:
        return [_user(rng.choice(THANKS))], "The user is polite.", "You are welcome."
    w = prose
    question = rng.choice(UNKNOWN).format(c=rng.choice(w.CITIES), a=rng.choice(w.ANIMALS), p=rng.choice(w.NAMES), k=rng.choice(w.COLORS),
                                          f=rng.choice(w.FOODS))
    return [_user(question)], "This is not one of the problems I know.", "I do not know that. I am good at small problems with numbers and letters."


def invention(rng):
    """Numbers drawn inside the reasoning: nobody can know them before they stand there."""
    while True:
        a, b = rng.randrange(10, 1000), rng.randrange(10, 1000)
        if not problems.is_held_out(problems.add_key(a, b)):
            break
    think = [f"I take {a} and {b}."] + problems.ar.add_lines(a, b)
    return [_user(rng.choice(INVENT))], "\n".join(think), f"{a} + {b} = {a + b}."


def problem(rng, task=None, held_out=False):
    p = problems.draw(rng, task or rng.choice(list(problems.TASKS)), held_out)
    return list(p.messages), p.think, p.answer


def loosen(rng, text):
    """The question as people type it: a missing full stop, a small first letter, a word before or after."""
    x = rng.random()
    if x < 0.08:
        return text.rstrip("?.")
    if x < 0.14:
        return text[0].lower() + text[1:]
    if x < 0.20:
        return rng.choice(BEFORE) + text
    return text + rng.choice(AFTER) if x < 0.26 else text


def _earlier_turn(rng):
    messages, _, answer = problem(rng) if rng.random() < 0.7 else smalltalk(rng)
    lead = "\n\n" if rng.random() < 0.3 else ""  # some clients send the text after </think> back as it stood
    return [*messages, {"role": "assistant", "content": lead + answer}]


def decorate(rng, messages):
    """Sometimes loosely put, after unrelated earlier turns, or under a system prompt."""
    messages = [*messages[:-1], _user(loosen(rng, messages[-1]["content"]))]
    while rng.random() < 0.10:
        messages = _earlier_turn(rng) + messages
    if rng.random() < 0.10:
        system = rng.choice(SYSTEMS) if rng.random() < 0.5 else prose.draw(rng, "english", rng.randint(1, 2))
        messages = [{"role": "system", "content": system}] + messages
    return messages


def prose_document(rng, domain=None):
    domain = domain or rng.choice(prose.DOMAINS)
    text = prose.draw(rng, domain, rng.randint(3, 9))
    if rng.random() < 0.6:
        return BOS, text + EOS
    messages = decorate(rng, [_user(rng.choice(WRITE[domain]))])
    return render(messages), reply_text(f"The user wants {domain} text. I make something up.", text)


def draw(rng: random.Random, prose_share: float = PROSE_SHARE):
    """One training document: (prompt, reply, whether the prompt determines the reply)."""
    x = rng.random()
    if x < prose_share:
        return *prose_document(rng), False
    source = smalltalk if x < prose_share + 0.02 else invention if x < prose_share + 0.07 else problem
    messages, think, answer = source(rng)
    return render(decorate(rng, messages)), reply_text(think, answer), source is not invention


def main():
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=5)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for _ in range(args.n):
        prompt, reply, _ = draw(rng)
        print(f"{prompt}|||{reply}\n---")


if __name__ == "__main__":
    main()
