"""Storms: whole runs by the command line, in which random processes and nodes are killed at random moments, all drawn from a seed.

A run that ends with an error, or is killed itself, is carried on with `raydd distill --resume` until it is done. It must then have the
images of the undisturbed run, to the bit; an error on the way must be one for people; and nothing may hang.

python -m tests.chaos.storm SEED STORE FOLDER serves storms by number (`tests.actors.case_process`), on a cluster of three nodes.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raydd.files import read_json
from tests.actors.case_process import ENVIRON, serve
from tests.actors.fault_cases import Nodes
from tests.runs import NETWORKS, SETTINGS, command, resuming

# No life of a run takes so long, even on a busy machine.
HANG_SECONDS = 400.0
LIVES = 6
NETS = {**NETWORKS, "steps": 24, "dc.outer": 3, "idc.inner_steps": 3}
STAGES = {"stages.count": 2, "stages.transition_epochs": 2}
RUNS: dict[str, dict[str, Any]] = {
    "mtt": {**SETTINGS, "steps": 60},
    "mtt-evaluated": {**SETTINGS, "steps": 40, "evaluation.every": 10},
    "mtt-stages": {**SETTINGS, **STAGES, "steps": 20},
    "dm": {**NETS, "method": "dm"},
    "dsa-stages": {**NETS, **STAGES, "stages.networks": 2, "method": "dsa", "steps": 12},
    "dreamplus": {**NETS, "method": "dreamplus"},
    "cafe": {**NETS, "method": "cafe"},
}
PLACES = ("inline", "nodes", "nodes")
# Who is struck, by where the run computes. `client` is the command itself; signals come to it alone.
SIGNALS = {"client": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
ACTORS = {"worker": ("ray::Worker", "ray::JobWorker"), "driver": ("ray::Driver",)}
VICTIMS = {
    "inline": ("client", "client", "TERM", "INT"),
    "nodes": ("worker", "worker", "worker", "node", "node", "driver", "driver", "client", "TERM"),
}


@dataclass
class Kill:
    """One stroke, in life number `life` of a run that had recorded `step` steps.

    `survived` is whether that command went on without help. `recovery` is the seconds until the run was further than before, from the
    stroke on, or from the start of the next command where there had to be one; None where there was nothing left to record.
    """

    victim: str
    step: int
    life: int
    survived: bool = False
    recovery: float | None = None


@dataclass
class Storm:
    """What happened to one run: its strokes, exit codes, seconds, steps that were done again, and whether its images are the same."""

    number: int
    run: str
    where: str
    kills: list[Kill] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    steps_lost: int = 0
    seconds: float = 0.0
    same: bool = False


class Watch:
    """Follows the records of a run: `look` as often as can be."""

    def __init__(self, storm: Storm, path: Path):
        self._storm, self._path, self._since = storm, path, dict[int, float]()
        self._begun, self.steps = 0.0, 0

    def new_life(self) -> None:
        self._begun = time.monotonic()

    def struck(self, kill: Kill) -> None:
        self._since[id(kill)] = time.monotonic()
        self._storm.kills.append(kill)

    def look(self) -> int:
        """Steps recorded by now."""
        now = _recorded(self._path)
        self._storm.steps_lost += max(0, self.steps - now)
        self.steps = now
        life = len(self._storm.codes)
        for kill in self._storm.kills:
            # What is asked to stop takes a step more at most; it goes on in the next life.
            if kill.recovery is None and now > kill.step and not (kill.victim in SIGNALS and kill.life == life):
                kill.recovery = time.monotonic() - max(self._since[id(kill)], self._begun)
                kill.survived = kill.life == life
        return now


class Weather:
    """Makes storms. `store` has the experts of `tests.commands.SMALL`; `folder` is for runs; `nodes` is the cluster for those on nodes."""

    def __init__(self, seed: int, store: Path, folder: Path, nodes: Nodes | None = None):
        self.seed, self.store, self.folder, self.nodes = seed, store, folder, nodes
        self._expected: dict[str, str] = {}
        self._adding: Future | None = None

    def expected(self, run: str) -> str:
        """The hash of the undisturbed run, which is made inline when it is first asked for."""
        if run not in self._expected:
            path = self.folder / f"undisturbed-{run}"
            with _started(command(path, self.store, RUNS[run]), path) as process:
                code = _ended(process, lambda: None)
            assert code == 0, _told(path)
            self._expected[run] = read_json(path / "result.json")["images_sha256"]
        return self._expected[run]

    def storm(self, number: int) -> Storm:
        """Storm number `number` of this seed. Raises `AssertionError` when the run hangs, gives no reason, or differs at its end."""
        chance = random.Random(f"{self.seed}-{number}")
        storm = Storm(number, chance.choice(list(RUNS)), chance.choice(PLACES) if self.nodes else "inline")
        expected, path = self.expected(storm.run), self.folder / f"storm-{number}"
        store = self.folder / f"store-{number}" if chance.random() < 0.4 else self.store
        how = {"workers": 0} if storm.where == "inline" else {"workers": 2, "address": self.nodes.cluster.address, "max_restarts": 30}
        begin = command(path, store, RUNS[storm.run], checkpoint_every=chance.choice((3, 5, 10)), **how)
        started, watch, strokes = time.monotonic(), Watch(storm, path), chance.randint(1, 3)
        while 0 not in storm.codes:
            assert len(storm.codes) < LIVES, f"not done after {LIVES} lives: {storm}"
            arguments = resuming(path) if (path / "config.json").exists() else begin
            self._life(storm, watch, chance, arguments, path, strokes - len(storm.kills))
        storm.seconds, result = time.monotonic() - started, read_json(path / "result.json")
        storm.same = result["complete"] and result["images_sha256"] == expected
        assert storm.same, f"other images than those of an undisturbed run: {storm}"
        return storm

    def _life(self, storm: Storm, watch: Watch, chance: random.Random, arguments: list[str], path: Path, strokes: int) -> None:
        """One command, struck so many times at most."""
        self._add_nodes()
        self._all_nodes()
        victim, life = "", len(storm.codes)
        watch.new_life()
        with _started(arguments, path) as process:
            while strokes > 0 and victim not in SIGNALS and self._moment(process, chance, watch):
                victim = chance.choice(VICTIMS[storm.where])
                kill = Kill(victim, watch.look(), life)
                if self._strike(process, victim, chance):
                    strokes -= 1
                    watch.struck(kill)
            code = _ended(process, watch.look)
        self._all_nodes()
        for kill in storm.kills:
            kill.survived |= code == 0 and kill.life == life
        storm.codes.append(code)
        killed, told = code == -signal.SIGKILL and victim == "client", _told(path)
        for_people = code in (2, 130) and "Traceback" not in told and ("raydd: " in told if code == 2 else "--resume" in told)
        before_run = code == -signal.SIGTERM and victim == "TERM"  # while Python starts, nothing handles a signal
        assert code == 0 or killed or for_people or before_run, f"exit code {code}: {storm}\n{told}"

    def _moment(self, process: subprocess.Popen, chance: random.Random, watch: Watch) -> bool:
        """Wait until a random moment: some steps on, or some seconds; whether the command still runs then."""
        by_time, steps = chance.random() < 0.35, watch.look() + chance.randint(1, 15)
        end = time.monotonic() + (chance.uniform(0.0, 15.0) if by_time else HANG_SECONDS)
        while time.monotonic() < end and (by_time or watch.look() < steps) and process.poll() is None:
            watch.look()
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 0.2))
        return process.poll() is None

    def _strike(self, process: subprocess.Popen, victim: str, chance: random.Random) -> bool:
        """Kill a victim of this kind; whether there was one."""
        if victim in SIGNALS:
            process.send_signal(SIGNALS[victim])
        elif victim == "node":
            self._all_nodes()
            eldest_first = sorted(self.nodes.cluster.worker_nodes, key=lambda node: node.all_processes["raylet"][0].process.pid)
            self.nodes.cluster.remove_node(chance.choice(eldest_first), allow_graceful=False)
            self._add_nodes()
        else:
            actors = self.nodes.actors(ACTORS[victim])
            for actor in actors and [chance.choice(actors)]:
                actor.kill()
            return bool(actors)
        return True

    def _add_nodes(self) -> None:
        """Have lost nodes replaced, which takes seconds."""
        self._adding = self.nodes.complete() if self.nodes else None

    def _all_nodes(self) -> None:
        """Wait for that."""
        if self._adding is not None:
            self._adding.result()


def _recorded(path: Path) -> int:
    try:
        return (path / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _output(path: Path) -> Path:
    return path.with_name(f"{path.name}.output")


def _told(path: Path) -> str:
    return _output(path).read_text()[-4000:]


@contextmanager
def _started(arguments: list[str], path: Path) -> Iterator[subprocess.Popen]:
    """A command in a process group of its own, which is ended at last; what it says goes into a file beside its run."""
    with _output(path).open("w") as output:
        process = subprocess.Popen(
            arguments, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, cwd=Path(__file__).parents[2], env=ENVIRON
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ended(process: subprocess.Popen, look: Callable[[], object]) -> int:
    """The exit code of a command, which must not hang."""
    end = time.monotonic() + HANG_SECONDS
    while process.poll() is None:
        assert time.monotonic() < end, f"no end within {HANG_SECONDS:g} s"
        look()
        time.sleep(0.02)
    return process.returncode


if __name__ == "__main__":
    nodes = Nodes()
    weather = Weather(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), nodes)
    try:
        serve(lambda number: asdict(weather.storm(int(number))))
    finally:
        nodes.cluster.shutdown()
