import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax._src import distributed

from jaxdet.data import sampler
from jaxdet.errors import InputError
from jaxdet.training import checkpoint, hosts, loop, run_dir
from jaxdet.training import state as training_state
from jaxdet.training.progress import Progress
from tests.cli.test_main import main
from tests.training import host_worker
from tests.training.test_resume import metrics, outcome

ROOT = Path(__file__).parents[2]
SECONDS = 150  # for two processes; a run takes 8 on an idle machine
NAMES = ["node0", "node1"]
RUNTIME: Any = vars(distributed)["_jax"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# Two processes in one: their clients of a real coordinator.


@pytest.fixture
def peers(monkeypatch):
    """Two processes that wait half a second for each other."""
    monkeypatch.setattr(hosts, "BEAT", 0.02)
    address = f"127.0.0.1:{free_port()}"
    service = RUNTIME.get_distributed_runtime_service(address, 2)
    clients = [RUNTIME.get_distributed_runtime_client(address, i, init_timeout=20) for i in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        [*pool.map(lambda client: client.connect(), clients)]
        peers = [hosts.Peers(i, 2, 0.5, client) for i, client in enumerate(clients)]
        for each in peers:
            each.names = NAMES
        yield peers
        [*pool.map(lambda client: client.shutdown(), clients)]
    service.shutdown()


def test_values_are_gathered_in_the_order_of_processes(peers):
    with ThreadPoolExecutor(2) as pool:
        for call in range(3):
            found = pool.map(lambda each, call=call: each.gather(f"{each.index} {call}"), peers)
            assert [*found] == [[f"0 {call}", f"1 {call}"]] * 2


def test_a_process_that_does_not_come_is_named(peers):
    with pytest.raises(hosts.PeerError, match=r"^process 1 on node1 has not answered within"):
        peers[0].gather("")


WATCHED = {
    "silent": "process 1 on node1 has given no sign of life for --peer-timeout 0.5 s",
    "hanging": "process 0 on node0 has not come to its next step within --peer-timeout 0.5 s",
    "reported": "process 1 on node1 has ended: image 7 is damaged",
}


@pytest.mark.parametrize("ending", WATCHED)
def test_the_watch_ends_a_process_whose_peer_is(peers, ending):
    lines: list[str] = []
    other = threading.Thread(target=peers[1].watch, args=[lines.append])
    if ending != "silent":
        other.start()
    if ending == "hanging":
        peers[0].stepped = time.monotonic()
    if ending == "reported":
        peers[1].report(InputError(""), "image 7 is damaged")

    def lost(line):
        lines.append(line)
        peers[0].closing.set()

    peers[0].watch(lost)
    peers[1].closing.set()
    assert lines[0] == WATCHED[ending]
    if other.is_alive():
        other.join(5)


# What processes make of each other's answers.


def answering(monkeypatch, index, *values):
    """Let this process be one of several, whose values are given."""
    found = hosts.Peers(index, len(values))
    found.names = [f"node{i}" for i in range(len(values))]
    monkeypatch.setattr(found, "gather", lambda value: [*values])
    monkeypatch.setattr(hosts, "_peers", found)


def test_a_single_process_agrees_with_itself():
    assert hosts.count() == 1 and hosts.is_main() and hosts.agree(3) == 3
    assert hosts.from_main(lambda: (1, None)) == (1, None)
    hosts.check_same("options", {"lr": 0.1})
    hosts.barrier()


def test_processes_agree_on_the_largest_value(monkeypatch):
    answering(monkeypatch, 1, "0", "2", "1")
    assert hosts.agree(0) == 2


def test_what_the_main_process_does_holds_for_all(monkeypatch):
    answering(monkeypatch, 1, '{"value": [1, 0.1]}', "")
    assert hosts.from_main(lambda: pytest.fail("called")) == [1, 0.1]
    answering(monkeypatch, 1, '{"error": "runs/a exists"}', "")
    with pytest.raises(InputError, match="runs/a exists"):
        hosts.from_main(lambda: 1)


def test_options_that_differ_are_named(monkeypatch):
    answering(monkeypatch, 1, '{"lr": 0.1, "batch": 8}', '{"lr": 0.2, "batch": 8}')
    with pytest.raises(InputError, match=r"{'lr': 0.1} for process 0 and {'lr': 0.2} for .*node1"):
        hosts.check_same("options", {})


def test_rows_are_gathered_in_the_order_of_one_process(monkeypatch):
    index, _ = sampler.eval_batches(21, 8)
    parts = []
    for process in (0, 1):
        answering(monkeypatch, process, "", "")
        parts.append(hosts.own_rows(index))
    assert [part.shape for part in parts] == [(3, 4), (3, 4)]
    columns = np.stack([part.reshape(-1, 1) * [1, 10] for part in parts])
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", lambda own: columns)
    (rows,) = hosts.gather_rows([columns[0]], 3)
    np.testing.assert_array_equal(rows[:21], np.arange(21)[:, None] * [1, 10])


# Starting.

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("changes", "tasks"),
    [
        ({}, 2),
        ({"SLURM_NTASKS": "1"}, 1),
        ({"SLURM_STEP_NODELIST": None}, 1),  # a job script, which srun has not started
        (dict.fromkeys(SLURM), 1),
    ],
)
def test_tasks_of_slurm_are_counted(monkeypatch, changes, tasks):
    for name, value in (SLURM | changes).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    assert hosts._launched_tasks() == tasks


def test_a_sweep_in_several_tasks_is_refused(monkeypatch, capsys, tmp_path):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert main("train", "digits", "--seeds", "2", "--out", tmp_path / "sweep") == 2
    assert "a sweep must be started in a single task, got 2 tasks" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_an_invalid_number_of_tasks_is_refused(monkeypatch):
    for name, value in (SLURM | {"SLURM_NTASKS": "2(x3)"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"SLURM_NTASKS must be a number, got '2\(x3\)'"):
        hosts.initialize(lost=pytest.fail)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("node0:7000", 2, -1), "must be given together"),
        (("", 2, 1), "must be given together"),
        (("node0", 2, 1), "--coordinator must be HOST:PORT, got node0"),
        (("node0:70000", 2, 1), "--coordinator must be HOST:PORT"),
        (("node0:7000", -1, 1), "--num-processes must be at least 1, got -1"),
        (("node0:7000", 2, 2), "--process-id must be from 0 to 1"),
    ],
)
def test_invalid_numbers_of_processes_are_refused(given, text):
    with pytest.raises(InputError, match=text):
        hosts.initialize(*given, lost=pytest.fail)


def test_gpus_are_those_that_the_process_sees(monkeypatch):
    cases = ("0,1,2,3", 4), ("", 0), ("GPU-5ebe9f43", 1), ("-1", 0), ("0,-1,1", 1)
    for visible, count in cases:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert hosts._visible_gpus() == count


# Two processes with two devices each.


def start(folder, at=("", ""), *, words=(), count=2, slurm=False, late=0.0):
    """Train in processes; returns [(exit code, lines about errors, all output)]."""
    port, processes = free_port(), []
    for i, action in enumerate(at):
        names = {"AT": action or "0 ", "ROWS": f"{folder}.{i}.rows", "JAXDET_CACHE": ""}
        names |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
        numbers = ["--coordinator", f"127.0.0.1:{port}"]
        numbers += ["--num-processes", str(count), "--process-id", str(i)]
        if slurm:
            names |= SLURM | {"SLURM_PROCID": str(i), "JAX_COORDINATOR_PORT": str(port)}
            numbers = []
        command = [sys.executable, "-m", "tests.training.host_worker", "train", "digits"]
        command += ["--out", str(folder), "--devices", "2", *numbers, *words]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(
            subprocess.Popen(command, cwd=ROOT, env={**os.environ, **names}, **streams)
        )
        time.sleep(late)
    limit = threading.Timer(SECONDS, lambda: [process.kill() for process in processes])
    limit.start()
    try:
        outputs = [process.communicate()[0] for process in processes]
    finally:
        limit.cancel()
    return [
        SimpleNamespace(
            code=process.returncode,
            errors=[line for line in out.splitlines() if line.startswith("jaxdet: error: ")],
            out=out,
        )
        for process, out in zip(processes, outputs, strict=True)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that nothing interrupts, started as by Slurm, one of them late."""
    folder = tmp_path_factory.mktemp("hosts") / "whole"
    found = start(folder, slurm=True, late=1.0)
    assert [each.code for each in found] == [0, 0], found
    assert "epoch 2/2" in found[0].out and "epoch" not in found[1].out
    return folder


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 4])
def test_two_processes_give_the_numbers_of_one(whole, tmp_path, devices):
    experiment = host_worker.experiment(devices)
    assert loop.train(experiment, tmp_path, show=Progress(quiet=True))
    one, two = metrics(tmp_path), metrics(whole)
    assert [line["step"] for line in one] == [line["step"] for line in two] == [0, 3, 6]
    for a, b in zip(one, two, strict=True):
        assert a["val"] == pytest.approx(b["val"], rel=1e-5)
        assert a["val"]["bits"] == b["val"]["bits"]
        assert a["train"] == b["train"] or a["train"]["bits"] == b["train"]["bits"]
    like = jax.eval_shape(training_state.init_fn(experiment))
    states = [checkpoint.restore(folder, like)[1].replace(key=0) for folder in (tmp_path, whole)]
    leaves = map(jax.tree.leaves_with_path, states)
    for (path, a), (_, b) in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=str(path))


@pytest.mark.long
def test_each_process_reads_its_own_rows(whole):
    experiment = host_worker.experiment(1)
    config = experiment.config
    own = [np.loadtxt(f"{whole}.{i}.rows", np.int32) for i in (0, 1)]
    order = [sampler.shuffled_batches(config.seed, epoch, 40, config.batch) for epoch in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(own, axis=1), np.concatenate(order))
    assert run_dir.read_environment(whole)["processes"] == 2


@pytest.mark.long
def test_interrupted_processes_give_the_same_bits(whole, tmp_path):
    folder, experiment = tmp_path / "run", host_worker.experiment(2)
    found = start(folder, ("", "2 terminate"))
    assert [each.code for each in found] == [0, 0], found
    assert "stopped at step 2 of 6" in found[0].out
    assert checkpoint.steps(folder)[-1] == 2
    one, two = start(folder, ("", "5 kill"), words=["--resume", "--peer-timeout", "20"])
    assert (one.code, two.code) == (1, -signal.SIGKILL), one
    (line,) = one.errors
    assert "process 1 on " in line
    assert checkpoint.steps(folder)[-1] == 3
    found = start(folder, words=["--resume"])
    assert [each.code for each in found] == [0, 0], found
    assert outcome(folder, experiment) == outcome(whole, experiment)


@pytest.mark.long
@pytest.mark.parametrize(
    ("at", "codes", "line"),
    [
        (("", "4 hang"), (1, 1), "process 1 on "),
        (("", "4 raise"), (1, 2), "image 7 is damaged"),
        (("4 kill", ""), (-signal.SIGKILL, 1), "process 0 on "),
    ],
    ids=["hanging", "failing", "coordinator killed"],
)
def test_the_others_end_with_a_process(tmp_path, at, codes, line):
    found = start(tmp_path / "run", at, words=["--peer-timeout", "15"])
    assert tuple(each.code for each in found) == codes, found
    for each in found:
        assert each.code < 0 or [line in text for text in each.errors] == [True]


@pytest.mark.long
@pytest.mark.parametrize(("at", "count"), [(("",), 2), (("", ""), 3)])
def test_missing_processes_are_not_waited_for_longer(tmp_path, at, count):
    found = start(tmp_path / "run", at, words=["--peer-timeout", "5"], count=count)
    for each in found:
        assert each.code == 1
        assert each.errors[-1].endswith("within --peer-timeout 5 s")
    assert not (tmp_path / "run").exists()
