"""Files of examples: every format gives the rows that were written, and every fault is named by file and row."""

import gzip
import json

import pytest

from gpt_lightning.data.examples.kinds import ExamplesConfig, to_example
from gpt_lightning.data.examples.read import read_rows

TEXT = 'He said "a, b"\nthen\tleft'


def values(path, targets=None):
    return [row.values for row in read_rows(str(path), targets and str(targets))]


def test_jsonl_json_csv_and_tsv_hold_the_same_rows(tmp_path):
    rows = [{"text": TEXT, "label": "x"}, {"text": "naïve 東京", "label": "y"}]
    lines = "\n\n".join(json.dumps(row) for row in rows) + "\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name, comma in (("a.csv", ","), ("a.tsv", "\t")):
        quoted = ['"{}"'.format(row["text"].replace('"', '""')) + comma + row["label"] for row in rows]
        (tmp_path / name).write_text("\ufeff" + "\r\n".join([f"text{comma}label", *quoted]) + "\r\n", newline="")
    for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.tsv"):
        assert values(tmp_path / name) == rows, name


def test_a_row_is_named_by_the_line_that_it_ends_on(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"one\ntwo",x\nthree,y\n')
    assert [row.where for row in read_rows(str(tmp_path / "a.csv"))] == [f"{tmp_path}/a.csv line {n}" for n in (3, 4)]


def test_two_files_of_text_and_of_wmt_are_pairs(tmp_path):
    (tmp_path / "a.en").write_text("one\u2028still one\ntwo\n")
    (tmp_path / "a.de").write_text("eins\r\nzwei\r\n", newline="")
    pairs = [{"source": "one\u2028still one", "target": "eins"}, {"source": "two", "target": "zwei"}]
    assert values(tmp_path / "a.en", tmp_path / "a.de") == pairs
    for name, words in (("s.sgm", ["A &amp; B", "C"]), ("t.sgm", ["D", "E &lt; F"])):
        segments = "".join(f'<seg id="{i}"> {word} </seg>\n' for i, word in enumerate(words, start=1))
        (tmp_path / name).write_text(f'<srcset setid="x"><doc docid="d"><p>\n{segments}</p></doc></srcset>\n')
    assert values(tmp_path / "s.sgm", tmp_path / "t.sgm") == [
        {"source": "A & B", "target": "D"},
        {"source": "C", "target": "E < F"},
    ]


def test_a_local_hugging_face_data_set_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "x"}\n')
    assert datasets is not None
    assert values(f"hf:{tmp_path}") == [{"text": "a", "label": "x"}]


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hey"}]
RELATION = {
    **{"token": ["Bill", "was", "born"], "subj_start": 0, "subj_end": 0, "obj_start": 2, "obj_end": 2},
    **{"subj_type": "PERSON", "obj_type": "CITY", "relation": "no_relation"},
}
FAULTS = [  # file, its content, kind, what is said of it
    ("a.jsonl", '{"prompt": "a"', "completion", "a.jsonl line 1 is not JSON"),
    ("a.jsonl", '\n\n{"prompt": "a", "completion": "b"}\n[1]', "completion", "a.jsonl line 4 is list; expected a JSON"),
    ("a.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xff"}', "completion", "a.jsonl line 2 is not UTF-8"),
    ("a.jsonl", '{"prompt": "a"}', "completion", "line 1 has no field 'completion' (found: prompt)"),
    ("a.jsonl", '{"prompt": "a", "completion": ""}', "completion", "line 1: completion is empty"),
    ("a.jsonl", '{"prompt": "a", "completion": " \\n"}', "completion", "line 1: completion is empty"),
    ("a.jsonl", '{"prompt": 3, "completion": "b"}', "completion", "line 1: prompt is int; expected a string"),
    ("a.jsonl", '{"prompt": "a", "completion": null}', "completion", "completion is NoneType; expected a string"),
    ("a.jsonl", "", "completion", "a.jsonl has no rows"),
    ("a.jsonl.gz", b"no gzip", "completion", "a.jsonl.gz is not a whole gzip file"),
    ("a.jsonl.gz", gzip.compress(b'{"prompt": "a"}')[:-9], "completion", "is not a whole gzip file"),
    ("a.json", '{"prompt": "a"}', "completion", "a.json is dict; expected an array"),
    ("a.json", "[1, 2", "completion", "a.json is not JSON"),
    ("a.json", '[{"text": "a", "label": "x"}, 3]', "classification", "a.json row 2 is int; expected a JSON object"),
    ("a.csv", "text,label\na\n", "classification", "a.csv line 2 has 1 fields; its header has 2"),
    ("a.csv", "text,text\na,b\n", "classification", "a.csv names a column twice"),
    ("a.csv", 'text,label\n"a,b\n', "classification", "a.csv line 2: unexpected end of data"),
    ("a.csv", "text,category\na,b\n", "classification", "data.examples.fields '{label: NAME}'"),
    ("a.csv", "text,label\n,b\n", "classification", "line 2: text is empty"),
    ("a.csv", "text,label\na,\n", "classification", "line 2: label is ''; expected a name or a whole number"),
    ("a.jsonl", '{"text": "a", "label": 0.5}', "classification", "label is 0.5; expected a name or a whole number"),
    ("a.jsonl", '{"text": "a", "label": true}', "classification", "label is True; expected a name"),
    ("a.jsonl", '{"text": "a", "label": ["x"]}', "classification", "label is ['x']; expected a name"),
    ("a.xlsx", "x", "classification", "a.xlsx: expected a .jsonl, .json, .csv or .tsv file"),
    ("a.txt", "x", "translation", "two files of text, line by line, need data.examples.targets"),
    (
        "a.jsonl",
        '{"translation": {"en": "a", "de": "b"}}',
        "translation",
        "line 1 has translations of en, de; say which",
    ),
    ("a.jsonl", '{"translation": "a"}', "translation", "translation is str; expected an object of two languages"),
    ("a.jsonl", {"messages": "hi"}, "chat", "line 1: messages is 'hi'; expected a list of {role, content}"),
    ("a.jsonl", {"messages": []}, "chat", "line 1: messages is []; expected a list"),
    ("a.jsonl", {"messages": CHAT[:1]}, "chat", "line 1: the last message is not the assistant's"),
    ("a.jsonl", {"messages": CHAT[1:]}, "chat", "line 1 has no user message"),
    (
        "a.jsonl",
        {"messages": [{"role": "bot", "content": "x"}]},
        "chat",
        "message 1 has the role 'bot'; expected system",
    ),
    (
        "a.jsonl",
        {"messages": [*CHAT, {"role": "user"}]},
        "chat",
        "line 1, message 3 is {'role': 'user'}; expected {role",
    ),
    (
        "a.jsonl",
        {"messages": [*CHAT, {"role": "system", "content": "x"}, *CHAT]},
        "chat",
        "a system message stands after",
    ),
    ("a.jsonl", {"messages": [{"role": "user", "content": ""}, CHAT[1]]}, "chat", "message 1: content is empty"),
    (
        "a.jsonl",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, CHAT[1]]},
        *("chat", "message 1 has a part of type 'image_url'; expected text alone"),
    ),
    (
        "a.json",
        [{**RELATION, "token": "Bill was born"}],
        "relation",
        "row 1: token is 'Bill was born'; expected a list",
    ),
    (
        "a.json",
        [{**RELATION, "subj_end": 3}],
        "relation",
        "row 1: subj stands at 0 to 3; the sentence has words 0 to 2",
    ),
    ("a.json", [{**RELATION, "subj_end": 2}], "relation", "row 1: subject and object overlap"),
    ("a.json", [{**RELATION, "obj_start": "2"}], "relation", "obj stands at '2' to 2; expected two whole numbers"),
    ("a.json", [{**RELATION, "relation": None}], "relation", "row 1: relation is NoneType; expected a string"),
]


@pytest.mark.parametrize(("name", "content", "kind", "words"), FAULTS, ids=lambda value: str(value)[:40])
def test_a_fault_is_named_by_file_and_row(tmp_path, name, content, kind, words):
    from gpt_lightning.data.examples.prepare import _examples

    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as raised:
        _examples(str(tmp_path / name), None, ExamplesConfig(kind=kind))
    assert words in str(raised.value) and str(tmp_path / name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_unequal_files_of_pairs_are_refused(tmp_path):
    (tmp_path / "a").write_text("one\ntwo\n")
    (tmp_path / "b").write_text("eins\n")
    with pytest.raises(ValueError, match="a has 2 lines, .*b 1; expected as many in both"):
        values(tmp_path / "a", tmp_path / "b")


def test_entity_markers_stand_around_inclusive_spans():
    row = {**RELATION, "token": ["Bill", "Gates", "was", "born", "in", "Seattle"], "subj_end": 1}
    row |= {"obj_start": 5, "obj_end": 5, "obj_type": "STATE_OR_PROVINCE", "relation": "per:city_of_birth"}
    example = to_example(next(iter_rows(row)), ExamplesConfig(kind="relation"))
    assert example.turns[0].text == "@ * person * Bill Gates @ was born in # ^ state or province ^ Seattle #"
    assert example.label == "per:city_of_birth"


def iter_rows(row):
    from gpt_lightning.data.examples.read import Row

    yield Row("here", row)
