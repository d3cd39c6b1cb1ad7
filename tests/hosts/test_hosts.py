"""Two processes of a job: they join, agree, wait, stop and fail together, with one voice."""

import contextlib
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from flamingo_jax import distributed, processes
from flamingo_jax.errors import InputError

pytestmark = pytest.mark.multihost
HOST = socket.gethostname()


def test_a_difference_names_the_host_the_field_and_both_values(pair):
    job, _ = pair
    error = job.told("agree", 0)["error"]
    assert error == job.told("agree", 1)["error"]
    assert f"process 1 on {HOST} has config.train.lr = 0.2, where process 0 has 0.1" in error
    assert f"process 1 on {HOST} has devices.local = 2, where process 0 has 1" in error
    assert f'process 1 on {HOST} has files.training.py = "0123456789ab", where' in error
    assert "steps" not in error and "versions" not in error and "\n" not in error


def test_what_one_meets_all_have(pair):
    first, second = (pair[0].told("together", process) for process in range(2))
    assert first["texts"] == second["texts"] == ["ä line\nand another =", ""]
    assert (first["made"], second["made"]) == ("made", "found 0")
    assert second["error"] == "the disk is full"
    assert first["error"] == f"elsewhere (process 1 on {HOST}: the disk is full)"


def test_who_is_missing_at_a_barrier_is_named(pair):
    error = pair[0].told("absent", 0)["error"]
    text = f"process 1 on {HOST} did not come to the barrier 'there' within 0.5 s of process 0 on"
    assert error.startswith(text) and "1 of 2 processes are missing" in error


def test_a_signal_to_one_stops_all_at_the_same_step(pair):
    first, second = (pair[0].told("stop", process) for process in range(2))
    assert first == second and first["requested"]
    assert 20 < first["asked"] < 600


def test_one_voice_and_a_log_of_each(pair):
    job, (first, second) = pair
    assert first.err.count("the data are read") == first.err.count("stage 10/10") == 1
    assert "an old name" in first.err
    lines = second.err.strip().splitlines()  # native code has a voice of its own
    assert all("SIGTERM caught" in line for line in lines)
    for process in range(2):
        log = (job.folder / f"logs/process-{process}.log").read_text(encoding="utf-8")
        where = f"process {process} of 2 on {HOST}"
        assert log.count(f"INFO started: {where}") == 1
        assert log.count(f"INFO started again: {where}") == 1
        assert "INFO the data are read" in log and "INFO stage 10/10" in log
        assert re.search(r"WARNING .*an old name", log)
        assert ("ERROR ended by an error\nTraceback" in log) == (process == 1)
        assert ("ZeroDivisionError: a defect" in log) == (process == 1)
        assert re.search(r"\n\d{4}-\d\d-\d\d [\d:.]+ INFO ended$", log.rstrip())


def test_each_row_is_written_down_once_and_by_one(pair):
    first, second = (pair[0].told("account", process) for process in range(2))
    assert first["rows"] == {"fsdp": [0, 1], "tensor": [0, 1, 2, 3, 4, 5]}
    assert second["rows"] == {"fsdp": [2, 3, 4, 5], "tensor": []}
    assert first["fed"] == {"fsdp": [0, 2], "tensor": [0, 6]}
    assert second["fed"] == {"fsdp": [2, 6], "tensor": [0, 6]}


def test_what_all_have_written_goes_back_to_a_step(pair):
    first, second = (pair[0].told("account", process)["kept"] for process in range(2))
    assert first == second
    found = [(row["by"], row["step"]) for row in first["rows"]]
    assert found == [(0, 1), (0, 2), (1, 1), (1, 2), (5, 2)]
    assert [(row["by"], row["step"]) for row in first["metrics"]] == [(0, 1), (0, 2)]


def test_who_fail_alike_leave_together_and_one_speaks(pair):
    _, ended = pair
    assert [process.code for process in ended] == [2, 2]
    assert ended[0].err.rstrip().endswith("member: a wrong path")


@pytest.mark.slow
def test_who_fails_alone_leaves_with_its_own_code(job):
    ended = job.run("one_fails")
    assert ended[1].code == 2 and ended[1].err.strip() == "member: a wrong path"
    assert ended[0].code not in (0, 2)


def test_a_coordinator_that_is_not_there(job):
    [ended] = job.run("agree", only=(1,), environ={1: {"FLAMINGO_JOIN_SECONDS": "1"}})
    assert ended.code == 1
    [line] = ended.err.strip().splitlines()
    assert re.search(
        rf"process 1 on {HOST} could not reach the coordinator 127.0.0.1:\d+ within 1 s \(", line
    )


def test_processes_that_are_not_there(address):
    text = f"process 2, process 3 of 4 did not report at {address} within 2 s"
    with ThreadPoolExecutor() as pool:
        members = [distributed.Membership(address, 4, process, 2) for process in (0, 1)]
        for met in [pool.submit(distributed.muster, member) for member in members]:
            with pytest.raises(processes.HostsMissing, match=text):
                met.result()


def test_two_with_one_number(address):
    with ThreadPoolExecutor() as pool:
        members = [distributed.Membership(address, 3, process, 20) for process in (0, 1, 1)]
        for met in [pool.submit(distributed.muster, member) for member in members]:
            with pytest.raises(InputError, match="two processes say that they are process 1"):
                met.result()


def test_the_port_is_free_once_all_have_met(address):
    with ThreadPoolExecutor() as pool:
        members = [distributed.Membership(address, 3, process, 20) for process in range(3)]
        for met in [pool.submit(distributed.muster, member) for member in members]:
            met.result()
    socket.create_server(("", int(address.rpartition(":")[2]))).close()


def test_a_coordinators_port_in_use(job):
    """By another program, which greets whoever calls. A new start may take another port: code 1."""
    with socket.create_server(("", 0)) as other, ThreadPoolExecutor() as pool:
        address = f"localhost:{other.getsockname()[1]}"

        def greet() -> None:
            with contextlib.suppress(OSError):  # until it is shut down
                while True:
                    with other.accept()[0] as caller:
                        caller.sendall(b"SSH-2.0-OpenSSH\r\n")

        pool.submit(greet)
        late = {process: {"FLAMINGO_JOIN_SECONDS": "1"} for process in range(2)}
        ended = job.run("agree", address=address, environ=late)
        other.shutdown(socket.SHUT_RDWR)
    assert [process.code for process in ended] == [1, 1]
    assert all(len(process.err.strip().splitlines()) == 1 for process in ended)
    assert re.search(rf"cannot listen at {address} \(.*in use", ended[0].err)
    assert f"could not reach the coordinator {address} within 1 s (another program" in ended[1].err
    assert "says 'SSH-2.0-OpenSSH'" in ended[1].err


def test_a_hang_is_ended_and_told(job):
    [ended] = job.run("hang", count=1, only=(0,))
    assert ended.code == 1
    for told in (ended.err, (job.folder / "process-0.log").read_text()):
        line, _, stacks = told.partition("\n")
        assert f"process 0 on {HOST} gave no sign" in line
        assert line.endswith("in the phase 'checkpoint' at step 7; its threads stand at:")
        assert "in wait_for_ever" in stacks


def test_alone_there_is_nothing_to_wait_for():
    processes.barrier("alone", seconds=0.001)
    assert processes.gather("alone", "a") == ["a"]
    assert processes.primary_first(lambda: 3, InputError) == 3


SLURM = {"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": "node[1-8]"}
OURS = {"FLAMINGO_PROCESSES": "4", "FLAMINGO_PROCESS": "2", "FLAMINGO_COORDINATOR": "a:1"}


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, None),
        (OURS, ("a:1", 4, 2)),
        (OURS | {"FLAMINGO_PROCESSES": "1", "FLAMINGO_PROCESS": "0"}, None),
        ({"FLAMINGO_COORDINATOR": "auto"}, ("auto", 0, 0)),
        (SLURM, ("auto", 0, 0)),
        (SLURM | {"FLAMINGO_COORDINATOR": "a:1"}, ("a:1", 8, 3)),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({k: v for k, v in SLURM.items() if "STEP" not in k}, None),  # a batch script, no srun
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, ("auto", 0, 0)),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a:1"}, ("auto", 0, 0)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://a:1"}, ("auto", 0, 0)),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
    ],
)
def test_which_job_this_is(environ, wanted):
    found = distributed.find(environ=environ)
    assert (found and (found.coordinator, found.processes, found.process)) == wanted


@pytest.mark.parametrize(
    ("flags", "environ", "error"),
    [
        (("", 4, 1), {}, "needs an address"),
        (("a:1", 4, -1), {}, "how many processes, and which"),
        (("a:1", 4, 4), {}, "makes no sense"),
        (("a", 4, 1), {}, "makes no sense"),
        (("", 0, -1), {"OMPI_COMM_WORLD_SIZE": "2"}, "this Open MPI does not tell"),
        (("a:1", 0, -1), {"FLAMINGO_PROCESSES": "two"}, "no whole number"),
    ],
)
def test_a_job_that_makes_no_sense(flags, environ, error):
    with pytest.raises(InputError, match=error):
        distributed.find(*flags, environ=environ)
