"""Names of the demo's pictures, and the parts they are made of."""

import pytest

from flamingo_jax.data.openmoji.names import parse

# short code, characters, then text, base, family, gender, tones
NAMES = [
    (":hot_dog:", "🌭", "hot dog", "hot dog", "hot dog", "", ()),
    (
        ":man_teacher_medium_skin_tone:",
        "👨🏽‍🏫",
        "man teacher, medium skin tone",
        "man teacher",
        "teacher",
        "man",
        ("medium",),
    ),
    (":teacher:", "🧑‍🏫", "teacher", "teacher", "teacher", "", ()),
    (
        ":woman_medium-dark_skin_tone_beard:",
        "🧔🏾‍♀️",
        "woman with beard, medium-dark skin tone",
        "woman with beard",
        "beard",
        "woman",
        ("medium-dark",),
    ),
    (
        ":kiss_woman_man_dark_skin_tone_medium-light_skin_tone:",
        "👩🏿‍❤️‍💋‍👨🏼",
        "kiss, woman and man, dark and medium-light skin tones",
        "kiss, woman and man",
        "kiss",
        "woman+man",
        ("dark", "medium-light"),
    ),
    (
        ":woman_and_man_holding_hands:",
        "👫",
        "woman and man holding hands",
        "woman and man holding hands",
        "holding hands",
        "woman+man",
        (),
    ),
    (":family_man_boy_boy:", "👨‍👦‍👦", "family, man, boy and boy", None, "family", "man", ()),
    (":mermaid:", "🧜‍♀️", "mermaid", "mermaid", "merperson", "woman", ()),
    (":old_woman:", "👵", "old woman", "old woman", "old", "woman", ()),
    (":Kenya:", "🇰🇪", "flag of Kenya", None, "flag of Kenya", "", ()),
    (":Isle_of_Man:", "🇮🇲", "flag of the Isle of Man", None, "flag of the Isle of Man", "", ()),
    (":Czechia:", "🇨🇿", "flag of Czechia", None, "flag of Czechia", "", ()),
    (":Wales:", "🏴󠁧󠁢󠁷󠁬󠁳󠁿", "flag of Wales", None, "flag of Wales", "", ()),
    (":pirate_flag:", "🏴‍☠️", "pirate flag", None, "pirate flag", "", ()),
]


@pytest.mark.parametrize(("code", "characters", "text", "base", "family", "gender", "tones"), NAMES)
def test_parts_of_a_name(code, characters, text, base, family, gender, tones):
    name = parse(code, characters)
    assert name.text == text
    assert name.base == (base or text)
    assert (name.family, name.gender, name.tones) == (family, gender, tones)
    assert name.flag == text.startswith("flag of")
