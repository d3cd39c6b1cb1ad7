"""Captions and answers with what tokenizers disagree on: made from real texts, by a seed."""

from __future__ import annotations

import io
import json
import pathlib
import random
import re
import tarfile
from collections.abc import Iterator, Sequence

WORDS = (
    *("dog", "man's", "women's", "dogs'", "can't", "cannot", "won't", "isn't", "it's"),
    *("they're"),
    *("I'm", "you've", "he'll", "she'd", "o'clock", "ma'am", "y'all", "gonna", "wanna"),
    *("gotta"),
    *("lemme", "gimme", "'em", "'cause", "'til", "'tis", "'twas", "rock'n'roll"),
    *("rock 'n' roll"),
    *("O'Reilly", "d'Orsay", "L'Oreal", "DON'T", "IT'S", "don’t", "it’s", "man’s"),
    *("\u2018til", "let's"),
    *("Mr.", "Mrs.", "Dr.", "St.", "Jr.", "Inc.", "Co.", "Corp.", "Ltd.", "vs.", "etc."),
    *("e.g."),
    *("i.e.", "a.m.", "p.m.", "U.S.", "U.K.", "D.C.", "J.R.R.", "No.", "Ave.", "Jan."),
    *("Sept."),
    *("Mon.", "Calif.", "Ph.D.", "approx.", "ft.", "in.", "lb.", "oz.", "Gen.", "Prof."),
    *("al."),
    *("5", "12", "1,000", "3.14", "$5.00", "50%", "1/2", "2 1/2", "3:30", "10am", "6ft"),
    *("1990s"),
    *("'90s", "5'10", "6'2\"", "10-year-old", "1st", "2nd", "#1", "No.1", "12/31/2010"),
    *("2010-12-31"),
    *("-5", "+3", ".5", "1.", "555-1234", "800-555-1234", "€20", "£5", "¥100", "US$5"),
    *("20°", "x2"),
    *("state-of-the-art", "t-shirt", "T-shirt", "x-ray", "black-and-white", "and/or"),
    *("b/w", "w/"),
    *("his/her", "stop/go", "AT&T", "M&M's", "B&B", "R&B", "Q&A", "c++", "wi-fi"),
    *("e-mail", "Yahoo!"),
    *("http://www.example.com/a?b=1", "www.example.com", "example.com", "me@example.com"),
    *("@user"),
    *("#tag", "<b>", "</b>", "<3", ":)", ":-)", ";)", ":D", ":(", "=)", "^_^", "&amp;"),
    *("&", "&lt;"),
    *("café", "naïve", "jalapeño", "Zürich", "日本", "привет", "über-cool", "fiancé's"),
    *("½", "²", "№"),
    *("™", "®", "©", "•", "…", "→", "★", "🐶", "👍🏽", "❤️", "fi", "İstanbul", "ǅ", "ß", "�"),
)  # fmt: skip
MARKS = (
    *(".", ",", "!", "?", ";", ":", "...", "..", "....", "!!", "??", "?!", "!?", "-"),
    *("--", "---"),
    *("–", "—", "'", '"', "''", "``", "`", "“", "”", "\u2018", "’", "«", "»", "(", ")"),
    *("[", "]", "{"),
    *("}", "<", ">", "/", "\\", "|", "_", "*", "+", "=", "~", "^", "@", "#", "$", "%"),
    *("&", " . "),
)  # fmt: skip


# For cases that are kept beside the tests: of nobody else's texts.
OWN = (
    "A man rides a brown horse along the beach.",
    "Two dogs play with a red ball in the snow",
    "a plate of food with rice and green beans on a table",
    "The bus stops in front of an old brick building.",
    "Three women sit on a bench and look at the sea.",
    "a close up of a cat that sleeps on a laptop",
    "A boy in a blue shirt throws a frisbee to his friend.",
    "There is a clock on the tower of the town hall",
    "An airplane flies over a city at night",
    "some people stand near a train at the station",
    "A kitchen with white cupboards, a stove and a sink.",
    "The girl holds an umbrella while it rains",
)


def base_texts(shared: pathlib.Path) -> list[str]:
    """Real captions and sentences of the shared data, white space made single, in a fixed order."""
    found = []
    for path in sorted((shared / "data/eval/coco").glob("*.json")):
        with open(path, encoding="utf-8") as file:
            found += [row["caption"] for row in json.load(file)["annotations"]]
    for path in sorted((shared / "data/pairs").glob("*/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".txt") and (file := tar.extractfile(member)):
                    found.append(io.TextIOWrapper(file, "utf-8").read())
    for path in sorted((shared / "data/interleaved/mmc4").glob("docs_val*.jsonl")):
        with open(path, encoding="utf-8") as file:
            for line in file:
                found += json.loads(line)["text_list"]
    texts = [" ".join(text.split())[:200] for text in found]
    return sorted({text for text in texts if text})


def mutated(text: str, draw: random.Random) -> str:
    """The text with up to four awkward words or marks put in, glued on, or taken out."""
    words = text.split(" ")[: draw.randint(3, 20)]
    for _ in range(draw.randint(0, 4)):
        at = draw.randrange(len(words) + 1)
        kind = draw.randrange(7)
        if kind <= 1 or not words or at == len(words):
            words.insert(at, draw.choice(WORDS))
        elif kind == 2:
            words[at] += draw.choice(MARKS)
        elif kind == 3:
            words[at] = draw.choice(MARKS) + words[at]
        elif kind == 4:
            words.insert(at, draw.choice(MARKS))
        elif kind == 5:
            words[at] = draw.choice((str.upper, str.title, str.lower))(words[at])
        else:
            words[at] += draw.choice(("-", "'", "/", "'s", "n't", ".")) + draw.choice(WORDS)
    return " ".join(words)


def captions(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` of these texts, with up to four changes each."""
    draw = random.Random(seed)
    return [mutated(draw.choice(texts), draw) for _ in range(count)]


def answers(count: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """(prediction, ten answers) each: some agree, some once they are normalised, some never."""
    draw = random.Random(seed)
    plain = ("yes", "no", "two", "2", "a dog", "the dog", "dog", "none", "0", "ten", "on the left")
    for _ in range(count):
        pool = [awkward_answer(draw, plain) for _ in range(draw.randint(1, 4))]
        given = [variant(draw.choice(pool), draw) for _ in range(10)]
        if draw.random() < 0.15:
            given = given[:1] * 10
        yield variant(draw.choice([*pool, *given]), draw), given


def awkward_answer(draw: random.Random, plain: Sequence[str]) -> str:
    """A short answer, now and then with awkward words or marks."""
    parts = [
        draw.choice(plain if draw.random() < 0.6 else WORDS) for _ in range(draw.randint(1, 3))
    ]
    if draw.random() < 0.3:
        parts.insert(draw.randrange(len(parts) + 1), draw.choice(MARKS))
    return draw.choice((" ", " ", "")).join(parts)


def variant(text: str, draw: random.Random) -> str:
    """The same answer as another person might write it."""
    kind = draw.randrange(9)
    if kind == 0:
        return text.upper()
    if kind == 1:
        return draw.choice(("a ", "an ", "the ", "The ")) + text
    if kind == 2:
        return text + draw.choice((".", "!", ",", "\n", "\t", " ", "?"))
    if kind == 3:
        return re.sub("'", "", text)
    return text
