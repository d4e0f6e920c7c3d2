"""Small real text for the data tests: about thirty modules of the standard library, as a folder of .txt files."""

import json
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


@pytest.fixture(scope="session")
def short_documents(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL of 600 documents of 0 to 99 characters, so that a row of tokens holds several."""
    text = (text_folder / "argparse.txt").read_text(encoding="utf-8")
    path = tmp_path_factory.mktemp("short") / "short.jsonl"
    documents = [text[60 * i :][: 37 * i % 100] for i in range(600)]
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def short_corpus(short_documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    config = PrepareConfig(vocab_size=400, val_fraction=0.1, near_copies="keep")
    return prepare(str(short_documents), tmp_path_factory.mktemp("corpora") / "short", config)
