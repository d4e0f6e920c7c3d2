"""A tuning folder measures once, survives a kill, and has one identity."""

import json

import pytest
import yaml
from matplotlib.figure import Figure

from gpt_lightning.tune.results import TuneFolder


def never():
    raise AssertionError("measured again")


def test_what_was_measured_is_not_measured_again(tmp_path):
    with TuneFolder(tmp_path / "lr", {"a": 1}) as folder:
        assert folder.measured("x", lambda: [1.5, None]) == [1.5, None]
    with TuneFolder(tmp_path / "lr", {"a": 1}) as folder:
        assert folder.measured("x", never) == [1.5, None] and "x" in folder


def test_a_line_cut_short_by_a_kill_is_measured_again(tmp_path):
    with TuneFolder(tmp_path / "lr", {}) as folder:
        folder.measured("x", lambda: 1)
        folder.measured("y", lambda: 2)
    file = tmp_path / "lr" / "measured.jsonl"
    file.write_text(file.read_text()[:-5])
    with TuneFolder(tmp_path / "lr", {}) as folder:
        assert folder.measured("x", never) == 1 and folder.measured("y", lambda: 3) == 3
    assert [json.loads(line)["key"] for line in file.read_text().splitlines()] == ["x", "y"]


def test_another_identity_is_refused_by_name_and_overwrite_starts_anew(tmp_path):
    with TuneFolder(tmp_path / "lr", {"seeds": 2, "tokens": 5}) as folder:
        folder.measured("x", lambda: 1)
    with pytest.raises(ValueError, match=r"seeds 2 \(now 3\)"):
        TuneFolder(tmp_path / "lr", {"seeds": 3, "tokens": 5})
    with TuneFolder(tmp_path / "lr", {"seeds": 3, "tokens": 5}, "overwrite") as folder:
        assert "x" not in folder


def test_a_kill_while_it_is_cleared_or_begun_leaves_a_folder_that_can_be_used(tmp_path, monkeypatch):
    import shutil

    with TuneFolder(tmp_path / "lr", {"a": 1}) as folder:
        folder.measured("x", lambda: 1)
        (folder.path / "trials").mkdir()
    killed = lambda path: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        TuneFolder(tmp_path / "lr", {"a": 2}, "overwrite")
    monkeypatch.undo()
    TuneFolder(tmp_path / "lr", {"a": 2}, "overwrite").close()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".identity.json.tmp").write_text("{")
    TuneFolder(tmp_path / "begun", {}).close()


def test_of_a_nested_stack_only_what_differs_is_named(tmp_path):
    with TuneFolder(tmp_path / "lr", {"stack": {"model": {"lr": 1, "wd": 2}}}) as folder:
        folder.measured("x", lambda: 1)
    with pytest.raises(ValueError, match=r"results for stack.model.lr 1 \(now 3\); add"):
        TuneFolder(tmp_path / "lr", {"stack": {"model": {"lr": 3, "wd": 2}}})


def test_a_folder_in_which_nothing_was_measured_is_free_for_what_is_asked_next(tmp_path):
    TuneFolder(tmp_path / "lr", {"flops": 1}).close()
    with TuneFolder(tmp_path / "lr", {"flops": 2}) as folder:
        folder.measured("x", lambda: 1)
    with pytest.raises(ValueError, match=r"holds results for flops 2 \(now 1\)"):
        TuneFolder(tmp_path / "lr", {"flops": 1})


def test_one_process_at_a_time(tmp_path):
    with TuneFolder(tmp_path / "lr", {}), pytest.raises(ValueError, match="in use"):
        TuneFolder(tmp_path / "lr", {})
    TuneFolder(tmp_path / "lr", {}).close()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for if_exists in ("resume", "overwrite"):
        with pytest.raises(ValueError, match="no tuning results"):
            TuneFolder(tmp_path, {}, if_exists)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_came_out_is_three_files(tmp_path):
    with TuneFolder(tmp_path / "lr", {}) as folder:
        folder.finish({"lr": 1e-3}, Figure(), {"model": {"optim": {"lr": 1e-3}}}, "found by x\nin 3 s")
    text = (tmp_path / "lr" / "tuned.yaml").read_text()
    assert text.startswith("# found by x\n# in 3 s\n") and yaml.safe_load(text) == {"model": {"optim": {"lr": 1e-3}}}
    result = json.loads((tmp_path / "lr" / "result.json").read_text())
    assert result == {"lr": 1e-3, "tuned": {"model.optim.lr": 1e-3}}
    assert (tmp_path / "lr" / "figure.png").read_bytes()[:4] == b"\x89PNG"
