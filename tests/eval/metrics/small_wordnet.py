"""A WordNet of ten senses."""

import pathlib

LICENCE = "  1 This is an indented licence.\n"
# Kind → word: what is above it. entity ← animal ← (dog ← puppy, cat); two ways up from a cub.
WORDS = {
    "noun": {
        "entity": (),
        "pet": ("entity",),
        "animal": ("entity",),
        "dog": ("animal", "pet"),
        "cat": ("animal",),
        "puppy": ("dog",),
        "catch": ("animal",),
    },
    "verb": {"move": (), "run": ("move",), "sleep": ()},
    "adj": {},
    "adv": {},
}
LETTER = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}


def write(folder: pathlib.Path, end: str = "\n") -> pathlib.Path:
    """WordNet's files of WORDS, with these line ends; offsets count \\n."""
    irregular = {"noun": "mice mouse\npuppen puppy\n", "verb": "ran run\n"}
    for kind, words in WORDS.items():
        data, offsets = LICENCE, {}
        for word, above in words.items():
            offsets[word] = len(data)
            pointers = "".join(f"@ {offsets[one]:08d} {LETTER[kind]} 0000 " for one in above)
            row = f"03 {LETTER[kind]} 01 {word.title()} 0 {len(above):03d} {pointers}| a gloss"
            data += f"{offsets[word]:08d} {row}  \n"
        index = "".join(f"{w} {LETTER[kind]} 1 1 @ 1 0 {at:08d}  \n" for w, at in offsets.items())
        for name, text in (
            (f"data.{kind}", data),
            (f"index.{kind}", LICENCE + index),
            (f"{kind}.exc", irregular.get(kind, "")),
        ):
            (folder / name).write_bytes(text.replace("\n", end).encode())
    return folder
