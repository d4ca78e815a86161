"""The picture of the synthetic images that a trial reports."""

import io

import numpy as np
from PIL import Image

from raydd import pictures
from raydd.actors.trial_reports import picture
from tests.report.sample import result


def test_classes_stand_side_by_side() -> None:
    found = result()  # three classes with two images each, 8 x 8
    shown = np.asarray(Image.open(io.BytesIO(picture(found))))
    assert shown.shape[:2] == (2 * 36 - 4, 3 * 36 - 4)
    own = pictures.pixels(found.pixels(found.synthetic.images))
    for label in range(3):
        for place in range(2):
            cell = shown[36 * place : 36 * place + 32 : 4, 36 * label : 36 * label + 32 : 4, :3]
            assert np.array_equal(cell, own[2 * label + place].transpose(1, 2, 0))
