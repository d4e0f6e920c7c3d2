"""Which runs a budget makes."""

import pytest

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.tune.ladder.plan import plan_ladder, sizes_of

GPT = GPTConfig(
    **{"vocab_size": 1024, "context_length": 128, "n_layers": 4, "n_heads": 20, "d_model": 160},
    **{"parametrization": "completep", "base_d_model": 48, "base_n_layers": 1},
)


def test_sizes_keep_the_width_of_heads_and_with_completep_the_proportions():
    sizes = sizes_of(GPT, None)
    assert {size.d_model // size.gpt.n_heads for size in sizes} == {8}
    assert all(size.n_layers == max(round(4 * size.d_model / 160), 4) for size in sizes) and sizes[-1].n_layers > 12
    flops = [size.flops for size in sizes]
    assert flops == sorted(flops) and sizes[-1].d_model >= 3 * 160
    mup = GPTConfig(n_layers=4, n_heads=4, d_model=64, parametrization="mup", base_d_model=16)
    assert {size.n_layers for size in sizes_of(mup, None)} == {4}


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5])
def test_the_ladder_costs_its_share_at_most_and_no_run_a_quarter(share):
    flops, batch = 2e13, 512
    plan = plan_ladder(sizes_of(GPT, None), flops, share, batch)
    assert 0.5 * share < sum(rung.flops for rung in plan) / flops < 1.02 * share
    assert max(rung.flops for rung in plan) <= flops / 4 * 1.01
    assert len({rung.key for rung in plan}) == len(plan) >= 7 and all(rung.tokens % batch == 0 for rung in plan)
    assert [rung.flops for rung in plan] == sorted(rung.flops for rung in plan)
    top = [rung for rung in plan if rung.flops > 0.5 * plan[-1].flops]
    assert max(r.size.n_params for r in top) > 3 * min(r.size.n_params for r in top), "sizes at equal compute"


def test_a_budget_that_makes_no_ladder_is_one_line():
    said = (
        r"0.3 of 1e\+10 FLOPs makes 0 runs, of 0 sizes; a law needs at least 7 runs and 3 sizes: raise --tune.flops to "
    )
    with pytest.raises(ValueError, match=said) as refused:
        plan_ladder(sizes_of(GPT, None), 1e10, 0.3, 512)
    enough = float(str(refused.value).split("--tune.flops to ")[1].split()[0])
    assert len(plan_ladder(sizes_of(GPT, None), enough, 0.3, 512)) >= 7
