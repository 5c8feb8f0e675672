"""From overrides to points: the sweep axes of the command line and of the experiment, multiplied out.

An axis is a key and its values, written in Hydra's grammar on the command line (`scheduler=fcfs,static`,
`repeat=range(5)`, `cache=glob(*)`) and as a list in an experiment's YAML. `repeat` varies slowest, so that repeats
interleave (A B C, B C A, ...) and slow drift of the machine hits every point alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from experiments.compose import compose_raw, parse
from experiments.errors import CommandError, one_line
from experiments.repeats import Repeats, repeats_rule

# Keys that say which points there are, and are no part of any of them.
PLANNING = ("axes", "variants", "repeats", "repeat_until", "search", "capacity")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One value of an axis."""

    # As a label shows it, such as `scheduler=static`, or a variant's name.
    label: str
    overrides: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A key, or `variant`, and what it takes in turn."""

    key: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Combination:
    """One point of one repeat, before it is composed."""

    experiment: str | None
    repeat: int
    # What sets it apart from the sweep's other points; empty where nothing varies.
    label: str
    # Without the repeat.
    overrides: tuple[str, ...]
    repeats: Repeats

    @property
    def needed(self) -> bool:
        """Whether it runs in any case, or only where earlier repeats leave its point too uncertain."""
        return self.repeats.metric is None or self.repeat < self.repeats.least


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """One experiment of a command line: its repeats and its axes."""

    name: str | None
    rule: Repeats
    # Numbers of the repeats.
    rounds: tuple[int, ...]
    axes: tuple[Axis, ...]
    # Overrides that all its points have.
    fixed: tuple[str, ...]

    def combination(self, choices: Sequence[Choice], repeat: int, *, several: bool = False) -> Combination:
        """The point of one choice an axis.

        Args:
            choices: in the order of the axes.
            repeat: which.
            several: whether there are other experiments, so that its name belongs to the label.
        """
        head = (f"experiment={self.name}",) if self.name else ()
        # The command line first: a variant leaves its part out of whatever base the command line chose.
        varied = tuple(o for choice in choices for o in choice.overrides)
        labels = [choice.label for axis, choice in zip(self.axes, choices, strict=True) if len(axis.choices) > 1]
        return Combination(
            experiment=self.name,
            repeat=repeat,
            label=" ".join([str(self.name)] * several + labels),
            overrides=(*head, *self.fixed, *varied),
            repeats=self.rule,
        )


def expand(overrides: Sequence[str], *, default_experiment: str | None = None) -> list[Combination]:
    """All combinations that a command line asks for, repeat by repeat, each in the order of the axes.

    Args, Raises: as `read_experiments`.
    """
    plans = read_experiments(overrides, default_experiment=default_experiment)
    # Repeat is slowest even across experiments: a comparison of two experiments drifts as little as one of two points.
    last = max((repeat for plan in plans for repeat in plan.rounds), default=-1)
    found = []
    for repeat in range(last + 1):
        for plan in plans:
            if repeat in plan.rounds:
                chosen = itertools.product(*(axis.choices for axis in plan.axes))
                found += [plan.combination(choices, repeat, several=len(plans) > 1) for choices in chosen]
    return found


def read_experiments(overrides: Sequence[str], *, default_experiment: str | None = None) -> list[Experiment]:
    """What a command line asks for, before it is multiplied out.

    Args:
        overrides: as given on the command line.
        default_experiment: the experiment where none is named.

    Raises:
        CommandError: something in them, or in the experiment's own axes, does not exist.
    """
    fixed: list[str] = []
    swept: list[Axis] = []
    experiments: list[str | None] = [default_experiment]
    repeats: tuple[int, ...] | None = None
    variants: list[str] | None = None
    for override in parse(overrides):
        key, text = override.key_or_group, str(override.input_line)
        if key in ("axes", "variants") or key.startswith(("axes.", "variants.")):
            raise CommandError(f"{text}: set in an experiment's YAML; on the command line, sweep a key: key=a,b")
        if key == "experiment":
            experiments = [None if v == "null" else v for v in _values(override)]
        elif key == "repeat":
            repeats = tuple(_whole(v, text) for v in _values(override))
        elif key == "variant":
            variants = _values(override)
        elif override.is_sweep_override() and key.startswith(("search", "capacity")):
            raise CommandError(f"{text}: a search has one setting of each of its own keys")
        elif override.is_sweep_override():
            prefix = override.get_key_element()
            labels = _values(override)
            choices = tuple(Choice(label=f"{key}={v}", overrides=(f"{prefix}={v}",)) for v in labels)
            swept.append(Axis(key=key, choices=choices))
        else:
            fixed.append(text)

    return [_plan(name, fixed, swept, repeats, variants) for name in experiments]


def _plan(
    experiment: str | None,
    fixed: Sequence[str],
    swept: Sequence[Axis],
    repeats: tuple[int, ...] | None,
    picked: Sequence[str] | None,
) -> Experiment:
    """An experiment's own repeats and axes, unless the command line speaks of the same key."""
    chosen = [f"experiment={experiment}"] if experiment else []
    config = compose_raw([*chosen, *(text for text in fixed if text.startswith(("repeats=", "repeat_until")))])
    own = OmegaConf.to_container(OmegaConf.create({key: config[key] for key in PLANNING}))
    assert isinstance(own, dict)
    where = f"experiment={experiment}"
    named = {o.key_or_group for o in parse(fixed)} | {axis.key for axis in swept}
    axes = [_axis(key, values, where) for key, values in own["axes"].items() if key not in named]
    variants = _variants(own["variants"], where)
    for name in picked or ():
        if name not in variants:
            there = f"there are {', '.join(variants)}" if variants else "choose an experiment that has some"
            raise CommandError(f"variant={name}: no such variant of {where}; {there}")
    if variants:
        axes.insert(0, Axis(key="variant", choices=tuple(variants[name] for name in picked or variants)))
    rule = repeats_rule(own["repeats"], own["repeat_until"])
    rounds = tuple(range(rule.most))
    if repeats is not None:
        if rule.metric is not None:
            raise CommandError(
                f"repeat={','.join(map(str, repeats))}: names the repeats, and repeat_until decides on them; give one"
            )
        rule, rounds = Repeats(least=len(repeats), most=len(repeats)), repeats
    return Experiment(name=experiment, rule=rule, rounds=rounds, axes=(*axes, *swept), fixed=tuple(fixed))


def _axis(key: str, values: Any, where: str) -> Axis:
    """An axis of an experiment's YAML: a list, or a string in the grammar of the command line."""
    texts = [_text(v) for v in values] if isinstance(values, list) else _values(parse([f"{key}={values}"])[0])
    if not texts:
        raise CommandError(f"{where}: axes.{key}={values!r}: must be a list of values")
    return Axis(key=key, choices=tuple(Choice(label=f"{key}={t}", overrides=(f"{key}={t}",)) for t in texts))


def _variants(variants: Any, where: str) -> dict[str, Choice]:
    found: dict[str, Choice] = {}
    for variant in variants:
        if not isinstance(variant, Mapping) or set(variant) - {"name", "overrides"} or not variant.get("name"):
            raise CommandError(f"{where}: variants: {variant!r}: must be a mapping with name and overrides")
        name = str(variant["name"])
        if name in found:
            raise CommandError(f"{where}: variants: the name {name!r} stands twice")
        overrides = tuple(str(o) for o in variant.get("overrides") or ())
        found[name] = Choice(label=name, overrides=(*overrides, f"variant={_text(name)}"))
    return found


def _values(override: Override) -> list[str]:
    """The values of an override as texts that the grammar reads back."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise CommandError(f"{override.input_line}: cannot be enumerated; write a,b,c or range(start,stop,step)")
    try:
        values = list(override.sweep_string_iterator())
    except HydraException as error:
        raise CommandError(f"{override.input_line}: {one_line(error)}") from error
    values = [v for v in values if not v.startswith("_")]
    if not values:
        raise CommandError(f"{override.input_line}: matches nothing")
    return values


def _text(value: Any) -> str:
    """A YAML value as a text that the grammar reads back as the same value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_text(v) for v in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str) and not value.replace("_", "").replace("-", "").isalnum():
        return QuotedString(text=value, quote=Quote.single).with_quotes()
    return str(value)


def _whole(value: str, text: str) -> int:
    if not value.isdigit():
        raise CommandError(f"{text}: repeat must be a whole number, 0 or more")
    return int(value)
