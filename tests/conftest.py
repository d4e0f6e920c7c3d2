"""Shapes and types of gpt_lightning.model are checked at every call while testing, and only then."""

import jaxtyping
import pytest
import torch

# As everywhere in Python, an int will do where a float is expected (PEP 484).
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"

jaxtyping.install_import_hook("gpt_lightning.model", CHECKER)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny models are fastest on one thread, above all on a machine that is busy."""
    torch.set_num_threads(1)
