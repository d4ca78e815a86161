"""raydd: dataset distillation in parallel on Ray."""

__version__ = "0.1.0"
