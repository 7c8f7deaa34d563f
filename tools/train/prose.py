"""Text that nobody can predict: prose in six languages, logs, code, and numbers drawn before they are explained.

Why it exists, twice:
* Problems alone make the model certain of every token, and a multi-token-prediction draft that is always right leaves
  the reject path of a server untested. Here many continuations are possible at most words.
* Each domain has its own words and characters, so its tokens prefer their own experts: a stream of one domain loads
  the experts unevenly, which is what an expert balancer has to be tested on.

    python3 prose.py [--seed 1]     prints one text per domain
"""

import random

from words import ANIMALS, CITIES, COLORS, FOODS, NAMES

# domain -> (word classes, sentence patterns); {subject} stays the same through one text.
LANGUAGES = {
    "english": (
        {"subject": [f"{n}" for n in NAMES] + [f"the {a}" for a in ANIMALS],
         "place": """the old bridge|the harbor|a quiet valley|the market square|the edge of the forest|the railway station|a small
 island|the library|the top of the hill|the river bank|the garden gate|an empty street""".replace("\n", "").split("|"),
         "weather": "rain|snow|sunshine|fog|wind|thunder|frost|mist".split("|"),
         "thing": "lantern|letter|map|violin|basket|key|painted box|clock|coat|mirror|silver coin|kite".split("|"),
         "mood": "tired|happy|curious|silent|afraid|proud|hungry|lonely|patient|brave".split("|"),
         "time": "In the morning|At noon|Late at night|After a while|One day|Before dawn|That evening|In winter".split("|"),
         "person": "a fisherman|the baker|a stranger|an old woman|the captain|two children|a painter|the night guard".split("|")},
        ["{time} {subject} walked to {place}.", "There was {weather} over {place}, and {subject} felt {mood}.",
         "{subject} found a {thing} near {place}.", "{person} asked {subject} about the {thing}.",
         "{time} {person} came from {place} with a {thing}.", "Nobody knew why {subject} was so {mood}.",
         "The {thing} was lost in the {weather}.", "{subject} waited at {place} until the {weather} had passed.",
         "{person} told a story about a {thing} and a {mood} king.", "{time} there was only {weather}."]),
    "german": (
        {"subject": "Der Wanderer|Die Lehrerin|Das Kind|Der Nachbar|Die Königin|Der Hund|Die Großmutter|Der Bäcker".split("|"),
         "ort": "am Fluss|im dunklen Wald|auf dem Marktplatz|hinter der Mühle|in der Küche|vor dem Rathaus|an der Grenze|im Garten".split("|"),
         "ding": "einen Schlüssel|ein Buch|eine Laterne|ein Fahrrad|einen Brief|eine Geige|einen Koffer|ein Messer".split("|"),
         "zeit": "Am Morgen|Gegen Mittag|In der Nacht|Nach dem Regen|Im Herbst|Später|Jeden Sonntag|Plötzlich".split("|"),
         "art": "müde|fröhlich|schweigsam|neugierig|wütend|geduldig|traurig|höflich".split("|")},
        ["{subject} stand {ort} und war {art}.", "{zeit} fand man {ort} {ding}.", "{subject} suchte {ding}, aber es wurde dunkel.",
         "{zeit} war es {ort} ganz still.", "Niemand wusste, warum {ding} {ort} lag.", "{subject} blieb {art} und wartete {ort}.",
         "{zeit} verkaufte jemand {ding} für wenig Geld."]),
    "french": (
        {"subject": "le voisin|la boulangère|le chat gris|une jeune fille|le capitaine|la reine|mon oncle|le facteur".split("|"),
         "lieu": "près du pont|dans la forêt|sur la place|derrière l'église|au bord de la mer|à la gare|sous les étoiles|au marché".split("|"),
         "chose": "une lettre|un parapluie|une vieille montre|des fleurs|un gâteau|une valise|un secret|du fromage".split("|"),
         "temps": "Ce matin-là|À midi|Pendant la nuit|Un jour|En été|Après la pluie|Vers le soir|Tout à coup".split("|"),
         "humeur": "heureux|fatigué|curieux|inquiet|tranquille|fier|triste|étonné".split("|")},
        ["{temps}, {subject} cherchait {chose} {lieu}.", "{subject} était {humeur} et restait {lieu}.",
         "On trouva {chose} {lieu}.", "{temps}, tout le monde semblait {humeur}.", "{subject} n'avait jamais vu {chose}.",
         "Il faut laisser {chose} {lieu}, disait {subject}.", "{temps}, il y avait {chose} {lieu}."]),
    "spanish": (
        {"subject": "el pescador|la maestra|el niño|mi abuela|el caballo|la vecina|el jardinero|un viajero".split("|"),
         "lugar": "junto al río|en la plaza|detrás de la montaña|cerca del puerto|en la cocina|bajo el árbol|por el camino|en el pueblo".split("|"),
         "cosa": "una guitarra|un sombrero|las llaves|una carta|un espejo|pan caliente|una moneda|un reloj".split("|"),
         "tiempo": "Por la mañana|Al mediodía|De noche|Aquel año|En primavera|Después de la lluvia|Mañana|Siempre".split("|"),
         "modo": "contento|cansado|tranquilo|valiente|triste|callado|nervioso|orgulloso".split("|")},
        ["{tiempo} {subject} llevaba {cosa} {lugar}.", "{subject} estaba {modo} {lugar}.", "¿Quién dejó {cosa} {lugar}?",
         "{tiempo} no había nadie {lugar}.", "{subject} soñaba con {cosa}.", "{tiempo} todos buscaban {cosa}.",
         "Nadie sabe por qué {subject} parece tan {modo}."]),
    "chinese": (
        {"subject": "老人 小猫 他 她 朋友 学生 国王 农夫 船长 孩子".split(), "place": "山上 河边 城里 花园里 海边 学校 市场 桥下".split(),
         "thing": "书 灯 信 苹果 马 钥匙 茶 画".split(), "time": "早上 晚上 昨天 冬天 后来 有一天 今天 春天".split(),
         "act": "看见 买了 找到 忘了 喜欢 带来 卖了 画了".split()},
        ["{time}，{subject}在{place}{act}{thing}。", "{subject}说：“我{act}{thing}。”", "{place}有很多{thing}。", "{time}下雨了，{subject}去了{place}。",
         "{subject}和{subject2}在{place}。"]),
    "japanese": (
        {"subject": "わたし せんせい いぬ ともだち こども おばあさん ねこ 王さま".split(), "place": "山 川 町 にわ 海 学校 駅 森".split(),
         "thing": "本 手紙 りんご かさ とけい 花 魚 おちゃ".split(), "time": "朝 夜 きのう 冬 ある日 きょう 夏 あした".split(),
         "act": "見ました 買いました なくしました 見つけました 食べました 持ってきました".split()},
        ["{time}、{subject}は{place}で{thing}を{act}。", "{place}に{thing}があります。", "{subject}は{thing}がすきです。", "{time}は{place}がしずかでした。",
         "{subject}と{subject2}は{place}へ行きました。"]),
}


def language_text(rng: random.Random, domain: str, sentences: int) -> str:
    classes, patterns = LANGUAGES[domain]
    spaced = domain not in ("chinese", "japanese")
    hero = rng.choice(classes["subject"])
    out = []
    for _ in range(sentences):
        slots = {name: rng.choice(values) for name, values in classes.items()}
        slots["subject2"] = slots["subject"]
        slots["subject"] = hero if rng.random() < 0.7 else slots["subject"]
        sentence = rng.choice(patterns).format(**slots)
        out.append(sentence[0].upper() + sentence[1:])
    return (" " if spaced else "").join(out)


def server_log(rng: random.Random, lines: int) -> str:
    minute, second, out = rng.randrange(60), rng.randrange(60), []
    for _ in range(lines):
        second += rng.randint(1, 9)
        minute, second = (minute + second // 60) % 60, second % 60
        level = rng.choice(["INFO", "INFO", "INFO", "WARN", "ERROR", "DEBUG"])
        what = rng.choice(["GET /index {code} in {ms} ms", "POST /login {code} in {ms} ms", "cache miss for key {hex}",
                           "worker {n} restarted", "connection from 10.0.{n}.{m} closed", "queue length {ms}", "disk {n} is {m} full"])
        what = what.format(code=rng.choice([200, 200, 200, 301, 404, 500]), ms=rng.randrange(900), hex=f"{rng.randrange(65536):04x}",
                           n=rng.randrange(10), m=rng.randrange(100))
        out.append(f"12:{minute:02d}:{second:02d} [{level}] {what}")
    return "\n".join(out)


def source_code(rng: random.Random, lines: int) -> str:
    names, out = "i j k x y total count size value left right item node index".split(), []
    while len(out) < lines:
        a, b, c = rng.sample(names, 3)
        out += rng.choice([
            [f"def {rng.choice(['get', 'set', 'find', 'make', 'load'])}_{a}({b}, {c}):", f"    return {b} {rng.choice('+-*/')} {c}", ""],
            [f"for {a} in range({rng.randrange(100)}):", f"    {b} += {a}"], [f"{a} = {rng.randrange(1000)}"],
            [f"if {a} {rng.choice(['<', '>', '==', '!='])} {b}:", f"    {c} = None"], [f"while {a} < len({b}):", f"    {a} += {rng.randint(1, 4)}"],
            [f"assert {a} is not None, '{b}'"], [f"print({a}, {b})"]])
    return "\n".join(out)


def measurements(rng: random.Random, lines: int) -> str:
    out = ["station;hour;temp;wind;sky"]
    for _ in range(lines):
        out.append(f"{rng.randrange(1, 30)};{rng.randrange(24)};{rng.randrange(-12, 36)}.{rng.randrange(10)};{rng.randrange(60)};"
                   + rng.choice(["clear", "cloudy", "rain", "snow", "fog"]))
    return "\n".join(out)


def recipe(rng: random.Random, lines: int) -> str:
    dish = rng.choice(FOODS)
    out = [f"Recipe: {rng.choice(COLORS)} {dish} from {rng.choice(CITIES)}"]
    for k in range(lines):
        what = rng.choice(["Take {n} grams of {f}.", "Stir the {f} for {n} minutes.", "Add {f} and {g}.", "Heat to {n} degrees.",
                           "Cut the {f} into {n} pieces.", "Let the {f} rest.", "Serve with {g}."])
        out.append(f"{k + 1}. " + what.format(n=rng.randrange(2, 300), f=rng.choice(FOODS), g=rng.choice(FOODS)))
    return "\n".join(out)


OTHERS = {"log": server_log, "code": source_code, "measurements": measurements, "recipe": recipe}
DOMAINS = [*LANGUAGES, *OTHERS]


def draw(rng: random.Random, domain: str, size: int) -> str:
    """A text of `size` sentences or lines."""
    return language_text(rng, domain, size) if domain in LANGUAGES else OTHERS[domain](rng, size)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    rng = random.Random(parser.parse_args().seed)
    for domain in DOMAINS:
        print(f"--- {domain}\n{draw(rng, domain, 5)}")
