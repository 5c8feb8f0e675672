"""What is asked of a model to find its quality, and whether it is asked at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minivllm.config import EngineConfig, require

if TYPE_CHECKING:
    from experiments.points import RunSettings

# The shortest that has a next token.
_SHORTEST = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityConfig:
    """Group `quality`.

    Args:
        enabled: true, false, or null: where a lossy part was chosen, and the weights are a checkpoint's. Never with
            acceptance that is made up (`speculation=synthetic`), nor in a simulation.
        text: `heldout`, or a .jsonl file with lines {"path", "text"}.
        num_windows: stretches of text of which every token is scored; 0 leaves this part out, and so with the others.
        window_tokens: length of each, the model's first token included, which is given and not scored.
        num_prompts: beginnings that are gone on with greedily, and compared with how the unquantized model goes on.
        prompt_tokens: length of each, the model's first token included.
        output_tokens: how far each is gone on with.
        num_task_items: identifiers to complete (`identifiers`).
        task_context_tokens: what stands before each, the model's first token included.
    """

    enabled: bool | None = None
    text: str = "heldout"
    num_windows: int = 32
    window_tokens: int = 256
    num_prompts: int = 16
    prompt_tokens: int = 128
    output_tokens: int = 64
    num_task_items: int = 128
    task_context_tokens: int = 192

    def __post_init__(self) -> None:
        require(
            self.enabled is None or isinstance(self.enabled, bool),
            "quality.enabled",
            self.enabled,
            "null, true or false",
        )
        require(isinstance(self.text, str) and bool(self.text), "quality.text", self.text, "heldout or a .jsonl file")
        for key in ("num_windows", "num_prompts", "num_task_items"):
            self._require_count(key, 0)
        for key in ("window_tokens", "prompt_tokens", "task_context_tokens"):
            self._require_count(key, _SHORTEST)
        self._require_count("output_tokens", 1)
        nothing = not (self.num_windows or self.num_prompts or self.num_task_items)
        if self.enabled and nothing:
            raise ValueError("quality.num_windows=0: must be 1 or more where there are no prompts and no task items")

    def _require_count(self, key: str, least: int) -> None:
        value = getattr(self, key)
        valid = isinstance(value, int) and not isinstance(value, bool) and value >= least
        require(valid, f"quality.{key}", value, f"a whole number, {least} or more")

    def check_model(self, engine: EngineConfig) -> None:
        """Raise the one-line ValueError of quality that was asked for where there is none."""
        if self.enabled and engine.simulation is not None:
            raise ValueError(
                "quality.enabled=True: a simulation says nothing that could have quality: choose quality=auto, or "
                "another execution"
            )
        if self.enabled and engine.model.weights == "random":
            raise ValueError(
                "quality.enabled=True: random weights have no quality: choose a model with model.weights=checkpoint, "
                "or quality=auto"
            )

    def is_measured(self, engine: EngineConfig) -> bool:
        """Whether points of this engine have quality; what makes up acceptance says nothing that could have any."""
        if not engine.speculation.keeps_text or engine.simulation is not None:
            return False
        if self.enabled is not None:
            return self.enabled
        return bool(engine.lossy_parts) and engine.model.weights == "checkpoint"


def wants_quality(settings: RunSettings) -> bool:
    """Whether this run measures it: it is deterministic, so one repeat does for all."""
    return settings.repeat == 0 and settings.quality.is_measured(settings.engine)
