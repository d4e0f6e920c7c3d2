"""GPTModule: the model as Lightning trains it. Steps, loss, clipping, optimizer; nothing else.

What it adds to the GPT: the tokens seen, which every schedule counts in; gradients of the mean over all targets of a
step, however they fall into micro-steps and ranks; the gradient norm, which Lightning throws away; and updates that are
left out when a gradient is not finite. What is measured and shown lives in callbacks/.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from gpt_lightning.checkpoint import check_same_model, gpt_config_to_dict, load_gpt_weights
from gpt_lightning.data.batches import micro_step_tokens
from gpt_lightning.model.cross_entropy import IGNORED
from gpt_lightning.model.facts import Facts
from gpt_lightning.model.flops import count_parameters
from gpt_lightning.model.freezing import set_trainable, train_new_rows
from gpt_lightning.model.gpt import GPT, Block, GPTConfig
from gpt_lightning.model.loss import CrossEntropy, Loss, MicroStep, token_nats
from gpt_lightning.model.own_block import block_spec, own_block
from gpt_lightning.model.own_loss import check_loss, load_loss
from gpt_lightning.model.parametrization import parametrization
from gpt_lightning.model.sharding import build_sharded
from gpt_lightning.model.step_mean import StepMean
from gpt_lightning.model.trainable import TrainableConfig
from gpt_lightning.optim.config import OptimConfig, with_decay_as_number
from gpt_lightning.optim.groups import gradient_norm, number_by_model
from gpt_lightning.optim.optimizer import TokenSchedule, build_optimizer
from gpt_lightning.optim.schedules import ScheduleConfig, lr_multiplier
from gpt_lightning.scores import Scores, TextBytes, labelled

Batch = tuple[Tensor, ...]  # tokens, targets and, with a document mask, positions: (B, T) int64 each


class GPTModule(LightningModule):
    """A GPT with its loss, optimizer and schedule, for batches of (tokens, targets) or (tokens, targets, positions).

    Args:
        gpt: The architecture; vocab_size and context_length come from the data.
        block: Makes a layer from the architecture: your own class, by import path, with its settings.
        loss: The training loss; val/loss is the cross entropy whatever is trained on.
        optim: The optimizer.
        schedule: The learning rate over the run, in tokens.
        max_tokens: The horizon that the schedule refers to, in tokens; comes from the run's max_tokens.
        compile: Compile each block in place; a minute at the start, then faster steps.
        init_from: A run folder or a checkpoint whose weights to start from, with fresh optimizer and counters.
        trainable: What of the model is trained.
    """

    loss: Loss

    def __init__(
        self,
        gpt: GPTConfig = GPTConfig(),  # noqa: B008 (frozen, and its values are the defaults that --help shows)
        block: Callable[[GPTConfig], nn.Module] = Block,
        loss: Loss = CrossEntropy(),  # noqa: B008 (it has no state)
        optim: OptimConfig = OptimConfig(),  # noqa: B008
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        max_tokens: int = 300_000_000,
        compile: bool = False,
        init_from: str | None = None,
        trainable: TrainableConfig = TrainableConfig(),  # noqa: B008
    ):
        super().__init__()
        self.gpt_config, self.optim_config = gpt, optim
        # No submodule: its buffers are no part of the model, whose weights are read without it or with another one.
        object.__setattr__(self, "loss", check_loss(loss))
        self.block, self.block_spec, self.own_block = block, block_spec(block), own_block(block)
        self.schedule, self.max_tokens = schedule, max_tokens
        self.compile_blocks, self.init_from, self.trainable = compile, init_from, trainable
        self.gpt: GPT | None = None  # built in configure_model, once the strategy is known
        self.tokens_seen = self._tokens_before_step = 0
        self.step = StepMean()
        self.grad_norm: Tensor | None = None  # of the last step, before clipping
        self.skipped_steps: Tensor | None = None  # in a row, for gradients that were not finite
        self.text_bytes = TextBytes(None)  # of targets, once the data are known
        self.scores = Scores(gpt.n_labels)

    def configure_model(self) -> None:
        if self.gpt is not None:
            return
        self.gpt = build_sharded(self.gpt_config, self._device_mesh, self.block)
        n_known_ids = None
        if self.init_from and not self.trainer.ckpt_path:
            n_known_ids = load_gpt_weights(self.gpt, self.init_from, getattr(self._data, "tokenizer", None))
        set_trainable(self.gpt, self.trainable, n_known_ids)
        if self.compile_blocks:
            self.gpt.compile_blocks()

    def setup(self, stage: str) -> None:
        self.text_bytes = TextBytes(getattr(self._data, "token_bytes", None))
        self.scores.set_dtype(self.device)
        self.scores.negative = getattr(self._data, "negative", None)

    def on_fit_start(self) -> None:
        tokenizer = getattr(self._data, "tokenizer", None)
        self.loss.check_run(self.gpt_config, tokenizer and tokenizer.sha256)
        self.loss.to(self.device)

    def forward(self, tokens: Tensor) -> Float[Tensor, "batch time vocab"]:
        return self._net(tokens)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        tokens, targets, *positions = batch
        hidden = self._net.hidden_states(tokens, None, *positions)
        if self.step.begins:
            self._tokens_before_step = self.tokens_seen
        self.tokens_seen += tokens.numel() * self.trainer.world_size
        progress = min(self._tokens_before_step / self.max_tokens, 1.0)
        loss, count = self.loss(MicroStep(hidden, self._net.readout, tokens, targets, progress, *positions))
        return self.step.add(loss, count, self.text_bytes(targets), targets.numel())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        (hidden, nats), targets = self._hidden_and_nats(batch), batch[1]
        self.scores.update(nats, targets, self.text_bytes(targets))
        if self.gpt_config.n_labels:
            _, labels, logits = labelled(self._net, hidden, targets)
            self.scores.update_labels(logits.argmax(-1), labels)

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Mean loss of each sequence in nats per token, (B,); NaN for one that is all padding.

        Where targets are labels, of each example its row in the batch, its label, and the probabilities of all labels.
        """
        hidden, nats = self._hidden_and_nats(batch)
        if self.gpt_config.n_labels:
            rows, labels, logits = labelled(self._net, hidden, batch[1])
            return rows, labels, logits.float().softmax(-1)
        return nats.sum(1) / (batch[1] != IGNORED).sum(1)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        batch_tokens = getattr(self._data, "batch_tokens", None)
        n_params = count_parameters(self.gpt_config, self.own_block).non_embedding
        config = with_decay_as_number(self.optim_config, batch_tokens, self.max_tokens, n_params)
        numbers = parametrization(self.gpt_config, config.hidden_update).roles
        parameters = {name: p for name, p in self._net.named_parameters() if p.requires_grad}
        optimizer = build_optimizer(parameters, self._trained_facts(), config, numbers)
        # The middle of a step's tokens: never a learning rate of 0, and the same area under the curve for any batch.
        data, n_ranks = self._data, self.trainer.world_size
        micro_step = micro_step_tokens(data.micro_batch_size, data.context_length, n_ranks) if data else 0

        def multiplier(step: int) -> float:
            batch = micro_step * self.trainer.accumulate_grad_batches  # which a batch ramp changes
            batch = min(batch, max(self.max_tokens - self.tokens_seen, 0))  # the last step may go past the horizon
            return lr_multiplier(self.schedule, self.tokens_seen + batch / 2, self.max_tokens)

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": TokenSchedule(optimizer, multiplier), "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Turn the gradient into that of the mean over the step's targets, clip it by `gradient_norm`, keep the norm.

        One multiplication does both, without a sync. An update whose norm is not finite is left out: the step takes
        `found_inf` from GradScaler's protocol, and where it is 1, weights and moments stay as they are. Lightning's own
        clipping forgets the norm.
        """
        norm = gradient_norm(optimizer.param_groups)
        to_mean = self.step.finish(self.trainer.accumulate_grad_batches, self.trainer.world_size).to(norm.dtype)
        norm = norm * to_mean
        clip = torch.clamp(gradient_clip_val / (norm + 1e-6), max=1.0) if gradient_clip_val else 1.0
        torch._foreach_mul_([p.grad for p in self._net.parameters() if p.grad is not None], to_mean * clip)
        skipped = (~torch.isfinite(norm)).to(torch.float32)
        setattr(getattr(optimizer, "optimizer", optimizer), "found_inf", skipped)  # noqa: B010 (not in torch's types)
        self.grad_norm = norm
        self.skipped_steps = (skipped if self.skipped_steps is None else self.skipped_steps + 1) * skipped

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gpt_config"] = gpt_config_to_dict(self.gpt_config)
        if self.block_spec is not None:
            checkpoint["block"] = self.block_spec
        checkpoint["loss"] = self.loss.state_dict()
        checkpoint["tokens_seen"] = self.tokens_seen
        checkpoint["n_known_ids"] = self._net.n_known_ids
        checkpoint["optimizer"] = self.optim_config.hidden_update
        if self._device_mesh is None and "optimizer_states" in checkpoint:
            facts = self._trained_facts()
            checkpoint["optimizer_states"] = [number_by_model(s, facts) for s in checkpoint["optimizer_states"]]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_same_model(checkpoint, self.gpt_config, self.block)
        if self.trainer.state.fn == "fit" and "optimizer_states" not in checkpoint:
            raise ValueError("the checkpoint holds weights alone; start a new run from it with --model.init_from")
        trained_by, here = checkpoint.get("optimizer"), self.optim_config.hidden_update
        if self.trainer.state.fn == "fit" and trained_by not in (None, here):
            raise ValueError(
                f"the checkpoint's hidden matrices were updated by {trained_by}, here by {here} (model.optim); resume "
                "with the same optimizer, or start a new run from the weights with --model.init_from"
            )
        if self.trainer.state.fn == "fit":
            load_loss(self.loss, checkpoint.get("loss", {}))
        self.tokens_seen = checkpoint["tokens_seen"]
        if self.gpt is not None and checkpoint.get("n_known_ids") is not None:
            train_new_rows(self.gpt, checkpoint["n_known_ids"])

    @property
    def lr(self) -> float:
        """The peak learning rate, where Lightning's Tuner looks for it; setting it keeps the groups' ratios."""
        return self.optim_config.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.optim_config = replace(self.optim_config, lr=value)
        if self._trainer is None:
            return
        for config in self.trainer.lr_scheduler_configs:  # or a LambdaLR would go on from the old one
            config.scheduler.base_lrs = [value] * len(config.scheduler.optimizer.param_groups)

    @property
    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule", None)

    @property
    def _net(self) -> GPT:
        assert self.gpt is not None, "configure_model has not run"
        return self.gpt

    def _hidden_and_nats(self, batch: Batch) -> tuple[Tensor, Float[Tensor, "batch time"]]:
        hidden = self._net.hidden_states(batch[0], None, *batch[2:])
        return hidden, token_nats(hidden, self._net.readout, batch[1], self.loss.chunk_tokens)

    def _trained_facts(self) -> dict[str, Facts]:
        trained = {name for name, p in self._net.named_parameters() if p.requires_grad}
        return {name: facts for name, facts in self._net.facts().items() if name in trained}

    def _log_scores(self, split: str) -> None:
        scores = {f"{split}/{name}": value for name, value in self.scores.compute().items()}
        # Loggers get them from callbacks/metrics.py. They are of all ranks already; without sync_dist Lightning warns.
        self.log_dict(scores, logger=False, sync_dist=True)
