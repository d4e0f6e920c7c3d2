"""Shapes and types of gpt_lightning.model are checked at every call while testing, and only then.

And `folder`, where a test of a whole run works.
"""

import gc
from pathlib import Path

import jaxtyping
import pytest
import torch

from tests import docstrings  # noqa: F401

# As everywhere in Python, an int will do where a float is expected (PEP 484).
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"

jaxtyping.install_import_hook("gpt_lightning.model", CHECKER)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny models are fastest on one thread, above all on a machine that is busy."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def imported_is_kept() -> None:
    """What all tests have imported is not searched for garbage again and again: each trial of a verb collects it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a small text.txt."""
    from tests.fixtures import write_text  # not before the hook above: it imports the package

    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    return tmp_path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: started last, one would leave the other workers idle."""
    items.sort(key=lambda item: item.path.name not in ("test_readme.py", "test_notebooks.py"))
