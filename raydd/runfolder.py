"""A run folder: one distillation, its settings, its measurements, its checkpoints and its result, written by one process at a time.

config.json         {"config", "execution", "raydd"}; its presence makes the folder a run
environment.json    versions, machine, command, start time; one more entry under "resumed" for each resumption
metrics.jsonl       one record for each step; `step` counts from 0
evaluations.jsonl   one record for each evaluation; `step` is the number of steps done before it
faults.jsonl        {"step", "kind", "text"}: deaths of workers and what else was mended
curriculum.json     what each stage uses of the real images, with a curriculum
checkpoints/        see checkpoint.py
synthetic.safetensors  the result file; while the run goes on, the images of a recent checkpoint
result.json, figures/, report.html

A run may lie at a URI: it is then worked on in a folder of this machine, and mirrored there (`raydd.mirror`).
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from raydd.config import Config, Execution, from_dict, to_dict
from raydd.environment import environment, versions
from raydd.errors import CheckpointError, ConfigError, ResourceError
from raydd.files import append_line, atomic_write_bytes, atomic_write_json, check_fields, read_lines, read_object, sync
from raydd.mirror import KNOWN, LAST_PATIENCE, NOTES, PATIENCE, Mirror
from raydd.ownership import TakenOver
from raydd.places import is_uri, join, redacted, working_folder

_MADE = ("config.json", "environment.json", KNOWN, ".lock")
_BEFORE_CONFIG = {".lock", KNOWN, "environment.json", *NOTES}


class Held(ResourceError):
    """Another process of this machine has the run."""


class RunFolder:
    """Paths, records and the lock of one run. Make one with `create`, `open` or `view`; close it, or use it in `with`.

    `location` is where the run lies, a path or a URI; `path` is the folder of this machine in which it is worked on.
    """

    def __init__(self, location: Path | str):
        self.location = str(location)
        self.path = working_folder(self.location)
        self._mirror = Mirror(self.location, self.path) if is_uri(self.location) else None
        self._behind = False
        self.told: list[str] = []
        """What was found damaged at the URI and could be done without."""
        self.checkpoints = self.path / "checkpoints"
        self.figures = self.path / "figures"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluations = self.path / "evaluations.jsonl"
        self.faults = self.path / "faults.jsonl"
        self.synthetic = self.path / "synthetic.safetensors"
        self.result = self.path / "result.json"
        self.report = self.path / "report.html"
        self._lock: int | None = None
        self._new = False

    @classmethod
    def create(cls, path: Path | str, config: Config, execution: Execution) -> "RunFolder":
        """A new run, locked. Raises `ConfigError` when the folder holds anything, `ResourceError` when another process writes it."""
        folder = cls(path)
        if folder._mirror:
            folder._mirror.refuse_used()
        folder._refuse_used()
        folder._new = not folder.path.exists()
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"--run={path}: the folder cannot be made ({error.strerror}).") from error
        folder.lock()
        try:
            folder._refuse_used()
            folder._begin(config, execution)
        except BaseException:
            folder.close()
            raise
        return folder

    def _begin(self, config: Config, execution: Execution) -> None:
        try:
            if self._mirror:
                self._mirror.claim(lambda text: None)
            atomic_write_json(self.path / "environment.json", environment())
            settings = {"config": to_dict(config), "execution": to_dict(execution), "raydd": versions()["raydd"]}
            atomic_write_json(self.path / "config.json", settings)
            if self._mirror:
                self._mirror.upload(patience=0)
        except BaseException:
            self._remove_made()
            raise

    def withdraw(self) -> None:
        """Undo `create` for a run that was refused before it recorded anything; a folder that holds more, or is in use, stays."""
        try:
            self.lock()
        except ResourceError:
            return
        try:
            if self._mirror and self._is_untouched():
                with contextlib.suppress(ResourceError):
                    self._mirror.claim(lambda text: None)
                    self._mirror.withdraw()
            self._remove_made()
        finally:
            self.close()

    def _is_untouched(self) -> bool:
        return not {entry.name for entry in self.path.iterdir()} - {*_MADE}

    def _remove_made(self) -> None:
        """Remove what `create` has made, if there is nothing else."""
        if self._is_untouched():
            for name in _MADE:
                (self.path / name).unlink(missing_ok=True)
            if self._new:
                self.path.rmdir()

    @classmethod
    def open(cls, path: Path | str, tell: Callable[[str], None] = lambda text: None) -> "RunFolder":
        """An existing run to carry on with, locked, and fetched first where its URI has more than this machine.

        `tell` hears why that takes time. Raises `ConfigError` when there is no run, `ResourceError` when it is being written,
        `CheckpointError` when what the URI holds is damaged.
        """
        folder = cls(path)
        if folder._mirror is None:
            folder._refuse_none()
            folder.lock()
            return folder
        if folder._mirror.manifest() is None:
            folder._refuse_none()
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.lock()
        try:
            folder._mirror.claim(tell)
            folder.told = folder._mirror.fetch()
            folder._refuse_none()
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def view(cls, path: Path | str) -> "RunFolder":
        """An existing run to read, without the lock, also while it is written. Raises `ConfigError` when there is none.

        Of a run at a URI, what is there is fetched first, unless the run is going on on this machine.
        """
        folder = cls(path)
        if folder._mirror and (folder._mirror.manifest() is not None):
            folder.path.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(Held):
                folder.lock()
                try:
                    folder.told = folder._mirror.fetch()
                finally:
                    folder.close()
        folder._refuse_none()
        return folder

    def publish(self, report: Callable[[dict[str, Any]], None], last: bool = False) -> None:
        """Bring what the run's URI holds up to date; nothing for a run in a folder.

        Along the run a failure is told of, and made good the next time. Raises `ResourceError` when the `last` upload fails, and when
        another process has taken the run over.
        """
        if self._mirror is None:
            return
        try:
            # A storage that was away the last time is not waited for at every checkpoint.
            self._mirror.upload(LAST_PATIENCE if last else 0.0 if self._behind else PATIENCE)
            if last:
                self._mirror.finish()
            if self._behind:
                report({"phase": "note", "text": f"{redacted(self.location)} is up to date again."})
            self._behind = False
        except TakenOver:
            raise
        except ResourceError as error:
            if last:
                name = shlex.quote(self.location)
                how = f"On this machine `raydd distill --resume {name}` uploads it."
                raise ResourceError(f"{error}\nNothing is lost: all of the run is in {self.path}. {how}") from error
            self._behind = True
            report({"phase": "warning", "text": f"{error} The run goes on; the next checkpoint tries again."})

    def show(self, name: str) -> str:
        """Put a file of the folder beside the run at its URI, for people; returns where it is."""
        if self._mirror is None:
            return str(self.path / name)
        self._mirror.show(name)
        return join(self.location, name)

    def settings(self) -> tuple[Config, Execution]:
        """The settings that the run was created with, but for the steps and evaluations last asked for.

        Raises `CheckpointError` or `ConfigError` when config.json is damaged.
        """
        values = read_object(self.path / "config.json")
        try:
            return from_dict(Config, values["config"]), from_dict(Execution, values["execution"])
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"{self.path / 'config.json'}: does not hold the settings of a run ({error}).") from error

    def update_config(self, config: Config) -> None:
        """Have config.json name the settings that the run is carried on with; how it was executed at first stays."""
        path = self.path / "config.json"
        values = read_object(path)
        if values["config"] != to_dict(config):
            atomic_write_json(path, {**values, "config": to_dict(config)})

    def append(self, record: dict[str, Any]) -> None:
        """Add the record of one step to metrics.jsonl. Raises `ResourceError` when it cannot be written."""
        append_line(self.metrics, record)

    def append_evaluation(self, record: dict[str, Any]) -> None:
        """Add an evaluation to evaluations.jsonl."""
        append_line(self.evaluations, record)

    def read_evaluations(self) -> list[dict[str, Any]]:
        """Every record of evaluations.jsonl, oldest first. Raises `CheckpointError` when a line before the last is damaged."""
        return [check_fields(self.evaluations, record, {"step": int, "kind": str}) for record in read_lines(self.evaluations)]

    def append_fault(self, step: int, kind: str, text: str) -> None:
        """Add what went wrong, and was mended, to faults.jsonl."""
        append_line(self.faults, {"step": step, "kind": kind, "text": redacted(text)})

    def truncate_after(self, step: int) -> None:
        """Forget what a resumed run does again: steps later than `step` (0-based; -1 forgets all), and what came after them.

        A checkpoint after n steps resumes with `truncate_after(n - 1)`. Evaluations of up to n steps done stay. Atomic for each
        file; a torn last line goes too. Raises `CheckpointError` when a line before the last is damaged.
        """
        for path, last in ((self.metrics, step), (self.faults, step), (self.evaluations, step + 1)):
            if not path.exists():
                continue
            kept = [record for record in read_lines(path) if check_fields(path, record, {"step": int})["step"] <= last]
            atomic_write_bytes(path, "".join(json.dumps(r, separators=(",", ":")) + "\n" for r in kept).encode())

    def sync_records(self) -> None:
        """Have every record survive a loss of power. Raises `ResourceError` when the disk fails."""
        sync((self.metrics, self.evaluations, self.faults))

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a process that was killed while it wrote. Only for the holder of the lock.

        A report may be written without it, and is left alone.
        """
        for name in ("checkpoints/.*.tmp", ".*.json.*.tmp", ".*.jsonl.*.tmp", ".*.safetensors.*.tmp"):
            for path in self.path.glob(name):
                path.unlink(missing_ok=True)

    def note_resumption(self, step: int, execution: Execution) -> None:
        """Record in environment.json that the run was taken up again after `step` steps: where, and with which execution settings."""
        path = self.path / "environment.json"
        first = read_object(path) if path.exists() else {}
        before = first.get("resumed", [])
        entry = {"step": step, "execution": to_dict(execution), **environment()}
        atomic_write_json(path, {**first, "resumed": [*(before if isinstance(before, list) else []), entry]})

    def write_result(self, values: dict[str, Any]) -> None:
        """Write result.json: hash of the images, steps done, whether nothing is left to do, seconds, last evaluation, stages.

        Steps are numbered through. Where a stage ended early (CAFE's `iterations`), the next one begins at its own first number all the
        same, and the steps done are those of earlier stages in full and those taken in the last one.
        """
        atomic_write_json(self.result, values)

    def lock(self) -> None:
        """Take the run for this process; the system releases it when the process ends. Raises `ResourceError` naming the holder."""
        path = self.path / ".lock"
        try:
            # Not inherited by child programs, so that a worker that outlives the driver does not hold the run.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ResourceError(f"{path} cannot be opened for writing ({error.strerror}).") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 100).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise Held(f"{self.location} is being written by another process (pid {holder}). Wait for it or stop it.") from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} on {os.uname().nodename}\n".encode())
        self._lock = descriptor

    def close(self) -> None:
        """Release the lock. May be called twice."""
        if self._mirror is not None:
            self._mirror.release()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_run(self) -> bool:
        return (self.path / "config.json").is_file()

    def _refuse_none(self) -> None:
        if not self._is_run():
            what = "a run" if self._mirror else "a run folder (it has no config.json)"
            raise ConfigError([f"{self.location} is not {what}. Name the folder that --run made."])

    def _refuse_used(self) -> None:
        name = shlex.quote(self.location)
        if self._is_run() and self._mirror:
            raise ConfigError(
                [
                    f"--run={name} holds nothing, and {self.path}, where that run was worked on, a whole one. --resume {name} uploads it; "
                    "remove that folder to start anew."
                ]
            )
        if self._is_run():
            raise ConfigError([f"--run={name} already holds a run. Carry on with --resume {name}, or choose another --run."])
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError([f"--run={name} is a file. Choose another --run."])
        # A run that died before its config.json was there leaves only these, and may be started again.
        found = [p.name for p in self.path.iterdir()] if self.path.is_dir() else []
        strange = [n for n in found if n not in _BEFORE_CONFIG and not (n.startswith(".") and n.endswith(".tmp"))]
        if strange:
            raise ConfigError([f"--run={name} is not empty and not a run (it holds {sorted(strange)[0]}). Choose another --run."])


def images_sha256(images: Tensor) -> str:
    """Sha-256 (hex) of the images (N, C, H, W) as contiguous little-endian float32 bytes: what "same bits" is judged by."""
    return hashlib.sha256(images.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes()).hexdigest()
