"""Enough images per class, or an error that names the class."""

import pytest

from raydd.config import DataConfig
from raydd.data import load, require_per_class
from raydd.errors import DataError


def test_ipc_up_to_the_smallest_class_is_allowed():
    dataset = load(DataConfig())
    require_per_class(dataset, 1)
    require_per_class(dataset, 124)
    with pytest.raises(DataError, match=r"--ipc=125 is more than the 124 training images of class 8 in digits; lower --ipc to at most 124"):
        require_per_class(dataset, 125)
