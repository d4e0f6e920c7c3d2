"""A small tokenizer for the models that are written and read."""

import pytest

from gpt_lightning.data.tokenizer import Tokenizer
from tests.model.parity import TEXT, VOCAB


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], VOCAB)


@pytest.fixture(scope="session")
def tokenizer_path(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(path)
    return path
