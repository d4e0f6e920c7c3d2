"""A sample of what the model writes, at every validation: into samples.txt and the loggers.

Numbers say how well it predicts, the sample what that means. It draws from its own random generator, so that turning
samples on or off changes nothing else.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from gpt_lightning.data.examples.encode import chat_prompt
from gpt_lightning.model.sampling import SamplingConfig, generate_tokens


class Samples(Callback):
    """Generate a text at every validation.

    Args:
        prompt: What the text starts from, and of a chat what the user says; nothing means the start of a document.
        max_new_tokens: Length of the sample in tokens; 0 turns samples off.
        temperature: Sampling temperature; 0 is greedy.
        path: The file to append to; the run's samples.txt when not given.
    """

    def __init__(self, prompt: str = "", max_new_tokens: int = 64, temperature: float = 0.8, path: str | None = None):
        self.prompt = prompt
        self.config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature)
        self.path = path

    def check(self, tokenizer: Any) -> None:
        """Raise ValueError for a prompt that the tokenizer of the corpus (None: it has none) cannot write."""
        if tokenizer is not None and self.config.max_new_tokens:
            try:
                tokenizer.encode(self.prompt)
            except ValueError as error:
                raise ValueError(f"samples.prompt: {error}") from None

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        datamodule = getattr(trainer, "datamodule", None)
        tokenizer = None if getattr(datamodule, "labels", ()) else getattr(datamodule, "tokenizer", None)
        if tokenizer is None or trainer.sanity_checking or trainer.state.fn != "fit" or not self.config.max_new_tokens:
            return
        # Every rank takes part: under FSDP each holds a piece of the weights.
        border = "\n" if tokenizer.chat_ids is not None and self.prompt else ""
        text = self.prompt + border + self._generate(pl_module.gpt, tokenizer)
        if trainer.is_global_zero:
            self._write(trainer, text, pl_module.tokens_seen)

    def _generate(self, gpt: Any, tokenizer: Any) -> str:
        prompt = tokenizer.encode(self.prompt) or [tokenizer.start_id]
        if tokenizer.chat_ids is not None and self.prompt:
            prompt = chat_prompt([{"role": "user", "content": self.prompt}], tokenizer, gpt.config.context_length)
        gpt.eval()  # Lightning has already gone back to training mode
        steps = generate_tokens(gpt, [prompt[-gpt.config.context_length :]], self.config, tokenizer.stop_ids)
        tokens = [step[0] for step in steps if step[0] is not None]
        gpt.train()
        return tokenizer.decode(tokens)

    def _write(self, trainer: Trainer, text: str, tokens: int) -> None:
        if self.path:
            with Path(self.path).open("a", encoding="utf-8") as file:
                file.write(f"=== after {tokens:,} tokens ===\n{text}\n\n")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("sample", f"```\n{text}\n```", tokens)
            elif isinstance(logger, WandbLogger):
                logger.log_text("sample", columns=["tokens", "text"], data=[[str(tokens), text]])
