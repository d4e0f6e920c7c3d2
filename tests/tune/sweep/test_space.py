"""The search space: what YAML means, the points in it, and every mistake in one line."""

from pathlib import Path

import pytest

from gpt_lightning.run.stack import read_stack
from gpt_lightning.tune.sweep.read_space import read_space
from tests.fixtures import arguments, write_text

SPACE = {
    "model.optim.lr": {"low": 1e-3, "high": 1e-1, "log": True, "points": 3},
    "model.schedule.warmup_tokens": {"low": 0, "high": 100, "points": 2},
    "data.batch_tokens": [32, 64],
    "shape": {"as_it_is": {}, "wide": [{"model.gpt.d_model": 32}, {"model": {"gpt": {"n_heads": 4}}}]},
    "optimizer": {
        "adamw": {"model.optim.name": "adamw", "space": {"model.optim.betas": [[0.9, 0.95], [0.9, 0.99]]}},
        "muon": {"model": {"optim": {"name": "muon"}}, "space": {"model.optim.momentum": {"low": 0.8, "high": 0.95}}},
    },
}


@pytest.fixture
def stack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    return read_stack(arguments({"data.corpus": "text.txt"}), "tune sweep")[0]


def test_a_point_is_a_stack_and_what_belongs_to_a_choice_is_there_only_with_it(stack):
    space = read_space(stack, SPACE)
    names = [entry.name for entry in space.all()]
    assert names[-3:] == ["optimizer", "optimizer.adamw.model.optim.betas", "optimizer.muon.model.optim.momentum"]
    low, high = space.at([0.0] * space.n_dimensions), space.at([1.0] * space.n_dimensions)
    assert low["model.optim.lr"] == 1e-3 and high["model.optim.lr"] == 1e-1
    assert "optimizer.muon.model.optim.momentum" not in low and "optimizer.adamw.model.optim.betas" not in high
    made = space.stack(stack, high)
    found = [made[name] for name in ("data.batch_tokens", "model.gpt.d_model", "model.gpt.n_heads", "model.optim.name")]
    assert found == [64, 32, 4, "muon"] and made["model.optim.momentum"] == 0.95
    assert space.stack(stack, low)["model.optim.betas"] == (0.9, 0.95)
    middle = space.at([0.5] * space.n_dimensions)
    assert middle["model.optim.lr"] == pytest.approx(1e-2) and middle["model.schedule.warmup_tokens"] == 50


def test_shares_are_the_inverse_of_values_and_whole_numbers_stay_whole(stack):
    for entry in read_space(stack, SPACE).entries[:2]:
        for share in (0.0, 0.25, 0.8, 1.0):
            assert entry.share(entry.at(share)) == pytest.approx(share, abs=0.01)
    assert isinstance(entry.at(0.333), int)


def test_a_grid_has_every_combination_once(stack):
    grid = list(read_space(stack, {key: SPACE[key] for key in ("model.optim.lr", "data.batch_tokens")}).grid())
    assert len(grid) == 6 and len({tuple(point.values()) for point in grid}) == 6
    conditional = read_space(stack, {"optimizer": {"a": {"space": {"model.optim.betas": [[0.9, 0.95]]}}, "b": {}}})
    assert [len(point) for point in conditional.grid()] == [2, 1]
    with pytest.raises(ValueError, match="model.optim.eps: a grid needs the number of its `points`"):
        list(read_space(stack, {"model.optim.eps": {"low": 1e-9, "high": 1e-6}}).grid())


def test_the_stack_as_it_is_is_a_point_where_the_space_holds_it(stack):
    point = read_space(stack, SPACE).of(stack)
    assert point is not None and point["model.optim.lr"] == 0.01 and point["shape"] == "as_it_is"
    assert read_space(stack, SPACE).stack(stack, point).flat() == stack.flat()
    assert read_space(stack, {"model.optim.lr": {"low": 0.1, "high": 1.0}}).of(stack) is None
    assert read_space(stack, {"data.batch_tokens": [32]}).of(stack) is None


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "tune.space is empty; give settings"),
        ({"model.optim.lr": 3}, "tune.space model.optim.lr: is 3; expected a range"),
        ({"model.optim.lr": {"low": 1e-3}}, "tune.space model.optim.lr: from 0.001 to None; expected two numbers"),
        ({"model.optim.lr": {"low": 1e-2, "high": 1e-3}}, "from 0.01 to 0.001; expected two numbers, the lower first"),
        ({"model.optim.lr": {"low": 0, "high": 1, "log": True}}, "from 0 on a log scale; expected a number above 0"),
        ({"model.optim.lr": {"low": 1, "high": 2, "step": 1}}, "has step; expected a range"),
        ({"model.optim.lr": {"low": 1, "high": 2, "points": 0}}, "has points 0; expected a whole number"),
        ({"model.optim.lr": {"low": -1, "high": 2}}, "tune.space model.optim.lr: lr -1"),
        ({"model.optim.lrr": [1, 2]}, "tune.space model.optim.lrr: "),
        ({"data.batch_tokens": []}, "tune.space data.batch_tokens: expected a list of values, each once"),
        ({"data.batch_tokens": [32, 32]}, "expected a list of values, each once"),
        ({"data.batch_tokens": [33]}, "tune.space data.batch_tokens: batch_tokens is 33; expected a multiple"),
        ({"shape": {"a": "nowhere.yaml"}}, "tune.space shape: no file 'nowhere.yaml'"),
        ({"shape": {"a": {"modle": {}}}}, "tune.space shape: modle is no setting of a run"),
        ({"model": {"a": {}}}, "tune.space model: has overlays by name, and is itself a setting"),
        ({"shape": {"a": {"space": {"model.optim.lr": 1}}}}, "tune.space shape: within, shape.a.model.optim.lr: is 1"),
        ({"model.gpt.context_length": [8, 16]}, "model.gpt.context_length follows from data.context_length"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_entry(stack, space, words):
    with pytest.raises(ValueError) as error:
        read_space(stack, space)
    assert words in str(error.value), error.value
    assert not Path("runs").exists()
