"""Overrides in, resolved config out: Hydra's compose API, and messages that name the mistake.

Hydra's own multirun is not used: one value that fails validation ends its whole sweep, and so does a job that
crashes. What is kept is its config language: groups, overlays and the grammar of overrides.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from experiments.errors import CommandError, one_line
from experiments.points import SIMULATION_GROUPS

CONF = Path(__file__).resolve().parent.parent / "conf"


@functools.cache
def groups() -> dict[str, tuple[str, ...]]:
    """Members of each config group; files that start with `_` are shared parts, no members."""
    return {
        folder.name: tuple(sorted(f.stem for f in folder.glob("*.yaml") if not f.stem.startswith("_")))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


@contextmanager
def hydra_config() -> Iterator[None]:
    """Open `conf/` for the calls below.

    Raises:
        CommandError: there is no `conf/` beside the package.
    """
    if not CONF.is_dir():
        raise CommandError(f"conf={str(CONF)!r}: no such folder; install from a checkout with pip install -e .")
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        yield


def parse(overrides: Sequence[str]) -> list[Override]:
    """Overrides in Hydra's grammar.

    Raises:
        CommandError: one of them is not in it.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException as error:
            reason = one_line(error).partition(" See http")[0]
            raise CommandError(f"{text}: is no override such as group=member or key=value: {reason}") from error
        if override.is_hydra_override():
            raise CommandError(f"{text}: Hydra's own settings have no meaning here; see minivllm sweep --help")
        parsed.append(override)
    return parsed


def compose_raw(overrides: Sequence[str]) -> DictConfig:
    """Compose without resolving; Hydra's own node is still there, under `hydra`.

    Raises:
        CommandError: a key or member that does not exist, with the nearest that do.
    """
    try:
        return compose("config", overrides=list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise CommandError(_explain(parse(overrides), error)) from error


@functools.lru_cache(maxsize=1024)
def _composed(overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
    """Config without Hydra's node, and the member of each group. Kept for the next repeat: composing takes 0.2 s."""
    config = compose_raw(overrides)
    chosen = {group: config.hydra.runtime.choices[group] for group in groups()}
    # The class where `_target_` was overridden, for then the member's name would lie.
    for override in parse(overrides):
        group, _, key = override.key_or_group.partition(".")
        if key == "_target_" and group in chosen:
            chosen[group] = str(override.value())
    with open_dict(config):
        del config["hydra"]
    return config, chosen


def compose_config(overrides: Sequence[str], *, repeat: int) -> dict[str, Any]:
    """Compose and resolve to plain values, with the chosen member of each group under `choices`.

    Raises:
        CommandError: a key or member that does not exist, or a value that must be given and is not.
    """
    config, chosen = _composed(tuple(overrides))
    config.repeat = repeat
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or one_line(error)
        raise CommandError(f"{key}: must be given, such as {key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise CommandError(one_line(error)) from error
    assert isinstance(plain, dict)
    made: dict[str, Any] = {str(key): value for key, value in plain.items()} | {"choices": dict(chosen)}
    if made["execution"]["device"] != "simulated":
        for group in SIMULATION_GROUPS:
            made[group] = made["choices"][group] = None
    return made


def _explain(overrides: Sequence[Override], error: Exception) -> str:
    """One line that says which override is wrong and what was likely meant."""
    members = groups()
    choices = [o for o in overrides if o.key_or_group in members]
    for override in choices:
        group, value = override.key_or_group, override.value()
        if isinstance(value, str) and value not in members[group]:
            return f"{group}={value}: no such member{_meant(value, members[group])}"
    try:
        known = _flat_keys(compose("config", overrides=[str(o.input_line) for o in choices]))
    except (HydraException, OmegaConfBaseException):
        return one_line(error)
    for override in overrides:
        key = override.key_or_group
        if key in members or override.is_add() or override.is_force_add() or key in known:
            continue
        node = key.rpartition(".")[0]
        more = f"; +{key}=... hands it to the class" if f"{node}._target_" in known else ""
        return f"{override.input_line}: no such key{_meant(key, known)}{more}"
    return one_line(error)


def _meant(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """The nearest of what exists, or all of it; for a key under a node that exists, of that node's keys."""
    node, _, name = word.rpartition(".")
    names = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == node]
    if not names:
        return _meant(node, known) if node else ""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    prefix = f"{node}." if node else ""
    if near:
        return f"; did you mean {' or '.join(prefix + n for n in near)}?"
    return f"; there are {', '.join(prefix + n for n in names)}"


def _flat_keys(config: DictConfig) -> dict[str, None]:
    """Dotted keys of a config, inner nodes included, in order."""
    found: dict[str, None] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            found[f"{prefix}{key}"] = None
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(config, resolve=False), "")
    return found
