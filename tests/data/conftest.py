"""Small real text for the data tests: about thirty modules of the standard library, as a folder of .txt files."""

import sysconfig
from pathlib import Path

import pytest

from gpt_lightning.data.corpus import Corpus
from gpt_lightning.data.prepare.prepare import PrepareConfig, prepare


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-c]*.py")):
        (folder / f"{path.stem}.txt").write_bytes(path.read_bytes())
    (folder / "unicode.txt").write_text("naïve 東京 👩‍👩‍👧 <|endoftext|> привет\n" * 20, encoding="utf-8")
    (folder / "empty.txt").write_text("")
    return folder


@pytest.fixture(scope="session")
def corpus(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Prepared once; tests that damage a corpus copy its folder."""
    config = PrepareConfig(vocab_size=1000, val_fraction=0.1, shard_tokens=100_000)
    return prepare(str(text_folder), tmp_path_factory.mktemp("corpora") / "small", config)
