"""Prompts, character by character, and the parts they are made of."""

import dataclasses
import io
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flamingo_jax.data.prompt import Text, Video, lay_out
from flamingo_jax.data.readers.record import Record
from flamingo_jax.data.tokenizer import open_tokenizer
from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import ANSWER, CAPTION, CHOICE, Benchmark, Example, Stored
from flamingo_jax.eval.protocol import presets
from flamingo_jax.eval.protocol.prompts import Asker, Prompt
from flamingo_jax.eval.protocol.splits import Chosen
from flamingo_jax.eval.protocol.templates import Template

MEMES = ("no", "yes")
CLASSES = ("tench", "goldfish", "great white shark")


class Records:
    """A reader of one record."""

    def __init__(self, fields: dict[str, bytes]) -> None:
        self._record = Record("0", fields)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Record:
        return [self._record][index]


def picture(name: str) -> pathlib.Path:
    return pathlib.Path(f"/pictures/{name}.jpg")


def benchmark(name: str, kind: str, support: list[Example], query: Example) -> Benchmark:
    return Benchmark(name, name, kind, "top1", support, [query], "val")


def caption(name: str, query: str = "q") -> Benchmark:
    shots = [
        Example("a", picture("a"), answers=(" A cat. ", "Cat.")),
        Example("b", picture("b"), answers=("A dog\n", "Dog.")),
    ]
    return benchmark(name, CAPTION, shots, Example(query, picture(query)))


def vqa(name: str) -> Benchmark:
    shots = [
        Example("a", picture("a"), "What is it?", answers=("one", "two", "two")),
        Example("b", picture("b"), "And this?", answers=(" x ", " x ", "y")),
    ]
    return benchmark(name, ANSWER, shots, Example("q", picture("q"), "Who?"))


def memes() -> Benchmark:
    shots = [
        Example(key, picture(key), ocr=f"{key} 'said' {{it}}", choices=MEMES, right=right)
        for key, right in (("a", 0), ("b", 1))
    ]
    query = Example("q", picture("q"), ocr="why", choices=MEMES, right=1)
    return benchmark("hateful_memes", CHOICE, shots, query)


def classes() -> Benchmark:
    shots = [
        Example(key, picture(key), choices=CLASSES, right=right, label=CLASSES[right])
        for key, right in (("a", 0), ("b", 2))
    ]
    query = Example("q", picture("q"), choices=CLASSES, right=1)
    return benchmark("imagenet", CHOICE, shots, query)


def ask(of: Benchmark, preset: str, shots: int, **changes: Any) -> Prompt:
    """The prompt of the query, shot "a" before shot "b"."""
    protocol = dataclasses.replace(presets.find(preset), **changes)
    asker = Asker(protocol, of, Chosen(tuple(of.support), tuple(of.queries)), seed=0)
    # The nearest one comes last.
    return asker.prompts(of.queries[0], shots, neighbours=(1, 0))[0]


def shown(prompt: Prompt) -> str:
    return prompt.shown("<image>", "<|endofchunk|>")


@pytest.mark.parametrize("name", ["coco", "flickr30k", "vatex"])
def test_openflamingos_captions(name: str) -> None:
    """`<image>Output:{c}<|endofchunk|>`, the caption stripped, a newline after each shot."""
    assert shown(ask(caption(name), "openflamingo", 2)) == (
        "<image>Output:A cat.<|endofchunk|>\n<image>Output:A dog<|endofchunk|>\n<image>Output:"
    )
    assert shown(ask(caption(name), "openflamingo", 1)) == (
        "<image>Output:A dog<|endofchunk|>\n<image>Output:"
    )
    assert shown(ask(caption(name), "openflamingo", 0)) == (
        "Output:A cat.<|endofchunk|>\nOutput:A dog<|endofchunk|>\n<image>Output:"
    )


@pytest.mark.parametrize("name", ["vqav2", "okvqa", "vizwiz", "textvqa"])
def test_openflamingos_questions(name: str) -> None:
    """The first of a shot's answers, as it is."""
    assert shown(ask(vqa(name), "openflamingo", 2)) == (
        "<image>Question:What is it? Short answer:one<|endofchunk|>\n"
        "<image>Question:And this? Short answer: x <|endofchunk|>\n"
        "<image>Question:Who? Short answer:"
    )
    assert shown(ask(vqa(name), "openflamingo", 0)) == (
        "Question:What is it? Short answer:one<|endofchunk|>\n"
        "Question:And this? Short answer: x <|endofchunk|>\n"
        "<image>Question:Who? Short answer:"
    )


def test_openflamingos_memes() -> None:
    prompt = ask(memes(), "openflamingo", 2)
    shots = (
        "is an image with: 'a 'said' {it}' written on it. Is it hateful? Answer:no<|endofchunk|>",
        "is an image with: 'b 'said' {it}' written on it. Is it hateful? Answer:yes<|endofchunk|>",
    )
    query = "<image>is an image with: 'why' written on it. Is it hateful? Answer:"
    assert shown(prompt) == f"<image>{shots[0]}<image>{shots[1]}{query}"
    assert prompt.choices == ("no", "yes")
    assert shown(ask(memes(), "openflamingo", 0)) == f"{shots[0]}{shots[1]}{query}"


def test_openflamingos_classes() -> None:
    prompt = ask(classes(), "openflamingo", 2)
    shots = ("Output:tench<|endofchunk|>", "Output:great white shark<|endofchunk|>")
    assert shown(prompt) == f"<image>{shots[0]}<image>{shots[1]}<image>Output:"
    assert prompt.choices == CLASSES
    assert shown(ask(classes(), "openflamingo", 0)) == f"{shots[0]}{shots[1]}<image>Output:"


def test_openflamingos_decoding() -> None:
    protocol = presets.OPENFLAMINGO
    stop = ("<EOC>",)
    of_caption, of_answer = protocol.generation(caption("coco")), protocol.generation(vqa("vqav2"))
    assert dataclasses.astuple(of_caption) == (20, 3, 0.0, stop)
    assert dataclasses.astuple(of_answer) == (5, 3, 0.0, stop)
    assert protocol.generation(vqa("textvqa")).max_new_tokens == 10
    assert (protocol.shots, protocol.reduce, protocol.closing) == ((0, 4, 8, 16, 32), "mean", False)


def test_flamingos_prompts() -> None:
    """Flamingo v1, §4.2: a space before an answer, no newline; the reference most people gave."""
    assert ask(caption("coco"), "flamingo", 2).shown() == (
        "<image>Output:  A cat. <EOC><image>Output: A dog\n<EOC><image>Output:"
    )
    assert ask(caption("coco"), "flamingo", 0).shown() == (
        "Output:  A cat. <EOC>Output: A dog\n<EOC><image>Output:"
    )
    assert ask(vqa("vqav2"), "flamingo", 2).shown() == (
        "<image>Question: What is it? Answer: two<EOC>"
        "<image>Question: And this? Answer:  x <EOC><image>Question: Who? Answer:"
    )
    said = 'is an image with written: "why" on it. Is it hateful? Answer:'
    assert ask(memes(), "flamingo", 0).shown() == f"<image>{said}"  # close-ended: none
    assert ask(memes(), "flamingo", 1).shown().endswith(f"Answer: yes<EOC><image>{said}")
    assert ask(classes(), "flamingo", 0).shown() == "<image>Output:"
    assert ask(classes(), "flamingo", 0).choices == tuple(f" {name}" for name in CLASSES)


def test_flamingos_dialogues() -> None:
    example = Example(
        "a", picture("a"), "And?", "A cat.", (("Is it?", "yes"), ("Why?", "no")), answers=("so",)
    )
    query = dataclasses.replace(
        example, key="q", medium=picture("q"), turns=(), answers=(), choices=("b", "c")
    )
    of = benchmark("visdial", CHOICE, [example], query)
    protocol = presets.FLAMINGO
    asker = Asker(protocol, of, Chosen((example,), (query,)), seed=0)
    [prompt] = asker.prompts(query, 1)
    assert prompt.shown() == (
        "<image>A cat. Question: Is it? Answer: yes Question: Why? Answer: no "
        "Question: And? Answer: so<EOC><image>A cat. Question: And? Answer:"
    )
    assert prompt.choices == (" b", " c")


def test_idefics_prompts() -> None:
    guide = "Instruction: Provide an answer to the question. Use the image to answer.\n"
    assert ask(vqa("vqav2"), "idefics", 1).shown() == (
        f"{guide}<image>Question: And this? Answer:  x \n<image>Question: Who? Answer:"
    )
    query = "User:<image>Describe this image.\nAssistant:"
    assert ask(caption("coco"), "idefics", 0).shown() == query
    assert ask(caption("coco"), "idefics", 1).shown() == f"{query} A dog\n\n{query}"


def test_parts_are_what_generate_takes() -> None:
    """Text of a benchmark that looks like a control token is text."""
    shots = [Example("a", picture("a"), "is <image> it?", answers=("<EOC>",))]
    of = benchmark("vqav2", ANSWER, shots, Example("q", picture("q"), "<EOC><image>"))
    protocol = presets.FLAMINGO
    [prompt] = Asker(protocol, of, Chosen(tuple(shots), tuple(of.queries)), 0).prompts(
        of.queries[0], 1
    )
    assert prompt.support == (
        picture("a"), "Question: is <image> it? Answer: <EOC>", "<EOC>",
    )  # fmt: skip
    assert [type(part) is Text for part in prompt.support] == [False, True, False]
    assert prompt.own == (picture("q"), "Question: <EOC><image> Answer:")
    assert isinstance(prompt.own[1], Text)
    new = open_tokenizer("bytes")
    laid = lay_out(prompt.parts, new)
    assert laid.tokens.count(new.eoc) == 1 and laid.media == [picture("a"), picture("q")]
    assert laid.media_of_token == sorted(laid.media_of_token)


def test_media_of_every_form() -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (9, 8, 7)).save(file, "PNG")
    fields = {"image": file.getvalue(), "broken": b"nothing"}
    records = Records(fields)
    clip = Video("/clips/a.mp4", start=2.0, end=5.0)
    of = caption("coco")
    broken = [Stored(records, 0, name) for name in ("broken", "missing")]
    for medium in (clip, Stored(records, 0, "image"), picture("z"), *broken):
        query = Example("m", medium)
        asker = Asker(presets.FLAMINGO, of, Chosen(tuple(of.support), (query,)), 0)
        if medium in broken:
            with pytest.raises(InputError, match="the picture of 'm' is broken"):
                asker.prompts(query, 0)
            continue
        part = asker.prompts(query, 0)[0].own[0]
        if isinstance(medium, Video):
            assert part == Video("/clips/a.mp4", 30, 3.0, 2.0, 5.0)
        elif isinstance(medium, Stored):
            assert np.asarray(part).tolist() == [[[9, 8, 7]] * 3] * 2
        else:
            assert part == medium


def test_ensembling_asks_the_same_shots_in_other_orders() -> None:
    shots = [
        Example(str(i), picture(str(i)), choices=CLASSES, right=i % 3, label=CLASSES[i % 3])
        for i in range(6)
    ]
    of = benchmark("imagenet", CHOICE, shots, Example("q", picture("q"), choices=CLASSES, right=0))
    protocol = dataclasses.replace(presets.FLAMINGO, orders=6)
    asker = Asker(protocol, of, Chosen(tuple(shots), tuple(of.queries)), 0)
    query = of.queries[0]
    nearest_last = ("3", "2", "1", "0")
    found = [prompt.shots for prompt in asker.prompts(query, 4, neighbours=(0, 1, 2, 3, 4, 5))]
    assert found[0] == nearest_last and len(set(found)) == 6
    assert {tuple(sorted(order)) for order in found} == {("0", "1", "2", "3")}
    assert [len(asker.prompts(query, count)) for count in (0, 1, 2, 3, 4)] == [1, 1, 2, 6, 6]
    open_ended = caption("coco")
    asker = Asker(protocol, open_ended, Chosen(tuple(open_ended.support), ()), 0)
    assert len(asker.prompts(open_ended.queries[0], 2)) == 1


def test_a_shot_without_an_answer() -> None:
    of = benchmark(
        "vizwiz", ANSWER, [Example("a", picture("a"), "Q?", answers=("", " "))],
        Example("q", picture("q"), "Q?"),
    )  # fmt: skip
    asker = Asker(presets.FLAMINGO, of, Chosen(tuple(of.support), ()), 0)
    with pytest.raises(InputError, match="the example 'a' has no answer to show"):
        asker.prompts(of.queries[0], 1)


@pytest.mark.parametrize("text", ["{quetsion}", "{0}", "{question", "{}"])
def test_templates_name_known_fields(text: str) -> None:
    with pytest.raises(InputError, match="template"):
        Template(text)


def test_options() -> None:
    example = Example("a", None, "Which?", context="Hint.", choices=("red", "blue"), right=0)
    assert Template("{context}{question} {options}").render(example) == (
        "Hint. Which? (A) red (B) blue"
    )


@pytest.mark.parametrize(
    "changes",
    [{"reduce": "max"}, {"sharing": "all"}, {"reference": "last"}, {"shots": ()}, {"shots": (-1,)},
     {"orders": 0}, {"beams": 0}, {"seeds": ()}, {"split": "own"}, {"support": -1}],
)  # fmt: skip
def test_protocols_make_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="protocol flamingo: "):
        dataclasses.replace(presets.FLAMINGO, **changes)


def test_presets_by_name() -> None:
    assert set(presets.PRESETS) == {"flamingo", "openflamingo", "idefics"}
    with pytest.raises(InputError, match="no protocol 'flamenco'; there are flamingo"):
        presets.find("flamenco")
