"""The private parts of Ray still are what raydd takes them for."""

import pytest

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
