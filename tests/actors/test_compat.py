"""The private parts of Ray still are what raydd takes them for."""

import inspect
import logging

import pytest
import ray._private.worker

from raydd.actors import _compat


@pytest.mark.usefixtures("ray_cluster")
def test_cluster_without_an_autoscaler_has_no_maximum() -> None:
    assert _compat.autoscaler_maximum() is None


def test_addresses_are_resolved() -> None:
    assert _compat.resolve_address("192.0.2.7:6379") == "192.0.2.7:6379"
    with pytest.raises(ValueError):
        _compat.resolve_address("no-port")


def test_authentication_can_be_read_again() -> None:
    _compat.refresh_authentication()


def test_messages_of_ray_go_to_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "print_to_stdstream" in inspect.getsource(ray._private.worker.listen_error_messages)
    monkeypatch.setattr(ray._private.worker, "print_to_stdstream", ray._private.worker.print_to_stdstream)
    _compat.messages_to_log()
    messages = []
    monkeypatch.setattr(logging.getLogger("ray"), "info", messages.append)
    ray._private.worker.print_to_stdstream({"lines": ["a worker died"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert messages == ["a worker died"]
