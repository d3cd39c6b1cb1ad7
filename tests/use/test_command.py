"""The verb `generate`: words of a command line in, text out; and a dialogue."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from flamingo_jax import load
from flamingo_jax.data.prompt import Text
from flamingo_jax.errors import InputError
from flamingo_jax.use import command
from flamingo_jax.use.command import generate_command, read_items


@pytest.fixture
def files(tmp_path, monkeypatch, pictures):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pictures[0]).save("cat.png")
    Image.fromarray(pictures[1]).save("a dog.JPG")
    pathlib.Path("notes").write_text("text")
    return tmp_path


def test_items(files):
    cat, dog = pathlib.Path("cat.png"), pathlib.Path("a dog.JPG")
    words = ["what", "is", "this?", "cat.png", "<EOC>", "a dog.JPG", "notes", "a", "cat in a.png"]
    found = read_items(words)
    assert found == ["what is this?", cat, "<EOC>", dog, "notes a cat in a.png"]
    assert read_items(["x" * 5000 + ".png"]) == ["x" * 5000 + ".png"]
    with pytest.raises(InputError, match=r"no file 'dog\.png'"):
        read_items(["dog.png"])
    with pytest.raises(InputError, match=r"no file 'clip\.mp4'"):
        read_items(["clip.mp4"])


def test_prints_what_the_model_says(files, tiny_workdir):
    path = str(tiny_workdir.path)
    prompt = [pathlib.Path("cat.png"), "ab", pathlib.Path("a dog.JPG")]
    expected = load(path).generate([prompt], 6)[0] + "\n"
    assert len(expected) > 3
    for stream in (False, True):
        output = io.StringIO()
        generate_command(path, ["cat.png", "ab", "a dog.JPG"], 6, stream=stream, output=output)
        assert output.getvalue() == expected


class Parrot:
    """Says the number of its prompt's items, and remembers what it was asked."""

    def __init__(self):
        self.asked: list[tuple] = []

    def pixels(self, item):
        return load_pixels(item)

    def stream(self, prompt, max_new_tokens, **options):
        self.asked.append((list(prompt), max_new_tokens, options))
        yield from (" ", str(len(prompt)))


def load_pixels(path):
    if path.suffix == ".JPG":
        raise InputError("broken")
    return np.asarray(Image.open(path))


def test_a_dialogue(files, monkeypatch):
    parrot = Parrot()
    monkeypatch.setattr(command, "load", lambda *_, **__: parrot)
    lines = io.StringIO("hello <EOC>\n\ncat.png\na dog.JPG\nwhat is it?\nmissing.png\n")
    output = io.StringIO()
    generate_command(
        "run", ["Be brief."], 5, temperature=0.5, chat=True, lines=lines, output=output
    )
    said = output.getvalue().splitlines()
    assert said[:3] == [" 2", "(broken)", " 5"]
    assert "missing.png" in said[3]
    first, second = parrot.asked
    assert first[0] == ["Be brief.", "User: hello <EOC>\nFlamingo:"]
    assert isinstance(first[0][1], Text)  # what is typed holds no control tokens
    assert first[1:] == (
        5,
        {"stop": ("<EOC>", "\nUser:"), "temperature": 0.5, "top_p": 1.0, "seed": 0},
    )
    assert [type(item) for item in second[0]][3] is np.ndarray
    assert second[0][2] == " 2\n" and second[0][4] == "User: what is it?\nFlamingo:"


def test_what_excludes_each_other():
    with pytest.raises(InputError, match="beam search"):
        generate_command("run", ["a"], beams=2, stream=True)
