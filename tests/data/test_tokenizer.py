"""Tokenizers: exact round trips, control tokens from structure alone, same texts → same bytes."""

import io
import json
import random
import subprocess
import sys

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from flamingo_jax.data import tokenizer as tk
from flamingo_jax.errors import InputError

TEXTS = [
    "a cat asleep on a mat, <BOS> and a dog <BOS><BOS> that <EOC> barks<EOC> at <EOS> <EOS>",
    "woman farmer: medium-dark skin tone 👩🏾‍🌾",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "<image>a bird.<EOC><image>another bird.<EOC>",
] * 20
# Words that each occur once, so that most merges tie.
TIES = ["".join(random.Random(i).choices("abcdefgé👩", k=7)) for i in range(500)]
CONTROL = "<BOS>hi<EOC> <image><EOS></s><s><|endoftext|><unk>"


def _sentencepiece_model() -> bytes:
    blob = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=blob,
        vocab_size=400,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return blob.getvalue()


def _json_with_unmarked_ends() -> str:
    """A published kind of file: added tokens that no one marked as special."""
    trained = json.loads(tk.train_tokenizer(TEXTS, 300)._model.blob)
    for name, entry in zip(("<s>", "<|endoftext|>"), trained["added_tokens"], strict=True):
        trained["model"]["vocab"][name] = trained["model"]["vocab"].pop(entry["content"])
        entry.update(content=name, special=False)
    return json.dumps(trained)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tk.Tokenizer]:
    """One tokenizer of each kind."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "lm.model").write_bytes(_sentencepiece_model())
    (folder / "tokenizer.json").write_text(_json_with_unmarked_ends(), encoding="utf-8")
    return {
        "bytes": tk.open_tokenizer("bytes"),
        "sentencepiece": tk.open_tokenizer("sentencepiece", str(folder / "lm.model")),
        "tokenizers": tk.open_tokenizer("tokenizers", str(folder / "tokenizer.json")),
        "train": TRAINED,
    }


TRAINED = tk.train_tokenizer(TEXTS, 380)
BYTES = tk.open_tokenizer("bytes")


@pytest.mark.parametrize("tokenizer", [BYTES, TRAINED], ids=["bytes", "trained"])
@given(text=st.text())
@example(CONTROL)
@example(" \n\t  \x00 two  spaces\r\n")
def test_any_text_round_trips_and_is_never_control(tokenizer: tk.Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab for token in ids)
    assert not {tokenizer.bos, tokenizer.eos} & set(ids)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "tokenizers", "train"])
def test_control_strings_are_plain_characters(published: dict, kind: str) -> None:
    tokenizer = published[kind]
    assert tokenizer.bos is not None and tokenizer.eos is not None
    for text in (CONTROL, "<EOC>", "<image>", *CONTROL.replace(">", "> ").split()):
        ids = tokenizer.encode(text)
        assert not {tokenizer.bos, tokenizer.eos} & set(ids)
        assert max(ids) < tokenizer.vocab
        assert tokenizer.decode(ids) == text


def test_new_tokens_follow_the_vocabulary() -> None:
    new, plain = tk.open_tokenizer("bytes"), tk.open_tokenizer("bytes", image="text")
    assert (new.vocab, new.eoc, new.image, new.new_tokens) == (258, 258, (259,), tk_names(2))
    assert (plain.eoc, plain.image, plain.new_tokens) == (258, tuple(b"<image>"), tk_names(1))
    wide = tk.open_tokenizer("bytes", vocab=320)
    assert (wide.vocab, wide.eoc, wide.image) == (320, 320, (321,))


def tk_names(count: int) -> tuple[str, ...]:
    return ("<EOC>", "<image>")[:count]


def test_decode_renders_or_leaves_out_control_tokens() -> None:
    for tokenizer in (BYTES, TRAINED, tk.open_tokenizer("bytes", vocab=300)):
        ids = [
            tokenizer.bos,
            *tokenizer.image,
            *tokenizer.encode("ein Bär"),
            tokenizer.eoc,
            tokenizer.eos,
        ]
        assert tokenizer.decode(ids) == "ein Bär"
        assert tokenizer.decode(ids, control=True) == "<BOS><image>ein Bär<EOC><EOS>"
    assert tk.open_tokenizer("bytes", vocab=300).decode([97, 299, 98]) == "ab"  # a padding row
    assert BYTES.decode([0xC3]) == "\N{REPLACEMENT CHARACTER}"  # half of a character
    # A character whose bytes a control token tears apart is whole again where that is left out.
    assert BYTES.decode([0xC3, BYTES.eoc, 0xA4]) == "ä"


def test_lone_surrogates_are_encoded() -> None:
    for tokenizer in (BYTES, TRAINED):
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_training_is_deterministic() -> None:
    texts = TEXTS + TIES
    digest = tk.train_tokenizer(texts, 700).digest
    assert {tk.train_tokenizer(iter(texts), 700).digest for _ in range(3)} == {digest}
    script = (
        "import sys, json\n"
        "from flamingo_jax.data.tokenizer import train_tokenizer\n"
        "print(train_tokenizer(json.loads(sys.stdin.read()), 700).digest)"
    )
    other = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert other.stdout.strip() == digest
    assert tk.train_tokenizer(TEXTS, 700).digest != digest


def test_training_merges() -> None:
    assert TRAINED.vocab == 380
    assert len(TRAINED.encode(TEXTS[0])) < len(TEXTS[0].encode()) / 2
    few = tk.train_tokenizer(["ab"], 1000)
    assert 258 < few.vocab < 270  # no more merges than the texts have
    assert few.decode(few.encode("äöü")) == "äöü"


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "tokenizers", "train"])
@pytest.mark.parametrize("image", ["new", "text"])
def test_saved_tokenizers_load_again(published: dict, tmp_path, kind: str, image: str) -> None:
    original = tk.Tokenizer(published[kind]._model, image, vocab=published[kind].vocab + 3)
    original.save(tmp_path)
    loaded = tk.load_tokenizer(tmp_path)
    for field in ("vocab", "bos", "eos", "eoc", "image", "new_tokens", "digest"):
        assert getattr(loaded, field) == getattr(original, field)
    text = "a dog that barks<EOC>"
    assert loaded.encode(text) == original.encode(text)
    assert loaded.digest != published[kind].digest  # V decides ids of new tokens


def test_ends_are_read_from_the_file_beside(tmp_path) -> None:
    blank = tokenizers.Tokenizer.from_str(TRAINED._model.blob.decode())
    blank.save(str(tmp_path / "tokenizer.json"))
    path = str(tmp_path / "tokenizer.json")
    assert tk.open_tokenizer("tokenizers", path).bos == TRAINED.bos
    config = {"bos_token": None, "eos_token": {"content": "<BOS>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    named = tk.open_tokenizer("tokenizers", path)
    assert (named.bos, named.eos) == (None, TRAINED.bos)


def test_bad_input_is_told_in_one_sentence(tmp_path) -> None:
    (tmp_path / "not.json").write_text("[]", encoding="utf-8")
    (tmp_path / "not.model").write_bytes(b"\x00garbage")
    cases = [
        (lambda: tk.open_tokenizer("words"), "words"),
        (lambda: tk.open_tokenizer("sentencepiece", str(tmp_path / "none")), "none"),
        (lambda: tk.open_tokenizer("sentencepiece", str(tmp_path / "not.model")), "not.model"),
        (lambda: tk.open_tokenizer("tokenizers", str(tmp_path / "not.json")), "not.json"),
        (lambda: tk.open_tokenizer("bytes", image="picture"), "picture"),
        (lambda: tk.open_tokenizer("bytes", vocab=100), "100"),
        (lambda: tk.train_tokenizer(["a"], 257), "258"),
        (lambda: tk.load_tokenizer(tmp_path), "meta.json"),
    ]
    for call, word in cases:
        with pytest.raises(InputError, match=word) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_changed_file_is_refused(tmp_path) -> None:
    TRAINED.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(InputError, match="not the file that was saved"):
        tk.load_tokenizer(tmp_path)
    (tmp_path / "meta.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        tk.load_tokenizer(tmp_path)
