"""What tests of parity with transformers share: tiny random models in which every weight matters."""

import torch
from torch import nn

from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.huggingface.folder import import_gpt

TEXT = "the cat sat on the mat, naïvely; 東京タワー 👩‍👩‍👧 it's 1999\n\n  def f(x):\n    return x " * 20
VOCAB, CONTEXT = 300, 48


def shaken(model):
    """With biases and norms that matter."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
    return model.eval()


def our_gpt(**settings) -> GPT:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "context_length": CONTEXT, "n_layers": 3, "n_heads": 4, "d_model": 32}
    return shaken(GPT(GPTConfig(**{**sizes, "init_std": 0.3, **settings})))


def imported(folder) -> GPT:
    config, state = import_gpt(folder)
    gpt = GPT(config)
    gpt.load_state_dict(state)
    return gpt.eval()


@torch.no_grad()
def assert_same_logits(ours: GPT, theirs: nn.Module, tolerance: float = 1e-5) -> None:
    tokens = torch.randint(0, VOCAB, (3, CONTEXT), generator=torch.Generator().manual_seed(1))
    a, b = ours(tokens), theirs(tokens)
    assert a.abs().max() > 1  # so that 1e-5 means something
    torch.testing.assert_close(a, getattr(b, "logits", b), atol=tolerance, rtol=0)
