"""raydd: dataset distillation in parallel on Ray.

What the command line does, a notebook does in a few lines:

    import raydd

    recipe = raydd.load_recipe("digits-mtt-ipc1")
    config = raydd.override(recipe.config, {"steps": 60, "selection.policy": "dynadistill", "selection.candidates": 3})
    result = raydd.distill(config, raydd.Execution(run="runs/first", workers=0))
    print(result["images_sha256"], raydd.evaluate("runs/first", nets=5).summary())
    raydd.write_report("runs/first")
    images = raydd.result_file("runs/first").synthetic.images      # (N, C, H, W), training space
"""

from raydd.artifact import Artifact
from raydd.config import Config, Execution, override
from raydd.continual import continual_learning
from raydd.continual_config import ContinualConfig
from raydd.errors import RayddError
from raydd.export import export
from raydd.launch import distill, evaluate, evaluate_on, extend, predict, result_file, resume, train_experts
from raydd.recipes import Recipe, load_recipe, recipe_names
from raydd.report import write_report
from raydd.select import select
from raydd.select_config import SelectConfig
from raydd.types import SyntheticSet

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "Config",
    "ContinualConfig",
    "Execution",
    "RayddError",
    "Recipe",
    "SelectConfig",
    "SyntheticSet",
    "continual_learning",
    "distill",
    "evaluate",
    "evaluate_on",
    "export",
    "extend",
    "load_recipe",
    "override",
    "predict",
    "recipe_names",
    "result_file",
    "resume",
    "select",
    "train_experts",
    "write_report",
]
