import os
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from raydd.actors.cluster import Cluster, bundles, connect, describe, disconnect, preflight, release, reserve
from raydd.actors.growth import Growth
from raydd.actors.hosting import workers_on
from raydd.actors.options import WorkerOptions
from raydd.config import Execution, override
from raydd.errors import ResourceError
from raydd.recipes import load_recipe

TWO_CORES = Cluster(({"CPU": 2.0},))


def refusal(workers: int, threads: int, gpus: float, cluster: Cluster) -> str:
    with pytest.raises(ResourceError) as caught:
        preflight(bundles(workers, threads, gpus, cluster), cluster)
    return str(caught.value)


def test_more_cpus_than_there_are() -> None:
    text = refusal(5, 1, 0, TWO_CORES)
    assert "--workers=5 asks for 6 CPUs (1 for the driver, 5 x 1 for the workers); the cluster has 2." in text
    assert "Lower --workers or --threads" in text


def test_more_gpus_than_there_are() -> None:
    cluster = Cluster(({"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}))
    assert "--workers=3 asks for 3 GPUs (3 x 1 for the workers); the cluster has 1." in refusal(3, 1, 1, cluster)
    assert "--workers=2 asks for 2 GPUs" in refusal(2, 1, 1, TWO_CORES.__class__(({"CPU": 8.0},)))
    preflight(bundles(4, 1, 0.25, cluster), cluster)


def test_worker_larger_than_every_node() -> None:
    text = refusal(1, 3, 0, Cluster(({"CPU": 2.0},) * 4))
    assert "Each worker asks for 3 CPUs on one node; the largest node has 2. Lower --threads" in text


def test_autoscaler_is_measured_by_its_limit() -> None:
    growing = Cluster(({"CPU": 2.0},), Growth({"CPU": 8.0}, {"CPU": 4.0}))
    preflight(bundles(5, 1, 0, growing), growing)
    assert "the cluster has 8 even when it has grown to its limit" in refusal(8, 1, 0, growing)
    assert "Each worker asks for 5 CPUs on one node; the largest node that can be started has 4." in refusal(1, 5, 0, growing)


def test_workers_of_a_cluster_are_counted_by_its_devices() -> None:
    """Not by those of the machine that starts the run."""
    two = Cluster(({"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}))
    assert two.workers(1, 1.0) == 2 and two.workers(1, 0.5) == 4 and two.workers(2, 0.0) == 3
    assert Cluster(({"CPU": 1.0},)).workers(1, 0.0) == 1
    assert Cluster(({"CPU": 4.0},), Growth({"CPU": 20.0, "GPU": 8.0}, {"GPU": 4.0})).workers(1, 1.0) == 8
    config = override(load_recipe("digits-mtt-ipc1").config, {"selection.policy": "dynadistill", "selection.candidates": 3})
    options, joined = WorkerOptions(gpus=1.0), Execution(address="auto")
    assert [workers_on(two, config, joined, options), workers_on(two, config, replace(joined, workers=5), options)] == [2, 5]


def test_driver_goes_to_the_nodes_that_stay() -> None:
    spot = Cluster(({"CPU": 8.0, "driver": 8.0}, {"CPU": 4.0, "GPU": 1.0}))
    assert bundles(1, 2, 1, spot) == [{"CPU": 1.0, "driver": 0.01}, {"CPU": 2.0, "GPU": 1.0}]
    preflight(bundles(1, 2, 1, spot), spot)


@pytest.mark.usefixtures("ray_cluster")
def test_reserve_and_its_refusal() -> None:
    connection = connect()
    assert not connection.own and describe() == Cluster(describe().nodes, None) and describe().total("CPU") == 4
    group = reserve([{"CPU": 1.0}] * 3, timeout=30)
    with pytest.raises(ResourceError, match=r"--workers=2 within 0.3 s: asked for 3 x \(1 CPU\); the cluster has 4 CPUs .* NO_RESOURCES"):
        reserve([{"CPU": 1.0}] * 3, timeout=0.3)
    release(group)
    release(reserve([{"CPU": 1.0}] * 3, timeout=30))
    disconnect(connection)
    assert ray.is_initialized()


def in_own_process(program: str, **environment: str) -> str:
    """What a program prints that starts or joins clusters without touching that of the tests."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parents[2],
        env={**variables, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_local_cluster_needs_no_home_and_keeps_strangers_out(tmp_path: Path) -> None:
    """Runs with an unwritable home, has as many CPUs as the run needs, keeps out who lacks its token, listens on the loopback alone."""
    shown = in_own_process(
        """
        import os, psutil, ray
        from raydd.actors.cluster import connect, describe, disconnect
        connection = connect(num_cpus=9, num_gpus=0, object_store_memory=100 * 2**20)
        os.environ["RAY_AUTH_TOKEN"] = "0" * 64
        import subprocess, sys
        from raydd.actors import _compat
        stranger = subprocess.run([sys.executable, "-c", _compat.PROBE, connection.address], capture_output=True, timeout=60)
        os.environ["RAY_AUTH_TOKEN"] = connection.token
        friend = subprocess.run([sys.executable, "-c", _compat.PROBE, connection.address], capture_output=True, timeout=60)
        print(connection.own, describe().total("CPU"), stranger.returncode != 0, friend.returncode)
        ray.get(ray.remote(lambda: None).remote())  # a worker listens too
        own = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
        listening = [place.laddr.ip for place in psutil.net_connections("inet") if place.pid in own and place.status == "LISTEN"]
        print(len(listening) > 6, set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, connection.token in repr(connection))
        disconnect(connection)
        print(ray.is_initialized(), [name for name in os.environ if name.startswith("RAY_AUTH")])
        """,
        HOME="/proc/nowhere",
    )
    first, ports, last = shown.splitlines()
    assert first.split() == ["True", "9.0", "True", "0"]
    assert ports.split() == ["True", "True", "False"]
    assert last == "False []"


def test_own_setting_of_authentication_is_kept() -> None:
    shown = in_own_process(
        """
        import os
        from raydd.actors.cluster import connect, disconnect
        connection = connect(object_store_memory=100 * 2**20)
        print(repr(connection.token), os.environ["RAY_AUTH_MODE"])
        disconnect(connection)
        print(os.environ["RAY_AUTH_MODE"])
        """,
        RAY_AUTH_MODE="disabled",
    )
    assert shown.split() == ["''", "disabled", "disabled"]


@pytest.mark.usefixtures("ray_cluster")
def test_joining_a_running_cluster() -> None:
    address = ray.get_runtime_context().gcs_address
    program = f"""
        from raydd.actors.cluster import connect, describe, disconnect
        connection = connect({address!r})
        print(connection.own, describe().total("CPU"))
        disconnect(connection)
    """
    assert in_own_process(program, RAY_AUTH_MODE="disabled").split() == ["True", "4.0"]
    assert ray.cluster_resources()["CPU"] == 4


@pytest.mark.parametrize("address", ["ray://somewhere:10001", "nonsense"])
def test_address_that_is_none(address: str) -> None:
    shown = in_own_process(
        f"""
        from raydd.actors.cluster import connect
        from raydd.errors import ResourceError
        try:
            connect({address!r})
        except ResourceError as error:
            print(error)
        """
    )
    assert shown.startswith(f"--address={address}") and "--address=local" in shown


def test_nobody_answers() -> None:
    """A port that takes connections but never speaks: Ray alone would wait for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, started = server.getsockname()[1], time.monotonic()
        shown = in_own_process(
            f"""
            from raydd.actors.cluster import connect
            from raydd.errors import ResourceError
            try:
                connect("127.0.0.1:{port}", timeout=2)
            except ResourceError as error:
                print(error)
            """
        )
    assert f"--address=127.0.0.1:{port}" in shown and "answered" in shown
    assert time.monotonic() - started < 60


def test_every_worker_has_a_gpu_of_its_own() -> None:
    """Made-up GPUs: Ray shows each worker its own, and more workers than GPUs are refused."""
    shown = in_own_process(
        """
        import os, time, ray, sys
        from raydd.actors.cluster import bundles, connect, describe, disconnect, preflight, reserve
        from raydd.actors.jobs import run_jobs
        from raydd.actors.options import WorkerOptions
        from raydd.errors import ResourceError
        connection = connect(num_cpus=4, num_gpus=2, object_store_memory=100 * 2**20)
        def make_worker():
            def work(job):
                time.sleep(0.5)
                return os.environ["CUDA_VISIBLE_DEVICES"]
            return work
        seen = []
        group = reserve(bundles(2, 1, 1, describe()))
        run_jobs(make_worker, [0, 1, 2, 3], lambda index, device: seen.append(device), 2, WorkerOptions(gpus=1.0), group)
        print(sorted(set(seen)))
        try:
            preflight(bundles(3, 1, 1, describe()), describe())
        except ResourceError as error:
            print(error)
        disconnect(connection)
        """
    )
    devices, refused = shown.splitlines()
    assert devices == "['0', '1']" and "asks for 3 GPUs" in refused and "has 2" in refused
