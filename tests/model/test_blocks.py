"""One matrix over structures and blocks of a user's own: every promise of a model holds for all of them."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils.flop_counter import FlopCounterMode

import gpt_lightning.model.gpt
from gpt_lightning.model.facts import Facts, facts_of
from gpt_lightning.model.flops import count_parameters, flops_per_token
from gpt_lightning.model.gpt import GPT, Block, GPTConfig
from gpt_lightning.model.huggingface.folder import export_gpt
from gpt_lightning.model.own_block import block_spec, own_block
from gpt_lightning.model.parametrization import parametrization
from gpt_lightning.model.sampling import SamplingConfig, generate_tokens
from gpt_lightning.model.sharding import build_sharded
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.optimizer import build_optimizer
from gpt_lightning.tune.verify.verb import verify
from tests import blocks
from tests.blocks import ForgottenBlock, GatedBlock, GroupedBlock, ParallelBlock

CONFIG = GPTConfig(
    vocab_size=31,
    context_length=12,
    n_layers=3,
    n_heads=4,
    d_model=32,
    init_std=0.3,
    attention_pattern=("dense", "banded"),
    band_width=4,
)
MUP = replace(CONFIG, parametrization="mup", base_d_model=16, base_d_head=4)
OWN = {
    "own parallel": ParallelBlock,
    "own parallel, set": partial(ParallelBlock, scale=0.5),
    "own grouped": GroupedBlock,
    "own gated": GatedBlock,
}
MODERN = {"positions": "rotary", "norm": "rms", "qk_norm": True, "mlp": "relu2", "bias": False, "n_kv_heads": 2}
STRUCTURES: dict[str, dict] = {
    "gpt-3": {},
    "rotary": {"positions": "rotary"},
    "no positions": {"positions": "none"},
    "rms": {"norm": "rms"},
    "norm after": {"norm_place": "after"},
    "norm both": {"norm_place": "both", "norm": "rms"},
    "qk_norm": {"qk_norm": True},
    "gelu_erf": {"mlp": "gelu_erf"},
    "relu2": {"mlp": "relu2"},
    "swiglu": {"mlp": "swiglu"},
    "geglu": {"mlp": "geglu", "d_ff": 40},
    "two kv heads": {"n_kv_heads": 2},
    "one kv head": {"n_kv_heads": 1},
    "parallel": {"parallel": True},
    "softcap": {"logit_softcap": 3.0},
    "zero_init": {"zero_init": True},
    "value_residual": {"value_residual": True},
    "no bias": {"bias": False},
    "modern": MODERN,
    "modern, all": {**MODERN, "parallel": True, "value_residual": True, "norm_place": "both", "logit_softcap": 3.0},
}


class Case(NamedTuple):
    """A block, and what its config has instead of GPT-3's."""

    block: Callable
    structure: dict

    def config(self, base: GPTConfig) -> GPTConfig:
        return replace(base, **self.structure)


CASES = {name: Case(Block, structure) for name, structure in STRUCTURES.items()}
CASES |= {name: Case(block, {}) for name, block in OWN.items()}
TOKENS = torch.randint(0, 31, (2, 12), generator=torch.Generator().manual_seed(0))

over_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def build(case: Case, config: GPTConfig = CONFIG) -> GPT:
    torch.manual_seed(0)
    return GPT(case.config(config), case.block).double().eval()


def shaken(case: Case, config: GPTConfig = CONFIG) -> GPT:
    """The same with nothing left at 0 or 1, so that every part of it shows."""
    gpt = build(case, config)
    random = torch.Generator().manual_seed(1)
    for p in gpt.parameters():
        p.data += 0.1 * torch.randn(p.shape, dtype=p.dtype, generator=random)
    return gpt


@over_cases
def test_counts_without_a_model_are_those_of_the_model(case):
    gpt, counts = build(case), count_parameters(case.config(CONFIG), own_block(case.block))
    outside = ("wte", "wpe", "lm_head")
    embedding = sum(p.numel() for name, p in gpt.named_parameters() if name.startswith(outside))
    assert counts.total == sum(p.numel() for p in gpt.parameters())
    assert counts.embedding == embedding


@over_cases
@pytest.mark.parametrize("tie_embedding", [True, False])
def test_flops_are_the_products_that_torch_counts_and_the_attention_formula(case, tie_embedding):
    config = replace(case.config(CONFIG), tie_embedding=tie_embedding)
    gpt = GPT(config, case.block)
    with FlopCounterMode(display=False) as counter:
        gpt(TOKENS[:1]).sum().backward()
    products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    attention = flops_per_token(config) - flops_per_token(replace(config, band_width=1, attention_pattern=("banded",)))
    attention += 12.0 * config.d_model * config.n_layers  # of the key that a band of 1 sees
    assert flops_per_token(config, own_block(case.block)) == pytest.approx(products / 12 + attention, rel=1e-12)


@pytest.mark.parametrize("structure", [s for s in STRUCTURES if not {"parallel", "value_residual"} & {*STRUCTURES[s]}])
def test_a_copy_of_the_block_as_a_first_block_of_ones_own_is_the_same_model(structure):
    """README: copy `Block` and change it. Unchanged, it starts from the same weights and gives the same logits."""
    namespace = dict(vars(gpt_lightning.model.gpt))
    exec(inspect.getsource(Block).replace("class Block", "class Copied"), namespace)
    config = replace(CONFIG, **STRUCTURES[structure])
    torch.manual_seed(0)
    built_in = GPT(config)
    torch.manual_seed(0)
    copied = GPT(config, namespace["Copied"])
    assert type(copied.blocks[0]) is not Block and not isinstance(copied.blocks[0], Block)
    assert copied.facts() == built_in.facts()
    assert torch.equal(copied(TOKENS), built_in(TOKENS))


@over_cases
def test_unequal_prompts_in_a_batch_write_what_each_writes_alone(case):
    gpt, prompts = shaken(case), [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
    sampling = SamplingConfig(max_new_tokens=5, temperature=0.0)
    together = [list(row) for row in zip(*generate_tokens(gpt, prompts, sampling), strict=True)]
    alone = [[token for (token,) in generate_tokens(gpt, [prompt], sampling)] for prompt in prompts]
    assert together == alone


@over_cases
def test_with_a_cache_the_logits_are_those_without_it(case):
    gpt = shaken(case)
    cache = gpt.new_cache()
    stepwise = torch.cat([gpt(TOKENS[:, i : i + n], cache) for i, n in ((0, 5), *((i, 1) for i in range(5, 12)))], 1)
    torch.testing.assert_close(stepwise, gpt(TOKENS), atol=1e-12, rtol=0)


@over_cases
def test_greedy_text_is_the_argmax_of_the_full_run(case):
    gpt, prompt = shaken(case), TOKENS[:1, :4]
    steps = generate_tokens(gpt, [prompt[0].tolist()], SamplingConfig(max_new_tokens=6, temperature=0.0))
    written = [token for (token,) in steps]
    with torch.no_grad():
        for token in written:
            assert token == gpt(prompt)[0, -1].argmax()
            prompt = torch.cat([prompt, torch.tensor([[token]])], 1)
    assert len(written) == 6


def looks_ahead(case: Case) -> bool:
    gpt, changed = shaken(case), TOKENS.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 31
    before, after = gpt(TOKENS), gpt(changed)
    assert not torch.equal(before[:, 7:], after[:, 7:])
    return not torch.equal(before[:, :7], after[:, :7])


@over_cases
def test_no_token_sees_what_comes_after_it(case):
    assert not looks_ahead(case)
    assert looks_ahead(Case(blocks.AcausalBlock, {}))


@over_cases
@pytest.mark.parametrize("optim", [OptimConfig(), OptimConfig(name="muon")], ids=lambda optim: optim.name)
def test_every_parameter_has_facts_and_is_in_one_optimizer_group(case, optim):
    gpt = build(case)
    assert list(gpt.facts()) == [name for name, _ in gpt.named_parameters()]
    numbers = parametrization(CONFIG, optim.hidden_update).roles
    optimizer = build_optimizer(dict(gpt.named_parameters()), gpt.facts(), optim, numbers)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in gpt.parameters())
    inside = {fact.role for name, fact in gpt.facts().items() if name.startswith("blocks.")}
    assert inside <= {"hidden", "vector", "head_vector", "scalar"}
    for name, parameter in gpt.blocks.named_parameters():
        of_heads = (
            "scalar" if name.endswith("value_mix") else "head_vector" if "attn" in name and "norm" in name else None
        )
        expected = of_heads or ("hidden" if parameter.ndim == 2 else "vector")
        assert gpt.facts()[f"blocks.{name}"].role == expected


@over_cases
def test_muon_updates_each_part_as_if_it_were_alone(case):
    gpt, config = build(case), OptimConfig(name="muon", lr=0.1)
    numbers = parametrization(CONFIG, config.hidden_update).roles
    for p in gpt.parameters():
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(p.numel()))
    alone, facts = {}, {}
    for name, p in gpt.named_parameters():
        rows = gpt.facts()[name].parts or (len(p),)
        for i, (piece, grad) in enumerate(zip(p.detach().split(rows), p.grad.split(rows), strict=True)):
            alone[name, i] = nn.Parameter(piece.clone())
            alone[name, i].grad = grad.clone()
            facts[name, i] = replace(gpt.facts()[name], parts=())
    build_optimizer(dict(gpt.named_parameters()), gpt.facts(), config, numbers).step()
    build_optimizer(alone, facts, config, numbers).step()
    for name, p in gpt.named_parameters():
        expected = torch.cat([piece for (owner, _), piece in alone.items() if owner == name])
        torch.testing.assert_close(p.detach(), expected.detach(), atol=1e-12, rtol=0)


def test_fused_parts_are_declared_where_they_are():
    for case in (CASES["own grouped"], CASES["two kv heads"]):
        parts = {name: fact.parts for name, fact in build(case).facts().items() if fact.parts}
        assert parts == {f"blocks.{i}.attn.qkv.weight": (32, 16, 16) for i in range(3)}
    assert {fact.parts for fact in build(CASES["gpt-3"]).facts().values()} == {(), (32, 32, 32)}
    assert {fact.parts for fact in build(CASES["geglu"]).facts().values()} == {(), (32, 32, 32), (40, 40)}


@over_cases
def test_initial_weights_follow_the_facts(case):
    gpt = build(case, replace(MUP, d_model=128, base_d_model=32, n_heads=32))
    hidden = 0.3 / 2  # m = 4
    for name, p in gpt.named_parameters():
        fact = gpt.facts()[name]
        if fact.residual and gpt.config.zero_init:
            assert torch.all(p == 0), name
        elif fact.role == "hidden":
            joins = gpt.config.norm_place == "before" and name.endswith(("out.weight", "proj.weight"))
            std = hidden / 6**0.5 if joins else hidden
            assert p.std().item() == pytest.approx(std, rel=0.05), name
        elif name.endswith("shift"):
            assert torch.all(p == 0.25)
        elif name.endswith("gate"):
            assert torch.all(p == 0.5)
        elif name.endswith("value_mix"):
            assert p == 0.5
        elif fact.role in ("vector", "head_vector", "final_vector"):
            assert torch.all(p == float(name.endswith("weight"))), name


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "file"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("data_parallel",))
    torch.distributed.destroy_process_group()


class RandomBlock(GatedBlock):
    """Draws a value by itself."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        nn.init.normal_(self.gate)


@pytest.mark.parametrize("case", [*CASES.values(), Case(RandomBlock, {})], ids=[*CASES, "random"])
@pytest.mark.parametrize("tie_embedding", [True, False])
def test_a_sharded_model_starts_from_the_weights_of_one_process(case, tie_embedding, mesh):
    config, block = replace(case.config(CONFIG), tie_embedding=tie_embedding), case.block
    torch.manual_seed(0)
    whole = build_sharded(config, None, block)
    after = torch.rand(1)
    torch.manual_seed(0)
    sharded = build_sharded(config, mesh, block)
    assert torch.equal(after, torch.rand(1)), "torch's random numbers, and so dropout, would differ"
    found = dict(sharded.named_parameters())
    for name, p in whole.named_parameters():
        assert isinstance(found[name], DTensor) and torch.equal(found[name].full_tensor(), p), name
    assert [b.tolist() for b in sharded.buffers()] == [b.tolist() for b in whole.buffers()]
    torch.testing.assert_close(sharded(TOKENS), whole(TOKENS))


def test_what_nobody_initialised_is_named_sharded_or_not(mesh):
    for build_model in (lambda: GPT(CONFIG, ForgottenBlock), lambda: build_sharded(CONFIG, mesh, ForgottenBlock)):
        with pytest.raises(ValueError, match=r"nobody initialised blocks.0.shift"):
            build_model()
    assert not torch.are_deterministic_algorithms_enabled()


def test_facts_of_what_is_not_there_are_refused():
    class Misspelt(Block):
        def parameter_facts(self):
            return {"attn.porj.weight": Facts("hidden")}

    with pytest.raises(ValueError, match="Misspelt.parameter_facts speaks of attn.porj.weight"):
        GPT(CONFIG, Misspelt)


def test_the_outer_module_has_the_last_word():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = GatedBlock(CONFIG)

        def parameter_facts(self):
            return {"block.shift": Facts("vector", std=0, mean=7)}

    assert facts_of(Outer())["block.shift"].mean == 7


@pytest.mark.slow
@over_cases
def test_verify_passes_right_models(case):
    optim = OptimConfig(name="muon" if case.structure.get("n_kv_heads") or case.structure.get("mlp") else "adamw")
    assert verify(case.config(MUP), optim, case.block, seeds=1).failed == []


@pytest.mark.slow
def test_verify_passes_parts_of_unequal_size_under_muon():
    assert verify(MUP, OptimConfig(name="muon"), GroupedBlock, seeds=1).failed == []


@pytest.mark.slow
def test_verify_fails_a_wrong_block():
    failed = verify(MUP, OptimConfig(), blocks.WrongScaleBlock, seeds=1).failed
    assert "loss difference, width x2, x4" in failed


@pytest.mark.parametrize("block", OWN.values(), ids=OWN)
def test_export_refuses_a_block_of_ones_own_by_name(block, tmp_path):
    name = block_spec(block)["class_path"]
    with pytest.raises(ValueError, match=f"no Hugging Face family has the block {name}"):
        dense = replace(CONFIG, attention_pattern=("dense",))
        export_gpt(build(Case(block, {}), dense), tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_block_is_known_by_path_and_settings():
    assert block_spec(Block) is None and own_block(partial(Block)) is None
    assert block_spec(OWN["own parallel, set"]) == {
        "class_path": "tests.blocks.ParallelBlock",
        "init_args": {"scale": 0.5},
    }
    with pytest.raises(ValueError, match="tests.blocks.ParallelBlock: scale is a PosixPath; expected numbers, text"):
        block_spec(partial(ParallelBlock, scale=Path("x")))
