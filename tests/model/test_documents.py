"""A row of several documents, with positions: every document as if it stood alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask

from gpt_lightning.data.batches import document_positions
from gpt_lightning.model import attention
from gpt_lightning.model.cross_entropy import IGNORED
from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.loss import targets_ahead
from gpt_lightning.model.rotary import BASE, Rotary

EOT, CONTEXT = 0, 48
CONFIG = GPTConfig(
    vocab_size=31, context_length=CONTEXT, n_layers=3, n_heads=4, d_model=32, init_std=0.3, attention_pattern=("dense",)
)
STRUCTURES = {
    "learned": {},
    "rotary": {"positions": "rotary"},
    "none": {"positions": "none"},
    "banded": {"attention_pattern": ("dense", "banded"), "band_width": 5},
    "banded, rotary": {"attention_pattern": ("banded",), "band_width": 3, "positions": "rotary"},
    "one key head": {"positions": "rotary", "n_kv_heads": 1, "qk_norm": True, "norm": "rms"},
    "parallel, values of the first layer": {"parallel": True, "value_residual": True, "positions": "none"},
    "gated, normed after": {"mlp": "swiglu", "norm_place": "after", "positions": "rotary", "logit_softcap": 20.0},
}


def exact_model(structure):
    """In float64 throughout, rotary tables too: those in float32 know an angle to seven digits."""
    torch.manual_seed(0)
    gpt = GPT(replace(CONFIG, **STRUCTURES[structure])).double().eval()
    for module in gpt.modules():
        if isinstance(module, Rotary):
            half = module.cos.shape[-1]
            rates = BASE ** -(torch.arange(half, dtype=torch.float64) / half)
            angles = torch.arange(CONTEXT, dtype=torch.float64)[:, None, None] * rates
            torch.testing.assert_close(module.cos, angles.cos(), rtol=0, atol=1e-6)
            module.cos, module.sin = angles.cos(), angles.sin()
    return gpt


def documents(row):
    """First token and end of each document of a row, by a loop."""
    ends = [t + 1 for t, token in enumerate(row) if token == EOT]
    ends = ends if ends and ends[-1] == len(row) else [*ends, len(row)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def rows_of_documents():
    """Rows with separators at both ends, side by side, many and none."""
    tokens = torch.randint(1, 31, (6, CONTEXT), generator=torch.Generator().manual_seed(0))
    tokens[0, [0, 7, 8, 9, 30, CONTEXT - 1]] = EOT
    tokens[1, CONTEXT // 2] = EOT
    tokens[2, ::3] = EOT
    tokens[4] = EOT
    tokens[5, : CONTEXT - 4] = tokens[3, 4:]  # what stands elsewhere in another row
    tokens[5, 9] = EOT
    return tokens


@pytest.mark.parametrize("structure", STRUCTURES)
def test_hidden_states_and_logits_are_those_of_every_document_alone(structure):
    gpt, tokens = exact_model(structure), rows_of_documents()
    positions = torch.from_numpy(document_positions(tokens.numpy(), EOT))
    with torch.no_grad():
        hidden, unmasked = gpt.hidden_states(tokens, None, positions), gpt.hidden_states(tokens)
        logits = gpt.logits(hidden)
        for i, row in enumerate(tokens.tolist()):
            for begin, end in documents(row):
                alone = gpt.hidden_states(tokens[i : i + 1, begin:end])[0]
                torch.testing.assert_close(hidden[i, begin:end], alone, rtol=0, atol=1e-10)
                torch.testing.assert_close(logits[i, begin:end], gpt.logits(alone), rtol=0, atol=1e-10)
                if begin and end - begin > 2:
                    assert (unmasked[i, begin:end] - alone).abs().max() > 1e-3, "without positions it is another text"
    torch.testing.assert_close(hidden[3], unmasked[3], rtol=0, atol=1e-10)  # a row of one document


@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradients_are_those_of_every_document_alone(structure):
    gpt, tokens = exact_model(structure), rows_of_documents()
    weights = torch.randn(*tokens.shape, 32, dtype=torch.float64)
    (
        gpt.hidden_states(tokens, None, torch.from_numpy(document_positions(tokens.numpy(), EOT))) * weights
    ).sum().backward()
    found = {name: p.grad.clone() for name, p in gpt.named_parameters() if p.grad is not None}
    gpt.zero_grad()
    for i, row in enumerate(tokens.tolist()):
        for begin, end in documents(row):
            (gpt.hidden_states(tokens[i : i + 1, begin:end])[0] * weights[i, begin:end]).sum().backward()
    assert found
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, gpt.get_parameter(name).grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("band_width", [None, 5])
def test_the_mask_for_flex_attention_lets_the_same_tokens_see_each_other(band_width, monkeypatch):
    def kept(sees, *_, **__):  # torch's own counts the arguments of `sees`, which the tests' type checks hide
        mask = object.__new__(BlockMask)
        mask.mask_mod = sees
        return mask

    monkeypatch.setattr(attention, "create_block_mask", kept)
    tokens = rows_of_documents()
    first = torch.arange(CONTEXT) - torch.from_numpy(document_positions(tokens.numpy(), EOT))
    sees = attention.document_block_mask(first, band_width).mask_mod
    row, query, key = (torch.arange(n) for n in (len(tokens), CONTEXT, CONTEXT))
    found = sees(row[:, None, None], torch.tensor(0), query[None, :, None], key[None, None, :])
    assert torch.equal(found, attention.visible(CONTEXT, CONTEXT, band_width, first, torch.device("cpu"))[:, 0])


def test_targets_further_ahead_end_with_their_document():
    tokens = rows_of_documents()
    targets = tokens.roll(-1, 1)
    found = targets_ahead(targets, 3, torch.from_numpy(document_positions(tokens.numpy(), EOT)))
    assert torch.equal(found[..., 0], targets), "the next token counts, also where it begins a document"
    expected = torch.full((*targets.shape, 3), IGNORED)
    for i, row in enumerate(tokens.tolist()):
        for begin, end in documents(row):
            for t in range(begin, end):
                for k in range(min(3, end - t)):
                    expected[i, t, k] = targets[i, t + k]
    assert torch.equal(found, expected)
    assert (found != targets_ahead(targets, 3)).any()


def test_positions_of_one_document_give_the_row_itself_in_float32():
    torch.manual_seed(0)
    gpt, tokens = GPT(CONFIG).eval(), rows_of_documents()
    positions = torch.from_numpy(document_positions(tokens.numpy(), 99))
    assert np.array_equal(positions[0], np.arange(CONTEXT))
    torch.testing.assert_close(gpt.hidden_states(tokens, None, positions), gpt.hidden_states(tokens))
