"""Headers of tars as other writers make them, or as nobody should: read right, or damage."""

import io
import pathlib
import tarfile

import pytest

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import paths, tarindex, tars
from flamingo_jax.errors import InputError

END = bytes(1024)


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMINGO_CACHE", str(tmp_path / "indexes"))


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE, **changes: bytes) -> bytes:
    """A header and its data; `size` and `extended` are written over what stands there."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    if "size" in changes:
        header[124:136] = changes["size"]
    if "extended" in changes:
        header[482:483] = changes["extended"]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


def pax(text: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return member("pax", text, kind)


def record(key: str, value: str | bytes) -> bytes:
    """A line of a pax header, which begins with its own length."""
    rest = (
        b" " + key.encode() + b"=" + (value.encode() if isinstance(value, str) else value) + b"\n"
    )
    size = len(rest) + 1
    while len(rest) + len(str(size)) != size:
        size += 1
    return str(size).encode() + rest


GOOD, NEXT = member("a.txt", b"first"), member("c.txt", b"last")
READ, MORE = ("s.tar/a", {"txt": b"first"}), ("s.tar/c", {"txt": b"last"})


def read(folder: pathlib.Path, data: bytes) -> list[tuple[str, dict[str, bytes]] | str]:
    (folder / "s.tar").write_bytes(data)
    reader = tars.open_tars(str(folder / "s.tar"))
    found = []
    for index in range(len(reader)):
        try:
            found.append((reader[index].key, dict(reader[index].fields)))
        except BadRecord as error:
            found.append(error.reason)
    return found


@pytest.mark.parametrize(
    ("between", "field"),
    [
        (pax(record("path", "b.txt") + bytes(40)), b"x"),  # zeros behind the last record
        (pax(record("size", "1") + record("path", "b.txt")), b"x"),
        (pax(record("path", "b.txt")) + pax(record("comment", "c")), b"x"),
        (pax(record("comment", "é\xff".encode("latin-1"))), b"x"),
        (member("long", b"n.txt\0", tarfile.GNUTYPE_LONGNAME), b"x"),
        (member("link", b"target\0", tarfile.GNUTYPE_LONGLINK), b"x"),
        (pax(record("comment", "for all"), tarfile.XGLTYPE), b"x"),
    ],
)
def test_headers_before_a_member(tmp_path: pathlib.Path, between: bytes, field: bytes) -> None:
    data = GOOD + between + member("b.txt", field) + NEXT + END
    found = read(tmp_path, data)
    with tarfile.open(tmp_path / "s.tar") as tar:
        names = [one.name for one in tar]
    assert found == [READ, (f"s.tar/{names[1][0]}", {"txt": field}), MORE]


@pytest.mark.parametrize(
    "between",
    [
        *(
            pax(record("size", size))
            for size in ("abc", "-1", "", "1" * 30, "\uff11", "0x10", "1.0")
        ),
        *(
            pax(text)
            for text in (b"9 path=b", b"99 path=b.txt\n", b"path=b.txt\n", b"14 path b.txt\n")
        ),
        *(pax(text) for text in (b"0 a=b\n", b"-6 a=b\n", b"6  a=b\n7 a=b\n", b"x")),
        pax(record("path", "z.txt"), tarfile.XGLTYPE),
        pax(record("size", "1"), tarfile.XGLTYPE),
        member("pax", b"", tarfile.XHDTYPE, size=b"\xff" * 12),
        member("pax", b"", tarfile.XHDTYPE, size=b"77777777777\0"),
        member("long", b"", tarfile.GNUTYPE_LONGNAME, size=b"77777777777\0"),
        member("b.txt", b"", size=b"\xff" * 12),  # -1
        member("b.txt", b"", size=b"\xff" * 11 + b"\0"),  # -256
        member("b.txt", b"", size=b"\x80" + b"\xff" * 11),
        member("b.txt", b"", size=b"xxxxxxxxxxx\0"),
    ],
)
def test_headers_that_cannot_be(tmp_path: pathlib.Path, between: bytes) -> None:
    """What comes before stays; its last sample may not be whole, and nothing is read behind."""
    data = member("0.txt", b"zero") + GOOD + between + member("b.txt", b"x") + NEXT + END
    found = read(tmp_path, data)
    assert found[0] == ("s.tar/0", {"txt": b"zero"})
    assert found[1:] in (["damaged tar"], [READ, "truncated tar"], ["truncated tar"])
    try:  # at the very beginning
        assert read(tmp_path, between + GOOD + END) == ["truncated tar"]
    except InputError as error:
        assert "is damaged or cut at its beginning" in str(error)


def test_sparse_members_of_old_gnu_tars(tmp_path: pathlib.Path) -> None:
    """Their map may go on in blocks of its own: what is behind them is found all the same."""
    more = bytearray(512)
    more[504] = 1
    data = b"x" * 512
    for blocks in (b"", bytes(512), bytes(more) + bytes(512)):
        extended = b"\1" if blocks else b"\0"
        header = member(
            "b.txt", b"", tarfile.GNUTYPE_SPARSE, size=b"%011o\0" % 512, extended=extended
        )
        found = read(tmp_path, GOOD + header + blocks + data + NEXT + END)
        assert found == [READ, "sparse file in a tar", MORE]


def test_hard_links_with_and_without_a_size(tmp_path: pathlib.Path) -> None:
    """Some writers give a link the size of what it points to; nothing follows it all the same."""
    for size in (b"%011o\0" % 0, b"%011o\0" % 5):
        link = member("b.txt", b"", tarfile.LNKTYPE, size=size)
        assert read(tmp_path, GOOD + link + NEXT + END) == [READ, "link in a tar", MORE]


def test_no_name_for_all_members(tmp_path: pathlib.Path) -> None:
    """A pax header may speak of all members; a name or size of all is damage, not many names."""
    for key, value in (("path", "n" * 500 + ".txt"), ("size", "1"), ("comment", "sound")):
        buffer = io.BytesIO()
        with tarfile.open(
            fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={key: value}
        ) as tar:
            info = tarfile.TarInfo("a.txt")
            info.size = 4
            tar.addfile(info, io.BytesIO(b"text"))
        if key == "comment":
            assert read(tmp_path, buffer.getvalue()) == [("s.tar/a", {"txt": b"text"})]
        else:
            with pytest.raises(InputError, match="damaged"):
                read(tmp_path, buffer.getvalue())


def test_long_names_in_the_header_itself(tmp_path: pathlib.Path) -> None:
    """A prefix reaches to where old GNU tars have the mark of a longer map."""
    name = "p" * 150 + "/" + "n" * 90
    assert read(tmp_path, member(f"{name}.txt", b"x") + NEXT + END) == [
        (f"s.tar/{name}", {"txt": b"x"}),
        MORE,
    ]


def test_a_cut_within_a_header(tmp_path: pathlib.Path) -> None:
    for header in (
        pax(record("path", "n" * 600)),
        member("l", b"n" * 600, tarfile.GNUTYPE_LONGNAME),
    ):
        for kept in (100, 512, 600, 1100):
            assert read(tmp_path, GOOD + header[:kept]) == ["truncated tar"]


def test_windows_read_backwards_too(tmp_path: pathlib.Path) -> None:
    data = bytes(range(256)) * 4
    (tmp_path / "s").write_bytes(data)
    for piece in (0, 10, 300, 5000):
        window = tarindex.Window(paths.Shard(str(tmp_path / "s")), piece)
        for offset, length in (
            (500, 20),
            (0, 20),
            (490, 20),
            (1000, 99),
            (3, 0),
            (2000, 5),
            (7, 1),
        ):
            assert window.read(offset, length) == data[offset : offset + length]
