"""Who a point is: the hash of its resolved config, and the settings that come of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.errors import CommandError
from experiments.quality.settings import QualityConfig
from minivllm.config import (
    CacheConfig,
    Component,
    EngineConfig,
    ExecutionConfig,
    ModelConfig,
    PreemptionConfig,
    QuantizationConfig,
    SchedulerConfig,
    SimulationConfig,
    SpeculationConfig,
    require,
)
from minivllm.sampling_params import SamplingParams
from minivllm.simulation.hardware import HardwareConfig

# Parts of an execution that is simulated, null in any other.
SIMULATION_GROUPS = ("hardware", "step_time")
# The keys of a resolved config; anything else was added by mistake.
GROUPS = (
    "model",
    "scheduler",
    "length_predictor",
    "victim",
    "preemption",
    "cache",
    "quantization",
    "speculation",
    "draft_length",
    "attention",
    "execution",
    *SIMULATION_GROUPS,
    "arrivals",
    "lengths",
    "clients",
    "workload",
    "sampling",
    "slo",
    "quality",
    "tracking",
    "launcher",
)
ROOT_KEYS = (
    *GROUPS,
    *("seed", "repeat", "num_warmup_requests", "price_per_hour"),
    *("experiment", "variant", "label", "sweep", "choices"),
)
# What changes no result, or only says where it goes and which measurement of it this is.
NO_IDENTITY = ("repeat", "price_per_hour", "tracking", "launcher", "sweep", "choices", "hydra")
ASSETS = Path(__file__).resolve().parent / "assets"
_ASSETS_PREFIX = "experiments/assets/"
_SAMPLING_KEYS = frozenset(f.name for f in dataclasses.fields(SamplingParams)) - {"max_tokens", "seed", "n", "logprobs"}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, and whole floats as integers: equal configs have equal texts."""

    def plain(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {str(k): plain(v) for k, v in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(v) for v in item]
        if isinstance(item, float) and item.is_integer():
            return int(item)
        return item

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def point_id(config: Mapping[str, Any]) -> str:
    """First 12 hex digits of the SHA-256 of the canonical JSON, without what has no part in its identity."""
    identity = {key: value for key, value in config.items() if key not in NO_IDENTITY}
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]


def run_id(config: Mapping[str, Any]) -> str:
    """`<point_id>-r<repeat>`."""
    return f"{point_id(config)}-r{config['repeat']}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Slo:
    """Limits that a request must meet to count for goodput; None sets no limit.

    Args:
        ttft_s: seconds from arrival to the first token.
        tpot_s: mean seconds a token after the first.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __post_init__(self) -> None:
        for key in ("ttft_s", "tpot_s"):
            limit = getattr(self, key)
            valid = isinstance(limit, (int, float)) and not isinstance(limit, bool) and limit > 0
            require(limit is None or valid, f"slo.{key}", limit, "null or above 0")

    @property
    def given(self) -> bool:
        return self.ttft_s is not None or self.tpot_s is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """A resolved config, frozen: all that a run needs to know."""

    engine: EngineConfig
    workload: Component
    # None leaves to the workload when its requests come, how long they are, and who sends them.
    arrivals: Component | None
    lengths: Component | None
    clients: Component | None
    # Its max_tokens and seed are each request's own, from the workload.
    sampling: SamplingParams
    slo: Slo
    quality: QualityConfig
    seed: int
    repeat: int
    num_warmup_requests: int
    # Of the machine, in whatever currency; None where nobody said.
    price_per_hour: float | None

    def __post_init__(self) -> None:
        self.quality.check_model(self.engine)


def freeze(config: Mapping[str, Any]) -> RunSettings:
    """Make the frozen values of a resolved config.

    Raises:
        CommandError: a key that nothing reads.
        ValueError: a value that its config refuses.
    """
    for key in config:
        if key not in ROOT_KEYS:
            raise CommandError(f"{key}: nothing reads this key; there are {', '.join(ROOT_KEYS)}")
    for key in ("seed", "repeat", "num_warmup_requests"):
        value = config[key]
        require(isinstance(value, int) and not isinstance(value, bool) and value >= 0, key, value, "0 or more")
    price = config["price_per_hour"]
    valid = isinstance(price, (int, float)) and not isinstance(price, bool) and price >= 0
    require(price is None or valid, "price_per_hour", price, "null or 0 or more")
    label = config["label"]
    require(label is None or isinstance(label, str), "label", label, "null or a name")
    model = _fields(config, "model", ModelConfig)
    model["path"], model["tokenizer"] = located(model.get("path")), located(model.get("tokenizer"))
    scheduler, policy = _split(config, "scheduler", SchedulerConfig, "policy", "predictor", "victim")
    predictor = _component(dict(config["length_predictor"]), "length_predictor")
    victim = _component(dict(config["victim"]), "victim")
    preemption, mode = _split(config, "preemption", PreemptionConfig, "mode")
    cache, eviction = _split(config, "cache", CacheConfig, "eviction")
    quantization, scheme = _split(config, "quantization", QuantizationConfig, "scheme")
    if isinstance(scheme.kwargs.get("calibration"), Mapping):
        text = dict(scheme.kwargs["calibration"])
        text["path"] = located(text.get("path"))
        scheme = dataclasses.replace(scheme, kwargs={**scheme.kwargs, "calibration": text})
    workload = dict(config["workload"])
    return RunSettings(
        engine=EngineConfig(
            model=ModelConfig(**model),
            scheduler=SchedulerConfig(**scheduler, policy=policy, predictor=predictor, victim=victim),
            preemption=PreemptionConfig(**preemption, mode=mode),
            cache=CacheConfig(**cache, eviction=eviction),
            quantization=QuantizationConfig(**quantization, scheme=scheme),
            speculation=_speculation(config),
            execution=ExecutionConfig(
                **_fields(config, "execution", ExecutionConfig, without="attention"),
                attention=_optional_component(dict(config["attention"]), "attention"),
            ),
            simulation=_simulation(config),
        ),
        workload=_component(workload, "workload"),
        arrivals=_load_part(config, "arrivals"),
        lengths=_load_part(config, "lengths"),
        clients=_load_part(config, "clients"),
        sampling=SamplingParams(**_checked(config["sampling"], "sampling", _SAMPLING_KEYS)),
        slo=Slo(**_fields(config, "slo", Slo)),
        quality=QualityConfig(**_fields(config, "quality", QualityConfig)),
        seed=config["seed"],
        repeat=config["repeat"],
        num_warmup_requests=config["num_warmup_requests"],
        price_per_hour=price,
    )


def located(path: str | None) -> str | None:
    """A path under `experiments/assets/` is a shipped file, wherever the package lies; any other is left alone."""
    if isinstance(path, str) and path.startswith(_ASSETS_PREFIX):
        return str(ASSETS / path.removeprefix(_ASSETS_PREFIX))
    return path


def _speculation(config: Mapping[str, Any]) -> SpeculationConfig:
    """Drafter and draft lengths are groups of their own, and one part of the engine."""
    names = {f.name for f in dataclasses.fields(SpeculationConfig)} - {"drafter", "length"}
    node = dict(config["speculation"])
    own = {key: node.pop(key) for key in list(node) if key in names}
    drafter = _optional_component(node, "speculation")
    if drafter is not None and "path" in drafter.kwargs:
        path = located(drafter.kwargs["path"])
        drafter = dataclasses.replace(drafter, kwargs={**drafter.kwargs, "path": path})
    return SpeculationConfig(**own, drafter=drafter, length=_component(dict(config["draft_length"]), "draft_length"))


def _simulation(config: Mapping[str, Any]) -> SimulationConfig | None:
    if config["execution"]["device"] != "simulated":
        return None
    return SimulationConfig(
        hardware=HardwareConfig(**_fields(config, "hardware", HardwareConfig)),
        step_time=_component(dict(config["step_time"]), "step_time"),
    )


def _split(config: Mapping[str, Any], group: str, kind: type, *parts: str) -> tuple[dict[str, Any], Component]:
    """A node with `_target_`: fields of the dataclass to it but for its `parts`, the rest to the component."""
    names = {f.name for f in dataclasses.fields(kind)} - set(parts)
    node = dict(config[group])
    own = {key: node.pop(key) for key in list(node) if key in names}
    return own, _component(node, group)


def _component(node: dict[str, Any], group: str) -> Component:
    target = node.pop("_target_", None)
    require(isinstance(target, str) and "." in target, f"{group}._target_", target, "package.module.Class")
    return Component(target=target, kwargs=node)


def _optional_component(node: dict[str, Any], group: str) -> Component | None:
    """None where the class is null: the engine chooses."""
    if node.get("_target_") is None and len(node) <= 1:
        return None
    return _component(node, group)


def _load_part(config: Mapping[str, Any], group: str) -> Component | None:
    node = dict(config[group])
    if "path" in node:
        node["path"] = located(node["path"])
    return _optional_component(node, group)


def _fields(config: Mapping[str, Any], group: str, kind: type, without: str = "") -> dict[str, Any]:
    return _checked(config[group], group, frozenset(f.name for f in dataclasses.fields(kind)) - {without})


def _checked(node: Mapping[str, Any], group: str, names: frozenset[str]) -> dict[str, Any]:
    for key in node:
        if key not in names:
            raise CommandError(f"{group}.{key}: nothing reads this key; there are {', '.join(sorted(names))}")
    return dict(node)
