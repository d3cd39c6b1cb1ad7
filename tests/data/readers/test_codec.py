"""A document survives its bytes; the same document has the same ones; no other bytes are taken."""

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import codec

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
MEDIA = st.builds(Medium, st.binary(), TEXTS, st.sampled_from(codec.KINDS))
DOCUMENTS = st.builds(Document, st.lists(TEXTS | MEDIA, max_size=6).map(tuple), TEXTS)
PAGE = Document(
    (Medium(b"\xff\xd8\0", "a/1.jpg"), "ein Bär <EOC>\0", "", Medium(b"", "", "clip")), "7"
)


def sealed(header: bytes, payload: bytes = b"", magic: bytes = b"FLD1") -> bytes:
    body = magic + struct.pack("<I", len(header)) + header + payload
    return body + struct.pack("<I", zlib.crc32(body))


@given(DOCUMENTS)
def test_round_trip(document: Document) -> None:
    data = codec.encode(document)
    assert codec.decode(data) == document
    assert codec.encode(codec.decode(data)) == data


def test_the_bytes_are_those_of_this_version() -> None:
    header = b'{"items":[["image",3,"a/1.jpg"],["text",15],["text",0],["clip",0,""]],"key":"7"}'
    assert codec.encode(PAGE) == sealed(header, b"\xff\xd8\0" + "ein Bär <EOC>\0".encode())


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    data = codec.encode(PAGE)
    for place in range(len(data)):
        for bit in range(8):
            broken = bytearray(data)
            broken[place] ^= 1 << bit
            with pytest.raises(BadRecord, match="damaged record"):
                codec.decode(bytes(broken))
        with pytest.raises(BadRecord, match="damaged record"):
            codec.decode(data[:place])
    with pytest.raises(BadRecord, match="damaged record"):
        codec.decode(data + b"\0")


@given(st.binary() | st.binary().map(sealed) | st.binary().map(lambda data: sealed(b"{}", data)))
def test_any_other_bytes(data: bytes) -> None:
    with pytest.raises(BadRecord) as caught:
        codec.decode(data)
    assert caught.value.reason == "damaged record"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 4) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)


@given(JSON | st.fixed_dictionaries({"items": JSON, "key": JSON}), st.binary(max_size=4))
def test_any_other_header(header: object, payload: bytes) -> None:
    text = json.dumps(header, separators=(",", ":"), sort_keys=True, ensure_ascii=True)
    try:
        document = codec.decode(sealed(text.encode(), payload))
    except BadRecord as error:
        assert error.reason == "damaged record"
    else:
        assert codec.encode(document) == sealed(text.encode(), payload)


@pytest.mark.parametrize(
    ("header", "payload"),
    [
        ('{"items":[],"key":"a"}', b"x"),  # bytes that belong to nothing
        ('{"items":[["text",2]],"key":"a"}', b"x"),
        ('{"items":[["text",-1]],"key":"a"}', b""),
        ('{"items":[["text",true]],"key":"a"}', b"x"),
        ('{"items":[["text",1.0]],"key":"a"}', b"x"),
        ('{"items":[["text",1]],"key":"a"}', b"\xff"),
        ('{"items":[["text",1,"k"]],"key":"a"}', b"x"),
        ('{"items":[["sound",1,"k"]],"key":"a"}', b"x"),
        ('{"items":[["image",1]],"key":"a"}', b"x"),
        ('{"items":[["image",1,2]],"key":"a"}', b"x"),
        ('{"items":[[["image"],1,"k"]],"key":"a"}', b"x"),
        ('{"items":{},"key":"a"}', b""),
        ('{"items":[],"key":1}', b""),
        ('{"items":[]}', b""),
        ('{"items":[],"key":"a","more":1}', b""),
        ('{"key":"a","items":[]}', b""),
        ('{"items": [],"key":"a"}', b""),
        ('{"items":[],"key":"\\u0061"}', b""),
        ('{"items":[],"key":"\\ud800"}', b""),
        ("[" * 100_000, b""),
        ("9" * 10_000, b""),
    ],
)
def test_headers_that_are_not_as_written(header: str, payload: bytes) -> None:
    with pytest.raises(BadRecord, match="damaged record"):
        codec.decode(sealed(header.encode(), payload))


def test_other_versions_and_lengths() -> None:
    header = b'{"items":[],"key":"a"}'
    assert codec.decode(sealed(header)) == Document((), "a")
    with pytest.raises(BadRecord):
        codec.decode(sealed(header, magic=b"FLD2"))
    body = b"FLD1" + struct.pack("<I", 1 << 31) + header
    with pytest.raises(BadRecord):
        codec.decode(body + struct.pack("<I", zlib.crc32(body)))
    for body in (b"", b"FLD1", b"FLD1\0", b"FLD1\0\0\0"):  # too short for a header
        with pytest.raises(BadRecord):
            codec.decode(body + struct.pack("<I", zlib.crc32(body)))


def test_sizes_are_bounded_when_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = codec.encode(Document(("x" * 100,), "a"))
    monkeypatch.setattr(codec, "MAX_BYTES", len(data))
    assert codec.decode(data).key == "a"
    monkeypatch.setattr(codec, "MAX_BYTES", len(data) - 1)
    with pytest.raises(BadRecord, match="damaged record"):
        codec.decode(data)


def test_what_cannot_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    for document in (
        Document(("\ud83d",), "a"),
        Document((), "\ud83d"),
        Document((Medium(b"", "\ud83d"),), "a"),
    ):
        with pytest.raises(BadRecord, match="broken text"):
            codec.encode(document)
    for data in ("a.jpg", np.zeros((1, 2, 2, 3), np.uint8)):
        with pytest.raises(TypeError, match="only bytes"):
            codec.encode(Document((Medium(data, "k"),), "a"))
    with pytest.raises(ValueError, match="sound"):
        codec.encode(Document((Medium(b"", "k", "sound"),), "a"))
    monkeypatch.setattr(codec, "MAX_BYTES", 100)
    with pytest.raises(BadRecord, match="document too large"):
        codec.encode(Document(("x" * 100,), "a"))
