"""Networks by name, each usable as a function of one flat parameter vector."""

from raydd.models import convnet as convnet
from raydd.models.flat import FlatModel as FlatModel
from raydd.models.flat import build as build
from raydd.models.flat import model_names as model_names
from raydd.models.flat import register_model as register_model
