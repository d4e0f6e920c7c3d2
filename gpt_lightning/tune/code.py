"""The code that decides a measurement, as a digest: what was measured with other code is measured anew."""

import ast
import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

PACKAGE = Path(__file__).parents[1]
TORCH = Path(torch.__file__).parent
TRAINING = (  # decides what a run ends at, beside the classes of its own model and loss
    *("module.py", "callbacks/batch_ramp.py", "data/batches.py", "data/order.py", "data/shards.py"),
    *("model/facts.py", "model/gpt.py", "model/loss.py", "model/parametrization.py"),
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def class_files(modules: Iterable[nn.Module]) -> set[Path]:
    """Files of the classes of these modules, and of those that they are made from; what they import is not followed."""
    kinds = {base for module in modules for base in type(module).__mro__ if base is not object}
    return {Path(file) for kind in kinds if (file := inspect.getsourcefile(kind))}


def training_digest(model: nn.Module, loss: nn.Module) -> str:
    """Digest of what trains this model: its classes, its loss, the optimizers, the order of the data.

    Comments, docstrings and layout do not count; nor does torch, whose versions train alike.
    """
    files = {PACKAGE / name for name in TRAINING} | set((PACKAGE / "optim").glob("*.py"))
    files |= {file for file in class_files([*model.modules(), *loss.modules()]) if TORCH not in file.parents}
    return hashlib.sha256("".join(_meaning(path) for path in sorted(files)).encode()).hexdigest()[:12]


def _meaning(path: Path) -> str:
    """The program of a file without what does not run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
