"""Checks 1 and 2: what the device can do at most, and that what we run on it is right."""

import copy
import os
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

import gpt_lightning as gl
from gpt_lightning.checkpoint import read_checkpoint, write_checkpoint
from gpt_lightning.model.attention import band_block_mask, visible
from gpt_lightning.model.gpt import GPT
from gpt_lightning.model.loss import linear_cross_entropy
from gpt_lightning.model.readout import Readout
from gpt_lightning.terminal import quiet
from gpu_checks.bench import Bench, Row, row


def device_and_peak(bench: Bench) -> list[Row]:
    """Name, driver, versions; matrix products in bf16 at 8192 cubed and at the model's own shapes."""
    name = torch.cuda.get_device_name(bench.device) if bench.cuda else platform.processor() or platform.machine()
    rows = [row("device", name), row("torch", torch.__version__), row("CUDA of torch", torch.version.cuda or "none")]
    driver = Path("/proc/driver/nvidia/version")
    rows.append(row("driver", driver.read_text().splitlines()[0] if driver.exists() else "none"))
    T, D, F_, V = (256, 32, 128, 257) if bench.tiny else (65536, 768, 3072, 50257)
    side = 128 if bench.tiny else 8192
    padded = (V + 63) // 64 * 64
    shapes = {"cube": (side, side, side), "fc": (T, D, F_), f"readout, V {V}": (T // 8, D, V)}
    shapes[f"readout, V {padded}"] = (T // 8, D, padded)
    for what, (m, k, n) in shapes.items():
        a, b = torch.randn(m, k, device=bench.device), torch.randn(n, k, device=bench.device)
        seconds = bench.seconds(partial(F.linear, a.bfloat16(), b.bfloat16()))
        expected = "650 to 750 on H100, H200" if what == "cube" else ""
        rows.append(row(f"{what}: ({m} x {k}) x ({k} x {n})", 2 * m * k * n / seconds / 1e12, "TFLOP/s", expected))
    return rows


def correctness(bench: Bench) -> list[Row]:
    """Before speed: attention, loss, checkpoints and resume give what they must."""
    attention = [_flex_attention(bench, dtype) for dtype in (torch.bfloat16, torch.float32)]
    return [*attention, _chunked_loss(bench), _checkpoint(bench), _resume(bench)]


def _flex_attention(bench: Bench, dtype: torch.dtype) -> Row:
    """FlexAttention's band against the dense mask in float64, outputs and (on a GPU) gradients together."""
    B, H, T, K, band = (1, 2, 256, 16, 32) if bench.tiny else (2, 12, 2048, 64, 128)
    torch.manual_seed(0)
    inputs = [torch.randn(B, H, T, K, device=bench.device, dtype=torch.float64) for _ in range(4)]
    flex = torch.compile(flex_attention, dynamic=False) if bench.cuda else flex_attention
    mask = visible(T, T, band, None, bench.device)
    expected = _outputs(bench, partial(F.scaled_dot_product_attention, attn_mask=mask), inputs)
    rounded = [x.to(dtype) for x in inputs]
    found = _outputs(bench, partial(flex, block_mask=band_block_mask(T, band, bench.device)), rounded)
    error = max(_relative(a, b) for a, b in zip(found, expected, strict=True))
    limit = 1e-2 if dtype == torch.bfloat16 else 1e-5
    how = "" if bench.cuda else " (compiled, backward: needs CUDA)"
    return row(f"FlexAttention, {str(dtype)[6:]}{how}", error, "relative", f"below {limit}", error < limit)


def _outputs(bench: Bench, attention: Any, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs, and gradients where FlexAttention has them."""
    q, k, v = (x.clone().requires_grad_(bench.cuda) for x in inputs[:3])
    y = attention(q, k, v)
    return [y.detach(), *(torch.autograd.grad(y, (q, k, v), inputs[3]) if bench.cuda else ())]


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    return ((found.double() - expected).norm() / expected.norm()).item()


def _chunked_loss(bench: Bench) -> Row:
    """The loss in chunks against the plain one on whole logits, with the gradients, in float32."""
    n_tokens, D, V = (96, 32, 257) if bench.tiny else (4096, 768, 50257)
    torch.manual_seed(0)
    hidden = torch.randn(n_tokens, D, device=bench.device, requires_grad=True)
    weight = (torch.randn(V, D, device=bench.device) * D**-0.5).requires_grad_()
    targets = torch.randint(V, (n_tokens,), device=bench.device)
    found = linear_cross_entropy(hidden[None], Readout(weight), targets[None], chunk_tokens=n_tokens // 3)
    expected = F.cross_entropy(F.linear(hidden.double(), weight.double()), targets)
    a, b = (torch.autograd.grad(loss, (hidden, weight)) for loss in (found, expected))
    error = max(_relative(x, y.double()) for x, y in zip((found, *a), (expected, *b), strict=True))
    return row("loss in chunks against plain", error, "relative", "below 1e-05", error < 1e-5)


def _checkpoint(bench: Bench) -> Row:
    """CPU -> device -> file -> CPU changes no bit."""
    gpt = GPT(bench.config())
    expected = copy.deepcopy(gpt.state_dict())
    path = bench.folder / "checks" / "moved.ckpt"
    write_checkpoint({"state_dict": gpt.to(bench.device).state_dict()}, path)
    found = read_checkpoint(path)["state_dict"]
    same = all(torch.equal(found[name], value) for name, value in expected.items())
    return row("checkpoint CPU -> device -> CPU", "equal" if same else "differs", "", "equal", same)


def _resume(bench: Bench) -> Row:
    """A run that stops halfway and goes on ends with the weights and moments of one that does not, bit for bit."""
    corpus = bench.folder / "checks" / "words.txt"
    corpus.parent.mkdir(parents=True, exist_ok=True)
    corpus.write_text("\n\n".join(f"paragraph {i} of a text that is read in order" for i in range(2000)))
    options = {
        "data.corpus": str(corpus),
        "data.prepare.tokenizer": "bytes",
        "data.context_length": 64,
        "data.micro_batch_size": 4,
        "data.batch_tokens": 512,
        "model.gpt": {"n_layers": 2, "n_heads": 2, "d_model": 64, "dropout": 0.1},
        "model.schedule.name": "constant",
        "trainer.accelerator": "cpu" if not bench.cuda else "gpu",
        "trainer.devices": 1,
        "trainer.deterministic": "warn",
    }
    states = []
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for name, stops in {"whole": [4096], "parts": [2048, 4096]}.items():
        for i, tokens in enumerate(stops):
            where = {"run_dir": str(bench.folder / "checks" / name), "max_tokens": tokens}
            with quiet():
                gl.run([], {**options, **where, "if_exists": "resume" if i else "overwrite"})
        last = read_checkpoint(bench.folder / "checks" / name / "checkpoints" / "last.ckpt")
        moments = last["optimizer_states"][0]["state"].values()
        states.append([*last["state_dict"].values(), *(state["exp_avg"] for state in moments)])
    same = all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    return row("resume halfway", "equal" if same else "differs", "", "equal", same)
