"""One device and eight simulated ones train alike, and a run may move from one to the other."""

import pytest

MESH = ("--config.mesh.replica=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")


def losses(folder, after: int = 0) -> dict:
    """{(step, kind, metric): value} of the losses after a step."""
    return {
        (row["step"], row["kind"], name): value
        for row in folder.rows("metrics")
        for name, value in row.items()
        if (name == "loss" or name.endswith("/loss")) and row["step"] > after
    }


@pytest.mark.slow
@pytest.mark.parametrize("begun", [0, 6])
def test_losses_do_not_depend_on_the_mesh(begun, trainer, undisturbed, folder):
    """Trained on eight devices, and gone on with on eight what one device had begun."""
    if begun:
        undisturbed.copy(folder.path, upto=begun)
    assert trainer.here(folder.path, *MESH) == 0
    assert folder.rows("events")[-1]["kind"] == "finish"
    assert folder.text("rows") == undisturbed.text("rows")
    measured, wanted = losses(folder, begun), losses(undisturbed, begun)
    assert len(wanted) >= 10
    assert measured == pytest.approx(wanted, rel=0, abs=1e-5)
    if begun:
        assert folder.rows("events", kind="resume")[-1]["step"] == begun
        assert losses(folder, 0).keys() == losses(undisturbed, 0).keys()
