r"""The tokens of `ptb.tokenize`: a table of patterns, of which the longest match is taken.

Found by asking the Java PTBTokenizer (Stanford CoreNLP 3.4.1) what it does with some 100,000
made-up words and captions. Rules that only tell one removed mark from another (quotes, dashes, the
second full stop after "etc." at an end) are not here: `ptb.tokenize` drops those marks anyway.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

Rewrite = Callable[[str], str]

# Keep their full stop, whatever follows; written in capitals or not.
ABBREVIATIONS = """
adj adm adv al ala apr ariz assn assoc atty aug ave bhd bldg blvd brig bros calif capt cf cie cmdr
co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri
ft ga gen gov hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md
messrs mfg mich minn mme mo mon mont mr mrs ms mt mtg natl neb nev nov oct okla penn pfc ph plc
prof pte pty pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel
tenn thu thurs tue tues univ va vs vt wed wis wisc wm wyo
""".split()
# These only with a capital, for they are words: "Mass.", "mass ."
CAPITAL_ABBREVIATIONS = "ark az del ill la mass miss ore pa tex wash".split()
# These before a number: "No. 5", "no ."
NUMBERED = "art fig no nos p pp".split()
# After an initial these begin a sentence: "plan j. The end" has no abbreviation.
SENTENCE_STARTS = """
A About According After An As At But Earlier He Her Here However If In It Last Many More Now Once
One Other Our She Since So Some Such That The Their Then There These They This We What When While
Yet You
""".split()
# Words with an apostrophe inside or at their end that are one token.
APOSTROPHE_WORDS = """
ma'am e'er ne'er s'mores li'l c'mon cap'n nat'l ha'penny hawai'i xi'an dunkin' somethin' ol' 'em
'til 'till 'cause 'n'
""".split()
FILE_ENDINGS = """
bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png
ppt ps py sql tar tar.gz txt wav x xml zip
""".split()
# Two words written as one: where they are parted.
PARTED = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3}

SYMBOLS = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"€": "$", "¤": "$", "₠": "$", "\x80": "$", "£": "#", "¢": "cents"},
    **{"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4"},
}
STRAIGHT = str.maketrans(
    dict.fromkeys("’\x92", "'")
    | dict.fromkeys("\u2018\x91", "`")
    | dict.fromkeys("“«", "``")
    | dict.fromkeys("”»", "''")
)
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "", "&apos;": "", "&nbsp;": ""}


class Rule(NamedTuple):
    """What a token may look like.

    Attributes:
      pattern: of the token, group 1 if it has one; the rest of the match must follow, and counts
        when the longest match is sought.
      rewrite: the tokens it becomes, parted by spaces.
    """

    pattern: re.Pattern[str]
    rewrite: Rewrite


def as_is(text: str) -> str:
    """The token itself."""
    return text


def symbols(text: str) -> str:
    """The token with brackets, currencies and fractions spelt as the treebank does."""
    return "".join(SYMBOLS.get(char, char) for char in text)


def entities(text: str) -> str:
    """The token with what SGML escapes put back."""
    return re.sub("&[A-Za-z]+;", lambda found: ENTITIES.get(found[0].lower(), found[0]), text)


def parted(word: str) -> str:
    """gonna → gon na."""
    at = PARTED[word.lower()]
    return f"{word[:at]} {word[at:]}"


def emoticon(text: str) -> str:
    """A face; only its round brackets are spelt out."""
    return text.replace("(", SYMBOLS["("]).replace(")", SYMBOLS[")"])


def straight(text: str) -> str:
    """The text with typewriter's quotes and apostrophes."""
    return text.translate(STRAIGHT)


def dropped(text: str) -> str:
    """Nothing: a mark that is removed."""
    return ""


def any_of(words: Iterable[str]) -> str:
    """A pattern of these words, in capitals or not, longest first, with either apostrophe."""
    ordered = sorted(words, key=len, reverse=True)
    return f"(?i:{'|'.join(ordered)})".replace("'", "['’]")


def capital(word: str) -> str:
    """A pattern of the word with a capital, the rest in capitals or not."""
    return f"{word[0].upper()}(?i:{word[1:]})"


A, D, W = "[A-Za-zé]", "[0-9]", "[A-Za-z0-9é]"  # a letter, a digit, either
Q = "['’]"  # an apostrophe
END = f"(?!{W})"
BLANK = "(?=[ ]|$)"
NUMBER = f"(?:{D}*(?:[.:,]{D}+)+|{D}+)"
SLASHED = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
INNER = r"[^\s\"<>|()\0"  # the beginning of the class of what addresses hold
LAST = rf"{INNER}.!?{{}},-]"
PATH = rf"(?:/{INNER}]*{LAST})?"
NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
CLITIC = "(?i:s|m|d|re|ve|ll)"  # the end of he's, I'm, they'll
FILES = any_of(FILE_ENDINGS)

# Each rule: what may be its first character (a a letter, 0 a digit, * any), pattern, rewriting.
Row = tuple[str, str, Rewrite]
MARKUP: tuple[Row, ...] = (
    ("<", r"</[A-Za-z][^<> \0]*>|<[!?][A-Za-z-][^<>\0]*>", as_is),
    ("<", rf"<{NAME}(?:[ ]+{NAME}(?:=(?:\"[^\"<>]*\"|'[^'<>]*'))?)*[ ]*/?>", as_is),
    ("a", rf"(?i:https?)://{INNER}]+{LAST}", as_is),
    ("a", rf"(?i:www)\.(?:{INNER}.!?{{}},]+\.)+[A-Za-z]{{2,4}}{PATH}", as_is),
    ("a0“\u2018", rf"(?:{INNER}`'.!?{{}},$;:/-]+\.)+(?i:com|net|org|edu){PATH}{END}", as_is),
    ("a0<", rf"<?[A-Za-z0-9]{INNER}{{}}]*@(?:{INNER}{{}}.]+\.)*{INNER}{{}}\[.,;:]+>?", as_is),
    ("@#", rf"@[A-Za-z_][A-Za-z0-9_]*|#{A}+", as_is),
    ("&", r"&(?i:amp|lt|gt|quot|apos|nbsp);", entities),
    ("&", r"&(?:#[0-9]+|[A-Za-z](?i:acute|grave|uml)|[HT][TL]|[UL]R|Q[CLR]|[oc]dq);", as_is),
    ("&", r"&(?:MD|mdash);", dropped),
)
WORDS: tuple[Row, ...] = (
    ("a", rf"{any_of(PARTED)}(?!{W}|{Q}{CLITIC})", parted),
    ("'’", rf"({Q}[tT])(?i:is|was)", straight),
    ("a", r"([A-Za-z]*[A-MO-Za-mo-z])[nN]['’\u2018`][tT]", as_is),
    ("a", r"[nN]['’\u2018`][tT]", straight),
    ("a", rf"{A}{W}*(?:[.!?]{A}{W}*)*", as_is),
    ("a", rf"[dDlLoO]['’`](?!{CLITIC}{END}){A}{{2,}}(?:-{W}+)*|[dDlL]{Q}", as_is),
    ("a", rf"[A-HJ-XZn]{Q}(?!{CLITIC}{END}){A}{{2,}}", as_is),
    ("a", rf"[A-Za-z]+[aeiouyAEIOUY]{Q}(?!{CLITIC}{END})[aeiouA-Z]{A}*", as_is),
    ("a", rf"{A}+(?:-{A}+)*-[dDlLoO]{Q}{A}{{2,}}", as_is),
    ("a0", rf"{W}+(?:[-_]{W}+)*", as_is),
    ("a'’", any_of(APOSTROPHE_WORDS), as_is),
    ("'’", rf"{Q}[nN]{BLANK}", as_is),
    ("a", rf"([yY]{Q}){A}", as_is),
    ("'’", rf"'{CLITIC}(?![A-Za-z])|’{CLITIC}", straight),
    ("'’", rf"{Q}{D}{D}(?:[sS]{END}|{BLANK})", as_is),
    ("a", r"[A-Z]+(?:&(?:amp;)?[A-Z]+)+", entities),
    ("a", r"[A-Z]+(?:\+[A-Z]+)+", as_is),
    ("a", r"[cC]\+\+|[cCfF]#", as_is),
    ("a0", rf"{SLASHED}(?:\\?/{SLASHED}){{1,2}}", as_is),
)
ABBREVIATED: tuple[Row, ...] = (
    ("a", rf"{any_of(ABBREVIATIONS)}\.", as_is),
    ("a", rf"(?:{'|'.join(map(capital, CAPITAL_ABBREVIATIONS))})\.", as_is),
    ("a", rf"({any_of(NUMBERED)}\.)[ ]?-?{D}", as_is),
    ("a", rf"{A}(?:\.{A})+\.?{END}|{A}(?:\.{A})*\.", as_is),
    ("a", rf"({A})\.[ ]+(?:{'|'.join(SENTENCE_STARTS)}){END}", as_is),
    ("a0", r"[A-Za-z0-9]+(?:[.,][A-Za-z0-9]+)*[.,]?(?:-[A-Za-z0-9]+)+", as_is),
    ("a0", r"(?:[A-Za-z0-9]+[.,]?-)+[A-Za-z](?:\.[A-Za-z])+\.", as_is),
    ("a0", rf"({W}+(?:-{W}+)*\.)[,;:]", as_is),
    ("a", r"(?i:ph|ed)\.[ ]?[dD]\.?", as_is),
    ("a0", rf"({W}+(?:\.{W}+)*\.{FILES})(?:[ .?!,]|$)", as_is),
)
NUMBERS: tuple[Row, ...] = (
    ("0-+.,:", rf"[-+]?{NUMBER}", as_is),
    ("0", rf"(?:{D}{{1,4}}[- ])?{D}{{1,4}}(?:\\?/|\u2044){D}{{1,4}}", as_is),
    ("0", rf"{D}{{1,2}}[-/]{D}{{1,2}}[-/]{D}{{2,4}}", as_is),
    ("0", rf"{NUMBER}(?:-{A}+)+", as_is),
    (
        "0(+",
        rf"(?:\({D}{{2,3}}\)[ ]?|(?:\+\+?)?(?:{D}{{2,4}}[- ])?{D}{{2,4}}[- ])"
        rf"{D}{{3,4}}[- ]?{D}{{3,5}}",
        symbols,
    ),
    ("0+", rf"(?:(?:\+\+?)?{D}{{2,4}}\.)?{D}{{2,4}}\.{D}{{3,4}}\.{D}{{3,5}}", as_is),
    ("a", r"[A-Z]+\$", as_is),
)
MARKS: tuple[Row, ...] = (
    ("<>:;=", rf"[<>]?[:;=](?:-|[o*'])?[()DPdpO\\{{@|\[\]]{END}", emoticon),
    ("(^-~>'", r"\([-^x=~<>'][_.]?[-^x=~<>']\)|'_'|\^[-_.]\^|[-~][_.][-~]|>_<", emoticon),
    ("?!*#_@<>", r"[?!]+|\*\*+|##+|__+|@@+|<<|>>", as_is),
    ("'`.-", r"''|``|\.\.\.+|---*", dropped),
    ("`“”\u2018’«»", "[`“”\u2018’«»][“”\u2018’«»`]", straight),
    ("*", r"\S", symbols),
)


@functools.cache
def rules(first: str) -> tuple[Rule, ...]:
    """The rules for tokens with this first character; of two that match as much, the earlier wins.

    Args:
      first: the shadow of a character.
    """
    kind = "0" if first == "0" or first.isdecimal() else "a" if re.match(A, first) else first
    table = (*MARKUP, *WORDS, *ABBREVIATED, *NUMBERS, *MARKS)
    return tuple(
        Rule(re.compile(pattern), rewrite)
        for starts, pattern, rewrite in table
        if kind in starts or starts == "*"
    )
