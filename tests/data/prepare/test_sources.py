"""Every kind of source gives exactly the text it was made of; bad input is one clear line."""

import gzip
import json
import re
import subprocess
import sys

import pytest

from gpt_lightning.data.prepare.sources import PIECE_BYTES, open_source


def read(source, **options):
    return list(open_source(str(source), **options).read(lambda name: True))


def test_the_standard_library_comes_without_tests_and_site_packages():
    documents = dict(read("stdlib"))
    assert len(documents) > 300
    assert documents["heapq.py"].startswith('"""Heap queue algorithm')
    assert not [name for name in documents if re.search(r"(^|/)(tests?|idle_test|site-packages)/", name)]
    assert list(documents) == sorted(documents, key=lambda name: name.split("/"))


@pytest.mark.parametrize("n_bytes", [2, 50, 20_000, 300_000])
@pytest.mark.parametrize("separator", ["\n\n", "\n", "", "é"])
def test_a_text_file_is_cut_into_pieces_that_join_to_the_file(tmp_path, n_bytes, separator):
    text = (f"wörd {separator}" * n_bytes)[:n_bytes]
    (tmp_path / "book.txt").write_bytes(text.encode())
    documents = read(tmp_path / "book.txt")
    assert "".join(piece for _, piece in documents) == text
    assert len(documents) >= 2 and len({name for name, _ in documents}) == len(documents)
    assert max(len(piece.encode()) for _, piece in documents) <= 2 * PIECE_BYTES + 2
    if separator == "\n\n" and n_bytes > 1000:
        assert all(piece.endswith("\n\n") for _, piece in documents[:-1])


def test_a_folder_gives_one_document_per_matching_file_and_skips_empty_ones(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, text in {"b.txt": "bee", "sub/a.txt": "ay\r\n", "c.md": "sea", "empty.txt": ""}.items():
        (tmp_path / name).write_bytes(text.encode())
    assert read(tmp_path) == [("b.txt", "bee"), ("sub/a.txt", "ay\r\n")]
    assert read(tmp_path, glob="*.md") == [("c.md", "sea")]


def test_what_is_not_kept_is_not_read(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    assert list(open_source(str(tmp_path)).read(lambda name: name == "good.txt")) == [("good.txt", "good")]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_jsonl_gives_the_text_field_of_every_line(tmp_path, suffix):
    rows = [{"text": "eins\n", "body": "one"}, {"text": "", "body": "x"}, {"text": "drei ü", "body": "three"}]
    data = "\n".join([json.dumps(rows[0]), "", *map(json.dumps, rows[1:])]).encode()
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert read(path) == [(f"rows{suffix}:1", "eins\n"), (f"rows{suffix}:4", "drei ü")]
    assert [text for _, text in read(path, text_field="body")] == ["one", "x", "three"]
    assert [text for _, text in read(tmp_path, glob="*.jsonl*")] == ["eins\n", "drei ü"]


def test_half_a_surrogate_pair_in_jsonl_becomes_a_replacement_character(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}')
    assert [text for _, text in read(tmp_path / "rows.jsonl")] == ["a\ufffdb 😀"]


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_a_local_hugging_face_data_set_gives_its_rows(tmp_path, kind, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = datasets.Dataset.from_dict({"text": ["eins", "", "drei"], "id": [1, 2, 3]})
    folder = tmp_path / "set"
    folder.mkdir()
    getattr(rows, f"to_{kind}")(str(folder / f"part.{kind}"))
    assert [text for _, text in read(f"hf:{folder}")] == ["eins", "drei"]
    with pytest.raises(ValueError, match="no field 'body'.*text, id"):
        read(f"hf:{folder}", text_field="body")


def test_a_hugging_face_name_without_network_is_one_clear_line():
    pytest.importorskip("datasets")
    code = (
        "from gpt_lightning.data.prepare.sources import open_source\n"
        "try: open_source('hf:nobody/nothing')\n"
        "except ValueError as error: print(error)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.stdout.startswith("cannot read hf:nobody/nothing: ") and result.stdout.count("\n") == 1


def test_a_file_that_is_not_utf8_is_named_with_the_offset_of_its_first_bad_byte(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"x" * 100 + "é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8: byte 0xe9 at offset 100"):
        read(tmp_path)
    (tmp_path / "long.txt").write_bytes(b"line\n\n" * 50_000 + b"\xff")
    with pytest.raises(ValueError, match=r"long\.txt is not UTF-8: byte 0xff at offset 300000"):
        read(tmp_path / "long.txt")
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl is not UTF-8: byte 0xff at offset 24"):
        read(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", r"rows\.jsonl line 2 is not JSON"),
        ('{"body": "x"}', r"line 2 has no field 'text' \(found: body\)"),
        ('["x"]', "line 2 has no field 'text'"),
        ('{"text": 3}', "line 2: field 'text' is int, expected a string"),
    ],
)
def test_a_bad_jsonl_line_is_named(tmp_path, line, message):
    (tmp_path / "rows.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "rows.jsonl")


def test_half_a_gzip_file_is_refused(tmp_path):
    data = gzip.compress(json.dumps({"text": "word " * 1000}).encode() * 5)
    (tmp_path / "rows.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        read(tmp_path / "rows.jsonl.gz")


def test_missing_and_empty_sources_are_errors_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="'nowhere' does not exist"):
        open_source("nowhere")
    with pytest.raises(ValueError, match="no file that matches"):
        open_source(str(tmp_path))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="empty"):
        open_source(str(tmp_path / "empty.txt"))
    with pytest.raises(ValueError, match="empty"):
        open_source(str(tmp_path))


def test_the_identity_follows_the_files_and_not_their_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "text").mkdir(parents=True)
        (tmp_path / name / "text" / "a.txt").write_text("same")
    first, second = (open_source(str(tmp_path / name / "text")) for name in ("one", "two"))
    assert (first.name, first.identity) == (second.name, second.identity)
    (tmp_path / "two" / "text" / "a.txt").write_text("other")
    assert open_source(str(tmp_path / "two" / "text")).identity != first.identity
