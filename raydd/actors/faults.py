"""Which errors mean that a process is gone, and which are the program's own."""

import contextlib
import re
from collections.abc import Iterator

from ray.exceptions import (
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
    UnserializableException,
    WorkerCrashedError,
)

from raydd.errors import ResourceError

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


_LOSSES = (RayActorError, ObjectLostError, NodeDiedError, WorkerCrashedError, LocalRayletDiedError, OutOfMemoryError)
_FULL = (ObjectStoreFullError, OutOfDiskError)


def is_own(error: RayError) -> bool:
    """Whether the program itself is at fault, so that asking again would fail again. All else is a loss: the actor, its node or
    its answer is gone.
    """
    if isinstance(error, RayTaskError):
        # A call whose argument was lost fails with that loss as its cause.
        return not isinstance(error.cause, _LOSSES)
    # Answers and exceptions that this process cannot read, or has no room for.
    return isinstance(error, (UnserializableException, RaySystemError, *_FULL))


def own_error(error: RayError) -> BaseException:
    """What the code inside the actor raised, of its own type, with the traceback from there as a note.

    Where that exception could not travel: Ray's wrapper, whose text holds the traceback. An answer that found no room in Ray's store
    is a `ResourceError`.
    """
    cause: BaseException = error
    while isinstance(cause, RayTaskError) and isinstance(cause.cause, BaseException):
        cause = cause.cause
    if isinstance(cause, _FULL):
        return _no_room()
    if isinstance(cause, RayError):
        return error
    if not getattr(cause, "__notes__", ()):
        cause.add_note(f"Raised in another process:\n{_COLOURS.sub('', str(error)).strip()}")
    return cause


@contextlib.contextmanager
def storing() -> Iterator[None]:
    """Around whatever puts something into Ray's store. Raises `ResourceError` when neither the store nor the disk has room."""
    try:
        yield
    except _FULL as error:
        raise _no_room() from error


def _no_room() -> ResourceError:
    # What the store cannot hold Ray puts on the disk; only when that is full too does it refuse.
    return ResourceError(
        "Ray's object store is full, and so is the disk of Ray's files on that machine (/tmp/ray, or what `ray start --temp-dir` said). "
        "The run stands at its last checkpoint. Free space there, or start Ray with more --object-store-memory (in a container: "
        "--shm-size), and carry on with `raydd distill --resume`."
    )


def is_preemption(error: BaseException) -> bool:
    """Whether the actor's node was taken back by the cloud, as far as Ray was told."""
    return isinstance(error, RayActorError) and bool(error.preempted)


def reason(error: BaseException) -> str:
    """Why a process was lost, on one line."""
    if isinstance(error, ActorUnavailableError):
        return "it cannot be reached"
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("class_name:", "actor_id:", "pid:", "namespace:", "ip:", "name:"))]
    return " ".join(told)[:400] or type(error).__name__
