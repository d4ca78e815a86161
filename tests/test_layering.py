"""The shape of the code, read from its source: who imports whom, what is never used, how long things are, what is documented."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "raydd").rglob("*.py"))
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}
MODULES = list(FILES)
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "rand_like", "randn_like", "poisson"}
FILLS = {"uniform_", "normal_", "random_", "bernoulli_", "exponential_", "trunc_normal_"}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text("utf-8"))


def layers() -> dict[str, int]:
    """Part of raydd -> its place in the list of docs/design.md, from 0 at the top."""
    text = (ROOT / "docs" / "design.md").read_text("utf-8").split("## Layers")[1]
    lines = re.search(r"```\n(.*?)```", text, re.DOTALL)[1].splitlines()
    return {name: place for place, line in enumerate(lines) for name in re.split(r"\s{2,}", line)[0].split(", ")}


def part(module: str) -> str:
    """The name under which the list has a module: `data` for raydd.data.cache."""
    return module.split(".")[1] if "." in module else "__init__"


def targets(node: ast.AST) -> list[str]:
    """The dotted names that an import statement brings in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports(module: str, inside_functions: bool = True) -> set[str]:
    """Everything that a module imports, in full."""
    nodes = ast.walk(tree(module)) if inside_functions else tree(module).body
    return {target for node in nodes for target in targets(node)}


def module_of(target: str) -> str | None:
    """The module of raydd that a dotted name is, or is in."""
    if target in FILES:
        return target
    parent = target.rpartition(".")[0]
    return parent if parent in FILES else None


def dotted(node: ast.expr) -> str:
    """`torch.load` for an attribute of a name."""
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree(module)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_the_list_has_every_part() -> None:
    assert layers().keys() == {part(module) for module in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    place = layers()
    own = place[part(module)]
    wrong = [found for target in imports(module) if (found := module_of(target)) and place[part(found)] > own]
    assert not wrong, f"{module} is above {wrong} in docs/design.md"


def test_no_two_modules_import_each_other() -> None:
    graph = {module: {found for target in imports(module, False) if (found := module_of(target))} - {module} for module in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle


@pytest.mark.parametrize("module", MODULES)
def test_ray_is_imported_by_actors_alone(module: str) -> None:
    found = {target for target in imports(module) if target.split(".")[0] == "ray"}
    assert not found or part(module) == "actors"
    private = {target for target in found if any(name.startswith("_") for name in target.split("."))}
    assert not private or module == "raydd.actors._compat"


def test_importing_raydd_loads_neither_ray_nor_matplotlib() -> None:
    """Nor do all other modules load Ray; figures need matplotlib."""
    names = [module for module in MODULES if part(module) != "actors"]
    loaded = "print('ray' in sys.modules, 'matplotlib' in sys.modules)"
    code = f"import importlib, sys, raydd\n{loaded}\nfor name in {names}: importlib.import_module(name)\n{loaded}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False False", "False True"]


@pytest.mark.parametrize("module", MODULES)
def test_no_pickle(module: str) -> None:
    roots = {target.split(".")[0] for target in imports(module)}
    assert not roots & {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    calls = {dotted(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)}
    assert not calls & {"torch.load", "np.load", "numpy.load", "torch.save"} or (module, calls & {"torch.load"}) == ("raydd.export", set())
    assert not {dotted(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)} & {"eval", "exec"}


@pytest.mark.parametrize("module", MODULES)
def test_no_global_generator(module: str) -> None:
    """Every random number comes from a generator that is handed over."""
    assert "random" not in {target.split(".")[0] for target in imports(module)}
    for node in ast.walk(tree(module)):
        name = dotted(node) if isinstance(node, ast.Attribute) else ""
        assert name not in {"torch.manual_seed", "torch.seed", "torch.cuda.manual_seed_all"} and not re.match(r"(np|numpy)\.random", name)
        if isinstance(node, ast.Call):
            root, _, called = dotted(node.func).rpartition(".")
            if (root == "torch" and called in DRAWS) or called in FILLS:
                assert "generator" in {keyword.arg for keyword in node.keywords}, f"line {node.lineno}: {called} without generator"


@pytest.mark.parametrize("module", MODULES)
def test_size(module: str) -> None:
    assert len(FILES[module].read_text("utf-8").splitlines()) <= 400
    long = {node.name: length for node in functions(module) if (length := node.end_lineno - node.lineno + 1) > 60}
    assert not long


@pytest.mark.parametrize("module", MODULES)
def test_documented(module: str) -> None:
    """Modules, and what they offer to others: functions, classes, and the methods of classes that are more than protocols."""
    assert ast.get_docstring(tree(module)), "the module has no docstring"
    public = [node for node in tree(module).body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    silent = [node.name for node in public if not ast.get_docstring(node)]
    assert not silent


@pytest.mark.parametrize("module", MODULES)
def test_typed(module: str) -> None:
    """Every function says what it takes and what it gives."""
    bare = []
    for node in functions(module):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        untyped = [a.arg for a in arguments if a is not None and a.annotation is None and a.arg not in ("self", "cls")]
        if untyped or (node.returns is None and node.name != "__init__"):
            bare.append(f"{node.name}({', '.join(untyped)})")
    assert not bare


@pytest.mark.parametrize("module", [module for module in MODULES if part(module) != "__main__"])
def test_imports_by_itself(module: str) -> None:
    assert importlib.import_module(module).__doc__


def test_public_names_exist() -> None:
    raydd = importlib.import_module("raydd")
    assert all(hasattr(raydd, name) for name in raydd.__all__) and sorted(raydd.__all__) == raydd.__all__
