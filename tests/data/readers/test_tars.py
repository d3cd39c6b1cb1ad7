"""WebDataset tars: the samples that tarfile sees, by index; indexes, damage and hostile tars."""

import collections
import concurrent.futures
import io
import os
import pathlib
import tarfile
import uuid
from collections.abc import Iterable

import fsspec
import hypothesis
import hypothesis.strategies as st
import pytest

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import tarindex, tars
from flamingo_jax.errors import InputError

Member = tuple[str, bytes]
THREE = [(f"{i}.{field}", f"{field} {i}".encode() * 100) for i in "abc" for field in ("jpg", "txt")]


def pack(members: Iterable[Member | tarfile.TarInfo], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def write(path: pathlib.Path, members: Iterable[Member | tarfile.TarInfo], **how: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(members, **how))
    return str(path)


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def read(reader: tars.TarReader) -> list[tuple[str, dict[str, bytes]] | str]:
    """All records, or the reasons why they cannot be read."""
    found = []
    for index in range(len(reader)):
        try:
            record = reader[index]
            found.append((record.key, dict(record.fields)))
        except BadRecord as error:
            found.append(error.reason)
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.delenv("FLAMINGO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are parsed from now on."""
    parsed: list[str] = []
    build = tarindex.build

    def spy(shard):
        parsed.append(os.path.basename(shard.path))
        return build(shard)

    monkeypatch.setattr(tarindex, "build", spy)
    return parsed


def test_samples_by_the_rule_of_webdataset(tmp_path: pathlib.Path) -> None:
    members = [
        special("d", tarfile.DIRTYPE),
        ("d/1.JPG", b"one"),
        ("README", b"of no sample"),
        ("d/1.seg.png", b"seg"),
        ("d.x/1.txt", b"a dot in the folder"),
        ("__meta__/2.txt", b"meta"),
        (".hidden.txt", b"hidden"),
        ("./2.txt", b"two"),
        ("d/1.txt", b"again"),
        ("2.txt", b"again too"),
        ("3.bin", b""),
    ]
    reader = tars.open_tars(write(tmp_path / "s.tar", members))
    assert read(reader) == [
        ("s.tar/d/1", {"jpg": b"one", "seg.png": b"seg"}),
        ("s.tar/d.x/1", {"txt": b"a dot in the folder"}),
        ("s.tar/2", {"txt": b"two"}),
        ("s.tar/d/1.1", {"txt": b"again"}),
        ("s.tar/2.1", {"txt": b"again too"}),
        ("s.tar/3", {"bin": b""}),
    ]
    assert list(reader[0].fields) == ["jpg", "seg.png"] and not reader.damage()
    for index in (-1, len(reader)):
        with pytest.raises(IndexError):
            reader[index]


NAMES = st.builds(
    lambda folders, stem, field: "/".join([*folders, f"{stem}.{field}"]),
    st.lists(st.text("ab.é", min_size=1, max_size=60).filter(lambda t: t.strip(".")), max_size=4),
    st.text("xyz漢 ", min_size=1, max_size=70),
    st.sampled_from(["txt", "json", "seg.png"]),
)


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1300)), min_size=1, max_size=6),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_equal_to_tarfile_whatever_the_names(
    tmp_path_factory: pytest.TempPathFactory, members: list[Member], form: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "s.tar"
    reader = tars.open_tars(write(path, members, form=form))
    samples, expected = [], {}
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            expected[member.name] = file.read()
            folder, _, last = member.name.rpartition("/")
            stem, _, field = last.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if not samples or samples[-1][0] != key:
                samples.append((key, []))
            samples[-1][1].append((field, expected[member.name]))
    found = read(reader)
    assert len(found) == len(samples)
    keys = [one[0] for one in found if not isinstance(one, str)]
    assert len(set(keys)) == len(keys)
    for one, (key, fields) in zip(found, samples, strict=True):
        if len(dict(fields)) < len(fields):
            assert one == "field twice in a sample"
        else:
            assert not isinstance(one, str) and one[0].startswith(f"s.tar/{key}")
            assert list(one[1].items()) == fields
    files = reader.files()
    for name, data in expected.items():
        assert files.read(name) == files.read(f"s.tar/{name}") == data


def test_equal_to_tarfile_on_real_shards(shared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shards = [path for kind in ("pairs", "video") for path in shared.glob(f"data/{kind}/**/*.tar")]
    assert shards
    for path in shards:  # by links, as indexes lie beside what is opened
        (tmp_path / path.name).symlink_to(path)
    reader = tars.open_tars(str(tmp_path))
    expected: dict[str, dict[str, bytes]] = collections.defaultdict(dict)
    for path in shards:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                key, _, field = member.name.partition(".")
                expected[f"{path.name}/{key}"][field] = file.read()
    assert len(reader) == len(expected)
    for index in range(len(reader)):
        record = reader[index]
        assert dict(record.fields) == expected.pop(record.key)


def test_keys_stay_unique_among_shards_of_one_name(tmp_path: pathlib.Path) -> None:
    for folder in ("x", "y"):
        write(tmp_path / folder / "0.tar", [("a.txt", folder.encode())])
    reader = tars.open_tars(f"{tmp_path}/*/0.tar")
    assert read(reader) == [("x/0.tar/a", {"txt": b"x"}), ("y/0.tar/a", {"txt": b"y"})]
    files = reader.files()
    assert files.read("y/0.tar/a.txt") == b"y"
    with pytest.raises(BadRecord, match="file in several shards"):
        files.read("a.txt")


def test_hostile_members_are_never_followed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "secret.txt").write_bytes(b"secret")
    sparse, nul = tarfile.TarInfo("sparse.bin"), tarfile.TarInfo("nul.txt")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    nul.pax_headers = {"path": "nul\0x.txt"}
    members: dict[str, Member | tarfile.TarInfo] = {
        "soft": special("soft.txt", tarfile.SYMTYPE, str(tmp_path / "secret.txt")),
        "hard": special("hard.txt", tarfile.LNKTYPE, "ok.txt"),
        "device": special("device.txt", tarfile.CHRTYPE),
        "pipe": special("pipe.txt", tarfile.FIFOTYPE),
        "absolute": ("/etc/absolute.txt", b"x"),
        "parent": ("a/../../parent.txt", b"x"),
        "windows": ("C:\\windows.txt", b"x"),
        "backslash": ("a\\..\\backslash.txt", b"x"),
        "sparse": sparse,
        "nul": nul,
    }
    good = [("ok.txt", b"ok"), *members.values(), ("mixed.jpg", b"x")]
    good += [special("mixed.txt", tarfile.SYMTYPE, "ok.txt"), ("end.txt", b"end")]
    reader = tars.open_tars(write(tmp_path / "s.tar", good))
    found = read(reader)
    assert found[0] == ("s.tar/ok", {"txt": b"ok"}) and found[-1] == ("s.tar/end", {"txt": b"end"})
    unsafe, link = ["unsafe name in a tar"], ["link in a tar"]
    plain, hole = ["no plain file"], ["sparse file in a tar"]
    assert found[1:-1] == link * 2 + plain * 2 + unsafe * 4 + hole + unsafe + link
    files = reader.files()
    for name in ("soft.txt", "/etc/absolute.txt", "a/../../parent.txt", "../secret.txt", "\0", ""):
        with pytest.raises(BadRecord):
            files.read(name)
    assert files.read("mixed.jpg") == b"x"


def test_sizes_and_chains_are_bounded(tmp_path: pathlib.Path) -> None:
    path = write(
        tmp_path / "s.tar", [("a.txt", b"1" * 600), ("a.jpg", b"2" * 600), ("b.txt", b"3")]
    )
    reader = tars.open_tars(path, max_bytes=1000)
    assert read(reader) == ["too many bytes in a sample", ("s.tar/b", {"txt": b"3"})]
    assert tars.open_tar_files(path, max_bytes=1000).read("a.txt") == b"1" * 600
    with pytest.raises(BadRecord, match="too many bytes in a file"):
        tars.open_tar_files(path, max_bytes=100).read("a.txt")

    long = pack([("n" * 200 + ".txt", b"x")], form=tarfile.GNU_FORMAT)[:1024]
    (tmp_path / "c.tar").write_bytes(pack([("a.txt", b"a"), ("b.txt", b"b")])[:2048] + long * 5000)
    reader = tars.open_tars(str(tmp_path / "c.tar"))
    assert read(reader) == [("c.tar/a", {"txt": b"a"}), "damaged tar"]
    assert list(reader.damage().values()) == ["damaged tar"]


def test_every_cut_leaves_what_comes_before(tmp_path: pathlib.Path) -> None:
    whole = pack(THREE)
    reference = read(tars.open_tars(write(tmp_path / "s.tar", THREE)))
    end = sum(512 + -(-len(data) // 512) * 512 for _, data in THREE)
    path = tmp_path / "cut" / "s.tar"
    path.parent.mkdir()
    for cut in [*range(0, end + 512, 128), end - 1, end + 511]:
        path.write_bytes(whole[:cut])
        try:
            reader = tars.open_tars(str(path))
        except InputError as error:
            assert cut < 512 and ("empty" in str(error) or "no tar" in str(error))
            continue
        found = read(reader)
        if cut < end + 512:
            assert found.pop() == "truncated tar" and str(path) in reader.damage()
        assert found == reference[: len(found)]
    path.write_bytes(whole[: end - 10])  # cut within padding or the last member
    files = tars.open_tar_files(str(path))
    assert files.read("c.jpg") == THREE[4][1]


@hypothesis.settings(max_examples=150)
@hypothesis.given(st.data())
def test_flipped_bits_never_give_another_exception(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    members = [("a.txt", b"A" * 30), ("é" * 90 + ".txt", b"B" * 30), ("c.txt", b"C" * 30)]
    form = data.draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    tar = bytearray(pack(members, form))
    flips = data.draw(st.integers(1, 4))
    for _ in range(flips):
        tar[data.draw(st.integers(0, 6000))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("t") / "s.tar"
    path.write_bytes(tar)
    try:
        reader = tars.open_tars(str(path))
    except InputError:
        return
    for one in read(reader):  # one flip in a header never moves or stretches what is read
        assert isinstance(one, str) or flips > 1 or {len(v) for v in one[1].values()} == {30}


def test_what_is_no_tar_is_refused(tmp_path: pathlib.Path) -> None:
    for name, content, word in (
        ("a.tar.gz", b"\x1f\x8b", r"compressed \(gzip\).*decompress it"),
        ("a.TGZ", b"", r"compressed \(gzip\)"),
        ("a.tar.zst", b"", r"compressed \(zstd\)"),
        ("gzip.tar", b"\x1f\x8b" + b"x" * 600, r"compressed \(gzip\)"),
        ("zstd.tar", b"\x28\xb5\x2f\xfd" + b"x" * 600, r"compressed \(zstd\)"),
        ("empty.tar", b"", "is empty"),
        ("text.tar", b"hello" * 500, "no tar"),
        ("no.tar", pack([("README", b"x")]), "hold no samples"),
        ("zeros.tar", bytes(10240), "hold no samples"),
        ("hole.tar", bytes(1024) + pack(THREE), "no tar"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=word):
            tars.open_tars(str(tmp_path / name))


def test_tars_put_after_one_another_are_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "s.tar").write_bytes(pack(THREE[:2]) + pack(THREE[2:]))
    reader = tars.open_tars(str(tmp_path / "s.tar"))
    assert read(reader) == ["damaged tar"] and reader.damage()


def test_nothing_is_parsed_twice(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"s-{i:02d}.tar" for i in range(12)]
    for name in names:
        write(tmp_path / name, [(f"{name[2:4]}-{i}.txt", name.encode()) for i in range(5)])
    parsed, told = counted(monkeypatch), []
    pattern = f"{tmp_path}/s-{{00..11}}.tar"
    first = tars.open_tars(pattern, progress=lambda done, count: told.append((done, count)))
    assert sorted(parsed) == names and told == [(i + 1, 12) for i in range(12)]
    expected = read(first)
    again = tars.open_tars(pattern)
    assert len(again) == 60 and not any(tar._index._index for tar in again._tars)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        records = list(pool.map(again.__getitem__, [i % 60 for i in range(300)]))
    assert [(r.key, dict(r.fields)) for r in records[:60]] == expected
    assert tars.open_tars(str(tmp_path)).files().read("07-3.txt") == b"s-07.tar"
    assert len(parsed) == 12 and not list(tmp_path.glob(".*"))


def test_indexes_that_do_not_fit_are_made_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "s.tar", THREE)
    index = tmp_path / "s.tar.index"
    expected = read(tars.open_tars(path))
    sound = index.read_bytes()
    parsed = counted(monkeypatch)
    damaged = [b"", b"\n", b"garbage" * 99, sound[:-1], sound[:40], sound + b"x"]
    damaged += [sound.replace(b"tar index 1", b"tar index 0")]
    for place in (3, 60, len(sound) // 2, len(sound) - 3):
        damaged.append(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
    for count, content in enumerate(damaged, start=1):
        index.write_bytes(content)
        assert read(tars.open_tars(path)) == expected
        assert len(parsed) == count and index.read_bytes() == sound

    status = os.stat(path)
    write(tmp_path / "s.tar", [("z.txt", b"new")])
    assert read(tars.open_tars(path)) == [("s.tar/z", {"txt": b"new"})]
    # Another tar of the same size and time: headers tell.
    write(tmp_path / "s.tar", [(f"{name[::-1]}.txt", data) for name, data in THREE])
    index.write_bytes(sound)
    os.truncate(path, status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert set(read(tars.open_tars(path))) == {"shard has changed"}


def test_a_shard_that_changes_while_it_is_read(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "s.tar", THREE)
    tars.open_tars(path)
    reader = tars.open_tars(path)
    assert reader[0].fields["jpg"] == THREE[0][1]
    write(tmp_path / "s.tar", [("z.txt", b"new")])
    assert set(read(reader)) == {"shard has changed"}


def test_indexes_lie_in_the_cache_where_they_must(
    tmp_path: pathlib.Path, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "s.tar", THREE)
    (tmp_path / "s.tar.index").mkdir()  # so that nothing can be written there
    parsed = counted(monkeypatch)
    mine = tmp_path / "mine"
    expected = read(tars.open_tars(path, cache=str(mine)))
    assert read(tars.open_tars(path, cache=str(mine))) == expected and len(parsed) == 1
    assert len(list(mine.rglob("s.tar.index"))) == 1 and not cache.exists()
    for _ in range(2):
        assert read(tars.open_tars(path)) == expected
    assert len(parsed) == 2 and len(list(cache.rglob("s.tar.index"))) == 1
    (tmp_path / "file").touch()  # nor there
    for _ in range(2):
        assert read(tars.open_tars(path, cache=str(tmp_path / "file"))) == expected
    assert len(parsed) == 4


def test_remote_tars(cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    files = fsspec.filesystem("memory")
    for number in range(3):
        members = [(f"{number}{name}", data) for name, data in THREE]
        files.pipe_file(f"{root}/s-{number}.tar", pack(members))
    parsed = counted(monkeypatch)
    reader = tars.open_tars(f"{root}/s-{{0..2}}.tar")
    assert len(reader) == 9 and reader[4].key == "s-1.tar/1b"
    assert dict(reader[4].fields) == {"jpg": THREE[2][1], "txt": THREE[3][1]}
    assert read(tars.open_tars(root)) == read(reader) and len(parsed) == 3
    assert len(list(cache.rglob("s-*.tar.index"))) == 3
    with pytest.raises(InputError, match=r"there is no file .*s-3"):
        tars.open_tars(f"{root}/s-{{0..3}}.tar")


def test_the_last_of_a_name_counts(tmp_path: pathlib.Path) -> None:
    members = [("a/1.jpg", b"old"), ("b.jpg", b"b"), ("./a/1.jpg", b"new"), ("no-dot", b"plain")]
    files = tars.open_tar_files(write(tmp_path / "s.tar", members))
    assert (files.read("a/1.jpg"), files.read("./a/1.jpg")) == (b"new", b"new")
    assert (files.read("no-dot"), files.read("s.tar/b.jpg")) == (b"plain", b"b")
    for name in ("a/2.jpg", "s.tar/c.jpg", "a", "s.tar"):
        with pytest.raises(BadRecord, match="no such file"):
            files.read(name)
