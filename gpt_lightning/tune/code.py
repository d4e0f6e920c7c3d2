"""The code that decides a measurement, as a digest: what was measured with other code is measured anew."""

import ast
import hashlib
import importlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.util import resolve_name
from pathlib import Path

from torch import nn

PACKAGE = Path(__file__).parents[1]
INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
TRAINING = (
    *("gpt_lightning.module", "gpt_lightning.data.datamodule", "gpt_lightning.callbacks.batch_ramp"),
    *("gpt_lightning.callbacks.steps", "gpt_lightning.callbacks.horizon"),
)
LOADED: dict[Path, str] = {}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def classes(modules: Iterable[nn.Module]) -> set[type]:
    """Classes of these modules, and those that they are made from."""
    return {base for module in modules for base in type(module).__mro__ if base is not object}


def class_files(modules: Iterable[nn.Module]) -> set[Path]:
    """Files of their classes."""
    return {Path(file) for kind in classes(modules) if (file := inspect.getsourcefile(kind))}


def training_digest(model: nn.Module, loss: nn.Module, callbacks: Iterable[str] = ()) -> str:
    """Digest of what trains this model: module, data, optimizers, its classes and loss, and all that these import.

    callbacks: import paths of others that take part.

    The user's own files count like the package's; installed packages do not, nor comments, docstrings and layout.
    Raises ValueError for a program that is no longer what this process has loaded.
    """
    names = [path.rpartition(".")[0] for path in callbacks]
    names += [*TRAINING, *(kind.__module__ for kind in classes([*model.modules(), *loss.modules()]))]
    for name in TRAINING:
        importlib.import_module(name)
    programs: dict[Path, str] = {}
    while names:
        name = names.pop()
        path = _own_file(name)
        if path is not None and path not in programs:
            tree = _program(path)
            names += _imported(tree, name)
            programs[path] = _meaning(tree)
    return hashlib.sha256("".join(sorted(programs.values())).encode()).hexdigest()[:12]


def _program(path: Path) -> ast.Module:
    """As it was when it was first asked for: what runs was loaded before. Where the file is gone, it still runs."""
    now = path.read_text(encoding="utf-8") if path.is_file() else None
    loaded = LOADED.setdefault(path, now or "")
    if now is not None and now != loaded and _meaning(ast.parse(now)) != _meaning(ast.parse(loaded)):
        raise ValueError(f"{path} was changed after it was loaded; start again, in a notebook with a new kernel")
    return ast.parse(loaded)


def _own_file(name: str) -> Path | None:
    """Of a module that is loaded and not installed, or of this package."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or not file.endswith(".py"):
        return None
    path = Path(file)
    is_installed = any(folder in path.parents for folder in INSTALLED)
    return path if PACKAGE in path.parents or not is_installed else None


def _imported(tree: ast.Module, name: str) -> Iterator[str]:
    """Modules that are imported when this one is: those in functions may be loaded or not, and are left out."""
    module = sys.modules[name]
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            where = resolve_name("." * node.level + (node.module or ""), module.__package__)
            yield where
            yield from (f"{where}.{alias.name}" for alias in node.names)


def _meaning(tree: ast.Module) -> str:
    """A program without what does not run; the tree is changed."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
