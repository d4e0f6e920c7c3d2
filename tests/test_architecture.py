"""The floors of the house: a file imports only from lower floors or from its own room."""

import ast
import inspect
import sys
from pathlib import Path

import pytest
import torch

from gpt_lightning.data.shards import IGNORED_TARGET
from gpt_lightning.model.cross_entropy import IGNORED

PACKAGE = Path(__file__).parents[1] / "gpt_lightning"
FLOORS = [  # lowest first; rooms on one floor do not know each other
    {"files", "terminal"},
    {"model", "data", "optim", "report", "sharded"},
    {"checkpoint", "scores"},
    {"module", "callbacks", "evaluate", "distillation"},
    {"run"},
    {"tune", "serve"},
    {"cli", "__init__", "__main__"},
]
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The first folder or file name below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def imported_rooms(path: Path) -> set[str]:
    modules = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    return {module.split(".")[1] for module in modules if module.startswith("gpt_lightning.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    own = room(path)
    for other in imported_rooms(path):
        assert other == own or floor(other) < floor(own) or floor(own) == len(FLOORS) - 1, f"{own} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_one_page_with_a_docstring(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 250
    assert ast.get_docstring(ast.parse(text))


def test_the_mark_of_an_ignored_target_is_torchs_and_written_once():
    """data/, which does without torch, has the number; model/ takes it from torch."""

    def writes_it(node: ast.AST) -> bool:
        is_negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        return is_negative and isinstance(node.operand, ast.Constant) and node.operand.value == 100

    found = [path.name for path in FILES for node in ast.walk(ast.parse(path.read_text("utf-8"))) if writes_it(node)]
    assert found == ["shards.py"]
    assert (
        IGNORED
        == IGNORED_TARGET
        == inspect.signature(torch.nn.functional.cross_entropy).parameters["ignore_index"].default
    )


def test_the_model_needs_torch_alone():
    allowed = {"torch", "jaxtyping", "gpt_lightning", *sys.stdlib_module_names}
    optional = {"files.py": {"safetensors"}, "folder.py": {"safetensors"}}
    for path in (PACKAGE / "model").rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
        assert names <= allowed | optional.get(path.name, set()), path
