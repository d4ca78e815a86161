"""Networks by name, each usable as a function of one flat parameter vector."""

from raydd.models import convnet as convnet
from raydd.models import densenet as densenet
from raydd.models import plain as plain
from raydd.models import resnet as resnet
from raydd.models.flat import FlatModel as FlatModel
from raydd.models.registry import build as build
from raydd.models.registry import model_names as model_names
from raydd.models.registry import named as named
from raydd.models.registry import register_model as register_model
