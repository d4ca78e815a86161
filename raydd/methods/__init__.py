"""Matching objectives by name."""

from raydd.methods import mtt as mtt
from raydd.methods.base import method as method
