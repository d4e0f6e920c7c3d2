"""Every law gives what its formula gives on a calculator, says where it was fitted, and centres are geometric."""

import pytest

from gpt_lightning.model.gpt3 import GPT3_ROWS
from gpt_lightning.tune.suggest.advice import centre, round_batch, trusted
from gpt_lightning.tune.suggest.laws import LAWS, Case, Range, compute_optimal, gpt3_row

BY_NAME = {law.name: law for law in LAWS}
MIDDLE = Case(1e8, 2e9)  # C = 6 N D = 1.2e18

# By hand with base-10 logarithms (lg N = 8, lg D = 9.30103, lg C = 18.07918), from the formulas at the right.
EXPECTED = {
    "Step Law": (2.53670e-3, 118_663),  # 1.79 N^-0.713 D^0.307; 0.58 D^0.571
    "DeepSeek LLM": (1.71387e-3, 239_377),  # 0.3118 C^-0.125; 0.292 C^0.3271
    "Kaplan 2020": (6.69315e-4, None),  # 0.003239 - 0.0001395 x 18.42068
    "Porian 2024": (4.82213e-3, 311_292),  # 0.0047 x 1.08^(1/3); 160 x 2048 / 1.08^(2/3)
    "Power Lines": (None, 228_742),  # 0.0306 x 2048 x D^0.383
}


@pytest.mark.parametrize("name", EXPECTED)
def test_learning_rate_and_batch(name):
    law, (lr, batch_tokens) = BY_NAME[name], EXPECTED[name]
    assert (law.lr and law.lr(MIDDLE)) == (lr and pytest.approx(lr, rel=1e-4))
    assert (law.batch_tokens and law.batch_tokens(MIDDLE)) == (batch_tokens and pytest.approx(batch_tokens, rel=1e-4))


def test_weight_decay_of_the_timescale():
    """B / (lr D tau) with tau = 1.084 x 20^-0.527 = 0.22355: 262144 / (0.002 x 2e9 x 0.22355) = 0.29316."""
    decay = BY_NAME["Power Lines"].weight_decay
    assert decay(MIDDLE, 0.002, 262_144) == pytest.approx(0.29316, rel=1e-3)
    assert decay(MIDDLE, 0.001, 262_144) == pytest.approx(2 * decay(MIDDLE, 0.002, 262_144))


@pytest.mark.parametrize(("n_flops", "n_params", "n_tokens"), [(1e18, 8.0e7, 2.07e9), (1e20, 8.5e8, 1.95e10)])
def test_compute_optimal_size(n_flops, n_params, n_tokens):
    size = compute_optimal(n_flops)
    assert size == (pytest.approx(n_params, rel=0.01), pytest.approx(n_tokens, rel=0.01))
    assert 6 * size[0] * size[1] == pytest.approx(n_flops)


def test_compute_optimal_is_the_best_split_of_the_fitted_loss():
    def loss(n_params: float) -> float:
        return 1.8172 + 482.01 / n_params**0.3478 + 2085.43 / (1e19 / 6 / n_params) ** 0.3658

    best = compute_optimal(1e19)[0]
    assert loss(best) < min(loss(best * 1.02), loss(best / 1.02))


def test_kaplan_says_nothing_where_its_line_is_below_zero():
    assert BY_NAME["Kaplan 2020"].lr(Case(1.3e10, 1e12)) is None


def test_gpt3_rows_are_found_by_size_and_not_interpolated():
    for row in GPT3_ROWS:
        assert gpt3_row(row.n_params_non_embedding * 1.09) == row and gpt3_row(row.n_params_non_embedding / 1.09) == row
    assert gpt3_row(5e8) is None and gpt3_row(1.8e6) is None


def test_a_range_holds_to_its_rounded_edges_and_an_unknown_one_neither_does_nor_does_not():
    fitted = Range(n_params=(1e8, 1e9), n_tokens=(1e9, 1e10))
    assert fitted.holds(Case(1e8, 1e10)) and fitted.holds(Case(0.97e8, 1.03e10))
    assert fitted.holds(Case(0.9e8, 1e9)) is False and fitted.holds(Case(1e8, 2e10)) is False
    assert Range().holds(MIDDLE) is None and str(Range()) == "not stated"
    assert str(Range(n_flops=(1e17, 2e19))) == "C 1e17 to 2e19" and "N 8.5e7" in str(Range(n_params=(8.5e7, 1e8)))


def test_only_laws_that_were_fitted_there_are_trusted_and_all_where_none_was():
    def lr_of(case):
        return trusted(lambda law: law.lr(case) if law.lr else None, case)

    inside, fits = lr_of(Case(1e8, 2e9))
    assert fits and [name for name, _ in inside] == ["DeepSeek LLM", "Porian 2024"]
    everywhere, fits = lr_of(Case(1e6, 1e6))
    assert not fits and [name for name, _ in everywhere] == ["Step Law", "DeepSeek LLM", "Kaplan 2020", "Porian 2024"]


def test_the_centre_is_geometric():
    found = centre([("a", 1e-3), ("b", 1e-2), ("c", 1e-4)])
    assert found.value == pytest.approx(1e-3) and found.spread == pytest.approx(100) and found.laws == ("a", "b", "c")


@pytest.mark.parametrize(
    ("wanted", "rounded"),
    [(8247, (8192, 8)), (2164, (2048, 8)), (1600, (2048, 8)), (1300, (1024, 4)), (10, (256, 1)), (5200, (6144, 8))],
)
def test_a_batch_is_a_whole_number_of_micro_batches(wanted, rounded):
    assert round_batch(wanted, 8, 256, 1) == rounded


def test_every_law_names_its_source():
    assert len({law.name for law in LAWS}) == len(LAWS)
    for law in LAWS:
        assert law.source.startswith("arXiv ") and any((law.lr, law.batch_tokens, law.weight_decay, law.size))
