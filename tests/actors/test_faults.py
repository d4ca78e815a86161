import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayError,
    RaySystemError,
    RayTaskError,
    UnserializableException,
)

from raydd.actors.faults import is_own, is_preemption, own_error, reason, storing
from raydd.actors.options import restart_pause
from raydd.errors import ResourceError


def failed_call(cause: BaseException) -> RayTaskError:
    return RayTaskError("work", "Traceback (most recent call last):\nhere\n", cause, proctitle="w", pid=1, ip="192.0.2.1")


def test_own_errors_and_losses() -> None:
    lost = ObjectLostError("ab" * 28, None, "")
    for own in (failed_call(ValueError("x")), failed_call(RaySystemError("no module")), RaySystemError("x"), UnserializableException("x")):
        assert is_own(own)
    for loss in (ActorDiedError(), ActorUnavailableError("x", None), lost, failed_call(lost), failed_call(ActorDiedError())):
        assert not is_own(loss)


@pytest.mark.parametrize("wrapped", [False, True])
def test_own_error_is_the_original_with_its_traceback(wrapped: bool) -> None:
    cause = KeyError("expert")
    error = failed_call(cause)
    found = own_error(failed_call(error) if wrapped else error.as_instanceof_cause())
    assert found is cause and len(found.__notes__) == 1 and "here" in found.__notes__[0]
    assert own_error(error) is cause and len(cause.__notes__) == 1


def test_error_that_could_not_travel_keeps_its_text() -> None:
    error = UnserializableException("the traceback")
    assert own_error(error) is error and "the traceback" in str(error)


@pytest.mark.parametrize("kind", [ObjectStoreFullError, OutOfDiskError])
def test_a_full_store_is_a_matter_of_room(kind: type[RayError]) -> None:
    """Wherever it is noticed: in the worker that answers, here when the answer comes, or here when something is sent."""
    for error in (failed_call(kind("x")), kind("x")):
        assert is_own(error) and isinstance(own_error(error), ResourceError)
    with pytest.raises(ResourceError, match=r"object store is full, and so is the disk .*--object-store-memory"), storing():
        raise kind("x")


def test_preemption_is_told_apart() -> None:
    error = ActorDiedError()
    assert not is_preemption(error)
    error._preempted = True
    assert is_preemption(error) and not is_preemption(failed_call(ValueError()))


def test_reason_is_one_line() -> None:
    error = ActorDiedError()
    error.error_msg = "The actor died.\n\tclass_name: Worker\n\tpid: 3\nIts node was lost."
    assert reason(error) == "The actor died. Its node was lost."
    assert reason(ActorUnavailableError("x", None)) == "it cannot be reached"


def test_restarts_are_spaced_out() -> None:
    assert [restart_pause(deaths, 1.0) for deaths in (1, 2, 3, 4, 5, 6, 7, 99)] == [0, 1, 2, 4, 8, 16, 30, 30]
