"""The digest of the code that trains a model changes with what runs, wherever it stands, and with nothing else."""

import importlib

import pytest
import torch

from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.loss import CrossEntropy
from gpt_lightning.model.own_block import import_block
from gpt_lightning.tune import code
from gpt_lightning.tune.code import training_digest

CONFIG = GPTConfig(vocab_size=19, context_length=8, n_layers=1, n_heads=2, d_model=16)


def digest(block) -> str:
    with torch.device("meta"):
        return training_digest(GPT(CONFIG, block), CrossEntropy())


BLOCK = """from gpt_lightning.model.gpt import Block
from my_numbers import SCALE


class MyBlock(Block):
    scale = SCALE
"""


def test_a_changed_line_counts_and_a_comment_a_docstring_and_layout_do_not(tmp_path, monkeypatch):
    """Also in a file beside that of the block, from which it takes a number."""
    files = {"my_scaled_block.py": BLOCK, "my_numbers.py": "SCALE = 1.0\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    own_block = import_block("my_scaled_block.MyBlock")
    before = digest(own_block)
    for name, text in files.items():
        (tmp_path / name).write_text('"""What it is."""\n\n# and why\n' + text.replace(" = ", "  =  "))
        assert digest(own_block) == before
        (tmp_path / name).write_text(text + "MORE = 1\n")
        with pytest.raises(ValueError, match=f"{name} was changed after it was loaded"):
            digest(own_block)
        code.LOADED.clear()  # another process
        assert digest(own_block) != before, name
        (tmp_path / name).write_text(text)
        code.LOADED.clear()
    assert digest(own_block) == before
    (tmp_path / "my_numbers.py").unlink()
    assert digest(own_block) == before, "what was loaded runs without its file"


def test_a_callback_of_the_users_own_counts(tmp_path, monkeypatch):
    (tmp_path / "my_averages.py").write_text("class Average: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("my_averages")
    with torch.device("meta"):
        gpt = GPT(CONFIG)
    plain = training_digest(gpt, CrossEntropy())
    assert training_digest(gpt, CrossEntropy(), ["lightning.pytorch.callbacks.Timer"]) == plain
    assert training_digest(gpt, CrossEntropy(), ["my_averages.Average"]) != plain


def test_it_reads_what_trains_and_not_what_is_installed(monkeypatch):
    read = []
    monkeypatch.setattr(code, "_meaning", lambda tree: read.append(tree) or "")
    own_file = code._own_file
    paths = set()
    monkeypatch.setattr(code, "_own_file", lambda name: (paths.add(own_file(name)), own_file(name))[1])
    from gpt_lightning.model.gpt import Block

    digest(Block)
    names = {str(path.relative_to(code.PACKAGE)) for path in paths if path}
    assert {"module.py", "model/gpt.py", "model/attention.py", "model/initialization.py", "optim/muon.py"} <= names
    assert {"data/order.py", "data/batches.py", "optim/schedules.py", "callbacks/batch_ramp.py"} <= names
    assert not any(name.startswith(("serve/", "report/", "tune/")) for name in names)
