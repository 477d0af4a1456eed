import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "neural_polarizer"
ROOT = Path(__file__).parents[1] / "src" / PACKAGE

# A part imports itself and the layers above its own line in this table, no neighbour and nothing further down. What a
# package has that is not named here belongs to the part with the package's own name.
LAYERS = (
    ("errors", "progress"),
    ("settings", "scales"),
    ("rng", "files", "devices"),
    ("cache", "layer.features", "perturb"),
    ("data", "models", "layer.polarizer", "model_files.checkpoints"),
    ("layer.by_class",),
    ("layer.surgery", "losses", "layer.structures"),
    ("train", "layer.folding", "layer.sites"),
    ("metrics", "layer"),
    ("plausibility",),
    ("attacks", "defenses"),
    ("model_files", "audit", "report"),
    ("exporting", "analysis"),
    ("runs",),
    ("api",),
    ("bench",),
    ("__init__",),
    ("cli", "mindspore"),
)
# The order inside of a package that is one part to all others.
WITHIN = (
    ("model_files.record", "report"),
    ("model_files.foreign", "report.run", "report.bench"),
    ("model_files.load", "model_files.save"),
    ("model_files.check",),
    ("model_files",),
)
LEVEL = {part: (level, 0) for level, parts in enumerate(LAYERS) for part in parts}
LEVEL |= {part: (LEVEL[part.partition(".")[0]][0], place) for place, parts in enumerate(WITHIN) for part in parts}
OPTIONAL = (
    "ray",
    "torchvision",
    "timm",
    "datasets",
    "mindspore",
    "mlxtend",
    "matplotlib",
    "pandas",
    "captum",
    "transformers",
    "onnx",
    "onnxruntime",
)
LATER = ("typer", "rich", "jinja2", "markupsafe", "fsspec", "pyarrow")
"""Packages of extras, which the library reads only where they are needed."""
RUNS_CODE = {"torch.load", "torch.jit.load", "torch.hub.load", "marshal.loads", "pandas.read_pickle"}
MAY_BE_TOLD = {"eval", "exec", "compile", "__import__"}
PICKLES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve"}


def part_named(name: str) -> str:
    """The part that has a module or what is in it, by its full name without that of the package."""
    words = name.split(".")
    return next((part for part in (".".join(words[:2]), words[0]) if part in LEVEL), "__init__")


def part_of(path: Path) -> str:
    return part_named(".".join(path.relative_to(ROOT).with_suffix("").parts))


FILES = sorted(ROOT.rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The parts of the package that a module imports, anywhere in it; its version alone does not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == PACKAGE and rest != "__version__":
                yield part_named(rest), node.lineno


def leads_down(part: str, other: str) -> bool:
    """Whether ``part`` may import ``other``."""
    (here, place), (there, its_place) = LEVEL[part], LEVEL[other]
    neighbours = here == there and part.partition(".")[0] == other.partition(".")[0]
    return part == other or there < here or (neighbours and its_place < place)


def upward(part: str, tree: ast.Module) -> list[str]:
    return [f"line {line}: {part} imports {other}" for other, line in imported(tree) if not leads_down(part, other)]


def dangerous(tree: ast.Module) -> list[str]:
    """Whatever could run what a file says."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAY_BE_TOLD:
            found.append(f"line {node.lineno}: {node.func.id}")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in RUNS_CODE:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Import):
            found += [f"line {node.lineno}: {alias.name}" for alias in node.names if alias.name in PICKLES]
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            if node.module in PICKLES or names & RUNS_CODE:
                found.append(f"line {node.lineno}: from {node.module}")
    return found


def test_every_part_has_its_layer() -> None:
    assert {part_of(path) for path in FILES} == LEVEL.keys()


@pytest.mark.long
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_lead_down_and_nothing_runs_code(path: Path) -> None:
    assert upward(part_of(path), tree_of(path)) == []
    assert dangerous(tree_of(path)) == []


@pytest.mark.parametrize(
    ("part", "line", "allowed"),
    [
        ("attacks", "from neural_polarizer.defenses.base import Defense", False),
        ("defenses", "import neural_polarizer.attacks", False),
        ("report", "from neural_polarizer.errors import BadInputError", True),
        ("report", "from neural_polarizer.runs.purify import run_purify", False),
        ("report", "from neural_polarizer.report.run.verdict import judge", False),
        ("report.run", "from neural_polarizer.report.values import percent", True),
        ("report.run", "from neural_polarizer.report.bench.names import label_text", False),
        ("train", "from neural_polarizer import evaluate", False),
        ("data", "def f():\n    from neural_polarizer.train.fit import fit", False),
        ("data", "from neural_polarizer.data.images import ImageSet", True),
        ("model_files.record", "from neural_polarizer import __version__", True),
        ("model_files.load", "from neural_polarizer.model_files.record import ModelRecord", True),
        ("model_files.record", "from neural_polarizer.model_files.load import load_model", False),
        ("model_files.record", "from neural_polarizer.model_files.foreign import suggestion", False),
        ("model_files.check", "from neural_polarizer.report.values import percent", False),
        ("defenses", "from neural_polarizer.model_files.record import ModelRecord", False),
        ("models", "from neural_polarizer.model_files.checkpoints import read_checkpoint", False),
        ("cli", "from neural_polarizer.runs import attack", True),
        ("runs", "from neural_polarizer.cli.output import console", False),
        ("cli", "from neural_polarizer.mindspore import purify", False),
        ("layer.sites", "from neural_polarizer.layer.surgery import Site", True),
        ("layer.sites", "from neural_polarizer.layer import surgery", True),
        ("layer.surgery", "from neural_polarizer.layer import sites", False),
        ("layer.sites", "from neural_polarizer.layer.folding.plan import Plan", False),
        ("layer.sites", "from neural_polarizer.layer import Polarizer", False),
    ],
)
def test_the_layers_are_checked(part: str, line: str, allowed: bool) -> None:
    assert (upward(part, ast.parse(line)) == []) is allowed


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(p)",
        "eval('1')",
        "exec(x)",
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "f = torch.load",
    ],
)
def test_what_runs_code_is_found(line: str) -> None:
    assert dangerous(ast.parse(line))
    assert not dangerous(ast.parse("model.eval(); torch.compile(f); safetensors.torch.load(data); import pickletools"))


IMPORT = f"""
import json, logging, random, sys, warnings
import numpy, torch

def state():
    return [
        torch.get_rng_state().tolist(), repr(random.getstate()), repr(numpy.random.get_state()),
        str(torch.get_default_dtype()), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        len(logging.getLogger().handlers), logging.getLogger().level, logging.root.manager.disable,
        len(warnings.filters),
    ]

before = state()
import {PACKAGE}
after = state()
light = sorted(sys.modules)
import {PACKAGE}.cli.main
print(json.dumps([before == after, light, sorted(sys.modules)]))
"""


@pytest.mark.process
def test_an_import_is_light_and_leaves_no_trace() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
    unchanged, light, command_line = json.loads(done.stdout)
    assert unchanged
    assert not set(OPTIONAL) & set(command_line)
    assert not {*LATER, "neural_polarizer.cli"} & set(light)
