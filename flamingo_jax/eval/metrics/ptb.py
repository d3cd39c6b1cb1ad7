"""Words of captions as the caption metrics count them, without Java.

Does what pycocoevalcap's PTBTokenizer does: Stanford CoreNLP 3.4.1's, in small letters, then
certain marks taken out. Each caption stands for itself here. The Java program reads on into the
next one, and so takes the end of "The letter K." for a full stop if "The cat" follows, but for part
of an initial if "the cat" does; here it is always the latter, as at the end of a file. Blanks
inside of a token (fractions, numbers of telephones, tags) part it, as metrics split there. Not
done: letters newer than Unicode 6, letters written as SGML entities within words, and some hyphens
after full stops ("Jan.-x").
"""

from __future__ import annotations

import re

from flamingo_jax.eval.metrics.ptb_characters import NOTHING, shadow
from flamingo_jax.eval.metrics.ptb_rules import PARTED, rules

# What pycocoevalcap takes out. Its list has round and curly brackets in capitals, tokens are in
# small letters: brackets stay in.
REMOVED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
REMOVED_SHADOWS = frozenset('"–’\u2018“”«»…\x91\x92')  # what Java turns into those
PLAIN = re.compile(r"[A-Za-z]+(?=[ ]|$)")  # one token, and most of what there is
SOFT_HYPHEN = "\xad"


def tokenize(caption: str) -> list[str]:
    """A caption's words, in small letters and without punctuation."""
    text = caption.replace(SOFT_HYPHEN, "")
    seen = shadow(text)
    tokens: list[str] = []
    at = 0
    while at < len(text):
        if seen[at] in (" ", NOTHING):
            at += 1
            continue
        plain = PLAIN.match(seen, at)
        if plain and plain[0].lower() not in PARTED:
            tokens.append(plain[0].lower())
            at = plain.end()
            continue
        matches = [(rule.pattern.match(seen, at), rule.rewrite) for rule in rules(seen[at])]
        longest, rewrite = max(
            ((found, rewrite) for found, rewrite in matches if found), key=lambda one: one[0].end()
        )
        start, at = at, longest.end(longest.re.groups and 1)
        if seen[start:at] not in REMOVED_SHADOWS:
            tokens += rewrite(text[start:at]).lower().split()
    return [token for token in tokens if token not in REMOVED]
