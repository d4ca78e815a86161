"""Matching objectives by name. A method registers itself when its file is imported, so a new file in this folder is all it needs."""

import importlib
import pkgutil

from raydd.methods.base import check as check
from raydd.methods.base import method as method
from raydd.methods.base import method_names as method_names

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
