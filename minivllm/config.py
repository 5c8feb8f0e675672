"""What an engine is made of: frozen values that validate themselves.

Every message names the config key (`group.key`) and the value. A part that can be plugged in is a `Component`: an
import path and keyword arguments, made into an object where it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minivllm.component import Component as Component
from minivllm.component import component_of_ours
from minivllm.component import is_count as is_count
from minivllm.component import require as require
from minivllm.scheduler.preemptions.config import PreemptionConfig as PreemptionConfig
from minivllm.simulation.config import SimulationConfig as SimulationConfig

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda", "simulated")
WEIGHTS = ("checkpoint", "random")
KERNELS = ("torch", "numba", "triton")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which weights.

    Args:
        path: a Hugging Face folder, or a hub id.
        weights: `checkpoint` reads them; `random` makes them up from the shape (for speed only).
        shape: with random weights, a Hugging Face config as a mapping, instead of a folder that has one.
        tokenizer: folder or hub id of the tokenizer; `path` where None.
        max_model_len: longest sequence, prompt and output; the model's own limit where None.
        seed: of random weights.
    """

    path: str | None = None
    weights: str = "checkpoint"
    shape: Mapping[str, Any] | None = None
    tokenizer: str | None = None
    max_model_len: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.weights in WEIGHTS, "model.weights", self.weights, f"one of {', '.join(WEIGHTS)}")
        require(
            self.max_model_len is None or is_count(self.max_model_len),
            "model.max_model_len",
            self.max_model_len,
            "null or 1 or more",
        )
        if self.weights == "checkpoint":
            require(bool(self.path), "model.path", self.path, "a Hugging Face folder or hub id")
        else:
            require(bool(self.path) or bool(self.shape), "model.shape", self.shape, "given where model.path is null")


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """The budgets of a step, and the policy that spends them.

    Args:
        policy: a `SchedulingPolicy`.
        predictor: a `LengthPredictor`, of the requests that bring no prediction of their own.
        victim: a `VictimPolicy`: who is preempted where blocks or seats are short.
        max_num_seqs: requests in one step.
        max_num_batched_tokens: tokens in one step, prefill and decode together.
        chunked_prefill: let a prompt's prefill spread over several steps; without it a prompt longer than
            max_num_batched_tokens runs in one step, alone.
        watermark_fraction: of the KV blocks, kept free when a request is admitted beside others, so that
            running requests can grow before anyone is preempted.
    """

    policy: Component = Component(target="minivllm.scheduler.fcfs.FCFS")
    predictor: Component = Component(target="minivllm.scheduler.predictors.oracle.Oracle")
    victim: Component = Component(target="minivllm.scheduler.victims.least_deserving.LeastDeserving")
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    chunked_prefill: bool = True
    watermark_fraction: float = 0.01

    def __post_init__(self) -> None:
        require(is_count(self.max_num_seqs), "scheduler.max_num_seqs", self.max_num_seqs, "1 or more")
        tokens = self.max_num_batched_tokens
        require(is_count(tokens), "scheduler.max_num_batched_tokens", tokens, "1 or more")
        require(
            isinstance(self.chunked_prefill, bool), "scheduler.chunked_prefill", self.chunked_prefill, "true or false"
        )
        fraction = self.watermark_fraction
        require(
            isinstance(fraction, (int, float)) and 0 <= fraction < 1,
            "scheduler.watermark_fraction",
            fraction,
            "in [0, 1)",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """The paged KV cache.

    Args:
        block_size: tokens a block, a power of two.
        num_blocks: blocks in the pool; from `memory_bytes` where None.
        memory_bytes: size of the pool where `num_blocks` is None; where both are, 256 MiB on a CPU, and on a GPU what
            is left of `gpu_memory_fraction` beside weights and activations, measured.
        gpu_memory_fraction: of the GPU's memory, for everything.
        prefix_caching: keep full blocks by content and share them between requests.
        eviction: which cached block goes when the pool is short, an `EvictionPolicy`.
        reuse_kv: False forgets all K/V after each token and computes the whole sequence again: generation
            without a KV cache, the baseline that shows what one is worth.
    """

    block_size: int = 16
    num_blocks: int | None = None
    memory_bytes: int | None = None
    gpu_memory_fraction: float = 0.9
    prefix_caching: bool = True
    eviction: Component = Component(target="minivllm.blocks.lru.LRU")
    reuse_kv: bool = True

    def __post_init__(self) -> None:
        size = self.block_size
        require(is_count(size) and size & (size - 1) == 0, "cache.block_size", size, "a power of two, 1 or more")
        require(
            self.num_blocks is None or is_count(self.num_blocks),
            "cache.num_blocks",
            self.num_blocks,
            "null or 1 or more",
        )
        memory = self.memory_bytes
        require(memory is None or is_count(memory), "cache.memory_bytes", memory, "null or 1 or more")
        fraction = self.gpu_memory_fraction
        require(
            isinstance(fraction, (int, float)) and 0 < fraction <= 1, "cache.gpu_memory_fraction", fraction, "in (0, 1]"
        )
        require(isinstance(self.prefix_caching, bool), "cache.prefix_caching", self.prefix_caching, "true or false")
        require(isinstance(self.reuse_kv, bool), "cache.reuse_kv", self.reuse_kv, "true or false")
        if not self.reuse_kv:
            require(
                not self.prefix_caching, "cache.prefix_caching", self.prefix_caching, "false where cache.reuse_kv=false"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionConfig:
    """Where and how steps run.

    Args:
        device: `cpu`, `cuda`, or `simulated`: no device at all, and the virtual time that one would need.
        dtype: of weights, activations and K/V; `auto` is float32 on a CPU and the checkpoint's own on a GPU.
        kernels: what computes a step: `torch` anywhere, `numba` (our own compiled kernels) in float32 on a CPU,
            `triton` (our own) on a GPU; `auto` is `numba` in float32 on a CPU, `triton` on a GPU, `torch` elsewhere.
        attention: the attention backend, an `AttentionBackend`; the one that goes with `kernels` where None.
        overlap: schedule and launch a step before the one before is waited for; where None, on a GPU.
        cuda_graphs: replay the steps that only decode as CUDA graphs; where None, with `kernels=triton` on a GPU.
        batch_invariant: bitwise the same logits for a request whatever shares its batch, at some cost in speed.
        num_threads: of torch on a CPU; torch's own choice where None.
        seed: of requests that bring none.
    """

    device: str = "cpu"
    dtype: str = "auto"
    kernels: str = "auto"
    attention: Component | None = None
    overlap: bool | None = None
    cuda_graphs: bool | None = None
    batch_invariant: bool = False
    num_threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.device in DEVICES, "execution.device", self.device, f"one of {', '.join(DEVICES)}")
        require(self.dtype in ("auto", *DTYPES), "execution.dtype", self.dtype, f"auto, {', '.join(DTYPES)}")
        require(self.kernels in ("auto", *KERNELS), "execution.kernels", self.kernels, f"auto, {', '.join(KERNELS)}")
        for name in ("overlap", "cuda_graphs"):
            value = getattr(self, name)
            require(value is None or isinstance(value, bool), f"execution.{name}", value, "null, true or false")
        invariant = self.batch_invariant
        require(isinstance(invariant, bool), "execution.batch_invariant", invariant, "true or false")
        require(
            not self.cuda_graphs or self.device == "cuda",
            "execution.cuda_graphs",
            self.cuda_graphs,
            "null or false but on a GPU",
        )
        require(
            self.num_threads is None or is_count(self.num_threads),
            "execution.num_threads",
            self.num_threads,
            "null or 1 or more",
        )


_UNQUANTIZED = "minivllm.quantization.none.Unquantized"


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationConfig:
    """The precision of the weights.

    Args:
        scheme: a `QuantizationScheme`.
        skip: projections that stay as they are: names or patterns such as `lm_head`, `*.down`, `layers.0.*`, and the
            words `first` and `last` for the layers at both ends.
    """

    scheme: Component = Component(target=_UNQUANTIZED)
    skip: tuple[str, ...] = ("lm_head",)

    def __post_init__(self) -> None:
        valid = isinstance(self.skip, (list, tuple)) and all(isinstance(pattern, str) for pattern in self.skip)
        require(valid, "quantization.skip", self.skip, "a list of names or patterns")
        object.__setattr__(self, "skip", tuple(self.skip))

    @classmethod
    def named(cls, name: str, *, skip: tuple[str, ...] = ("lm_head",), **kwargs: Any) -> QuantizationConfig:
        """A scheme of ours: `int4` is `minivllm.quantization.int4.Int4`.

        Args:
            name: of the module.
            skip: as in the class.
            kwargs: what the scheme is made with.
        """
        if name == "none":
            return cls(scheme=Component(target=_UNQUANTIZED, kwargs=kwargs), skip=skip)
        return cls(scheme=component_of_ours("minivllm.quantization", name, kwargs), skip=skip)

    @property
    def is_lossy(self) -> bool:
        """Whether weights may not be those of the checkpoint."""
        return self.scheme.target != _UNQUANTIZED or self.scheme.kwargs.get("weight_dtype") is not None


_SYNTHETIC = "minivllm.speculation.synthetic.Synthetic"


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeculationConfig:
    """Speculative decoding: who drafts, and how much.

    Args:
        drafter: a `Drafter`; None is off.
        num_draft_tokens: most drafts of a request in a step; for a tree, all of its nodes.
        length: a `DraftLengthPolicy`, which chooses in each step how many of them are worth their cost.
        sample_drafts: draw drafts from the drafter's own distribution where the request samples, and accept them by
            rejection sampling (arXiv 2211.17192); False drafts what is likeliest, and accepts what the target's own
            draw agrees with, so that a seeded request gets the very tokens that it gets without speculation.
    """

    drafter: Component | None = None
    num_draft_tokens: int = 4
    length: Component = Component(target="minivllm.speculation.lengths.fixed.Fixed")
    sample_drafts: bool = True

    def __post_init__(self) -> None:
        require(is_count(self.num_draft_tokens), "speculation.num_draft_tokens", self.num_draft_tokens, "1 or more")
        require(isinstance(self.sample_drafts, bool), "speculation.sample_drafts", self.sample_drafts, "true or false")

    @property
    def enabled(self) -> bool:
        return self.drafter is not None

    @property
    def keeps_text(self) -> bool:
        """False where acceptance is made up, so that the text means nothing."""
        return self.drafter is None or self.drafter.target != _SYNTHETIC

    @classmethod
    def named(
        cls, name: str, *, num_draft_tokens: int = 4, sample_drafts: bool = True, length: str = "fixed", **kwargs: Any
    ) -> SpeculationConfig:
        """A drafter of ours: `ngram` is `minivllm.speculation.ngram.Ngram`; `off` is none.

        Args:
            name: of the drafter's module.
            num_draft_tokens, sample_drafts: as in the class.
            length: name of the policy's module, `fixed` or `adaptive`.
            kwargs: what the drafter is made with.
        """
        return cls(
            drafter=None if name == "off" else component_of_ours("minivllm.speculation", name, kwargs),
            num_draft_tokens=num_draft_tokens,
            sample_drafts=sample_drafts,
            length=component_of_ours("minivllm.speculation.lengths", length, {}),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """One engine, whole; `simulation` is for `execution.device=simulated`, and for it alone."""

    model: ModelConfig
    scheduler: SchedulerConfig = SchedulerConfig()
    cache: CacheConfig = CacheConfig()
    execution: ExecutionConfig = ExecutionConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    speculation: SpeculationConfig = SpeculationConfig()
    preemption: PreemptionConfig = PreemptionConfig()
    simulation: SimulationConfig | None = None

    def __post_init__(self) -> None:
        device = self.execution.device
        simulated = device == "simulated"
        require(
            simulated == (self.simulation is not None),
            "execution.device",
            device,
            "simulated where there is a simulation (hardware, step_time), and only there",
        )
        reuse = self.cache.reuse_kv
        require(
            reuse or not self.preemption.swaps,
            "cache.reuse_kv",
            reuse,
            "true with preemption=swap: there is no K/V to keep",
        )
        if not self.speculation.enabled:
            return
        overlap = self.execution.overlap
        require(
            not overlap,
            "execution.overlap",
            overlap,
            "null or false with speculation: how far a step got is known late",
        )
        require(
            reuse, "cache.reuse_kv", reuse, "true with speculation: drafts are verified against the K/V in the cache"
        )

    @property
    def overlaps(self) -> bool:
        """Whether a step is scheduled and launched before the one before is waited for."""
        if self.speculation.enabled:
            return False
        if self.execution.overlap is not None:
            return self.execution.overlap
        device = self.execution.device if self.simulation is None else self.simulation.hardware.device
        return device == "cuda"

    @property
    def lossy_parts(self) -> tuple[str, ...]:
        """Keys of the parts that may change what the model says; all others are exact."""
        return ("quantization",) if self.quantization.is_lossy else ()

    @classmethod
    def from_flat(cls, **options: Any) -> EngineConfig:
        """Build from keyword arguments named like the fields of the parts; no name stands in two parts but `seed`,
        which is the execution's. `quantization` is the name of a scheme, or a `QuantizationConfig`; `speculation` the
        name of a drafter, or a `SpeculationConfig`; `preemption` that of a mode, or a `PreemptionConfig`; with
        `device="simulated"`, `hardware` and `step_time` are as in `SimulationConfig.named`.

        Raises:
            ValueError: a name that no part has, with the names that exist.
        """
        whole: dict[str, Any] = {}
        for name, what, part in (
            ("quantization", "a scheme", QuantizationConfig),
            ("speculation", "a drafter", SpeculationConfig),
            ("preemption", "a mode", PreemptionConfig),
        ):
            given = options.pop(name, None) or part()
            whole[name] = part.named(given) if isinstance(given, str) else given
            require(isinstance(whole[name], part), name, given, f"the name of {what} or a {part.__name__}")
        if options.get("device") == "simulated":
            chosen = {key: options.pop(key) for key in ("hardware", "step_time") if key in options}
            whole["simulation"] = SimulationConfig.named(**chosen)
        parts = {"model": ModelConfig, "scheduler": SchedulerConfig, "cache": CacheConfig, "execution": ExecutionConfig}
        owner = {f.name: part for part, kind in parts.items() for f in dataclasses.fields(kind)}
        sorted_out: dict[str, dict[str, Any]] = {part: {} for part in parts}
        known = ", ".join(sorted({*owner, *whole, "hardware", "step_time"}))
        for name, value in options.items():
            if name not in owner:
                raise ValueError(f"LLM({name}={value!r}): no such option; there are {known}")
            sorted_out[owner[name]][name] = value
        made = {part: kind(**sorted_out[part]) for part, kind in parts.items()}
        return cls(**made, **whole)
