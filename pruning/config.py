"""How to prune, as data: one frozen config for each pruning step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

SCOPES = ("inner", "all")
ALLOCATIONS = ("layer", "global", "cost", "sensitivity", "search")
# What a group keeps at least, by default: PruningBench's 10 % where scores alone decide.
LEAST = {"layer": 1.0, "global": 0.1, "cost": 0.1, "sensitivity": 0.1, "search": 1.0}
ALLOCATION = (
    "layer: equal; global: lowest scores; cost: lowest for what they cost; sensitivity: least loss "
    "alone; search: best ratio for each stage (default: layer for a ratio, cost for a target)"
)
SCOPE = (
    "inner: within blocks; all: residual stream, too (default: inner for a ratio, all for a target)"
)
SCHEDULE = "soft: cubic: closed by gates; he2018, asymptotic: zeroed once an epoch (default: cubic)"
RAMP = "of pruning while training, as fractions of it (default: 0.1 0.5; weight: 0 0.75)"
METHODS: dict[str, Any] = {}  # by the name that --method takes; filled by library.py
ALIASES = {"filters": "l1", "unstructured": "weight"}  # other names of methods
AMOUNTS = ("ratio", "target_macs", "target_params", "target_latency", "pattern")
FAST = 16  # channels that processors like to work on at once
# A ratio says what to remove. A target leaves that open, so what is usual then is what costs least.
FOR_TARGETS = {"scope": "all", "allocation": "cost"}


def option(default: Any, help: str, kind: type = str, within: Any = None, **how: Any) -> Any:
    """A field of a config that is a flag, too: its default, its words, its limits.

    `within` is an interval, like "[0, 1)", or the values that there are; `how` is for argparse.
    """
    limits = {"choices": within} if isinstance(within, tuple) else {"interval": within}
    told = {"help": help, "type": kind, **limits, **how}
    if kind is not str:
        told.setdefault("metavar", {int: "N", float: "X"}.get(kind, "DIR"))
    return field(default=default, metadata=told)


def flag(name: str) -> str:
    """What the field `name` of a config is called on the command line."""
    return "--" + name.replace("_", "-")


class Options:
    """A config whose fields are flags. Raises ValueError, which names the flag, for a value that
    is outside of its limits."""

    def __post_init__(self) -> None:
        for own in fields(self):
            value, interval = getattr(self, own.name), own.metadata.get("interval")
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None and interval and not _inside(one, interval):
                    raise ValueError(f"{flag(own.name)} {str(one)[:20]} is not in {interval}")
                known = own.metadata.get("choices")
                if one is not None and known and one not in known:
                    names = ", ".join(map(str, known))
                    raise ValueError(f"{flag(own.name)} {one} is none of {names}")


def _inside(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def _ratios(text: str) -> float | tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    return values[0] if len(values) == 1 else values


_ratios.__name__ = "number"  # what argparse calls it


@dataclass(frozen=True)
class PruningConfig(Options):
    """One pruning step."""

    method: str = option(
        "l1", "l1: cut filters; soft: close and reopen them, then cut; weight: mask"
    )
    ratio: float | tuple[float, ...] | None = option(
        0.3, "share to remove; one, or one for each stage", _ratios, "[0, 1)", metavar="R[,R...]"
    )
    target_macs: float | None = option(None, "share of dense MACs to keep", float, "(0, 1]")
    target_params: float | None = option(None, "share of dense parameters to keep", float, "(0, 1]")
    target_latency: float | None = option(None, "share of dense latency to keep", float, "(0, 1]")
    batch_size: int | None = option(None, "for a latency target (default: 64)", int, "[1, 1e9]")
    pattern: str | None = option(None, "weight: N weights kept of every M", metavar="N:M")
    criterion: str = option("l1", "importance of a channel or weight")
    scope: str = option("inner", SCOPE, str, SCOPES)
    allocation: str = option("layer", ALLOCATION, str, ALLOCATIONS)
    skip: tuple[str, ...] = option((), "layers to leave whole", nargs="+", metavar="NAME")
    min_keep: float = option(
        1.0, "fewest channels left, or their fraction (default: 0.1; layer, search: 1)", float
    )
    round_to: int | None = option(
        None, "multiple of widths (default: 16 for a target in wide networks)", int, "[1, 1e9]"
    )
    refit: bool = option(False, "l1: least-squares repair after the cut, on training images", bool)
    schedule: str = option("asymptotic", SCHEDULE)
    gradual: bool = option(False, "l1, weight: pruning while training, on a ramp", bool)
    ramp: tuple[float, float] | None = option(
        None, RAMP, float, "[0, 1]", nargs=2, metavar=("START", "END")
    )
    seed: int = option(0, "random seed", int, "[0, 2147483648]")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_keep < 1e9 or (self.min_keep > 1 and self.min_keep % 1):
            raise ValueError(f"--min-keep {self.min_keep} is neither a count nor a fraction")
        if self.ramp and not self.ramp[0] < self.ramp[1]:
            raise ValueError(f"--ramp {self.ramp[0]} {self.ramp[1]}: it ends before it starts")
        for name in self.skip:
            if not re.fullmatch(r"[\w.]+", name):
                raise ValueError(f"--skip {name}: no such name")
        if self.pattern is not None:
            kept, _, block = self.pattern.partition(":")
            if not (
                re.fullmatch(r"[1-9][0-9]{0,3}:[1-9][0-9]{0,3}", self.pattern)
                and int(kept) < int(block)
            ):
                raise ValueError(f"--pattern {self.pattern} is not N:M with N < M, like 2:4")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PruningConfig:
        """The config that `as_dict` described."""
        lists = {key: tuple(v) for key, v in values.items() if isinstance(v, list)}
        return cls(**{**values, **lists})

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON and checkpoints."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def method_class(config: PruningConfig) -> Any:
    """The class that prunes as a config says. Raises ValueError if it is not in METHODS."""
    if config.method not in METHODS:
        raise ValueError(f"method {config.method} is not known here; --plugin FILE may bring it")
    return METHODS[config.method].variant(config.schedule)


def resolve(given: dict[str, Any]) -> PruningConfig:
    """The config for the values that were given (None: not given), the rest by the method.

    Raises ValueError for what the method cannot use.
    """
    given = {key: value for key, value in given.items() if value is not None}
    usual = {field.name: field.default for field in fields(PruningConfig)}
    if unknown := given.keys() - usual.keys():
        raise ValueError(f"{', '.join(map(flag, sorted(unknown)))}: no such option of pruning")
    given |= {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
    name = given.get("method", PruningConfig.method)
    given["method"] = name = ALIASES.get(name, name)
    skip = given.get("skip", ())
    given["skip"] = tuple(sorted({skip} if isinstance(skip, str) else set(skip)))
    if name not in METHODS:
        raise ValueError(f"--method {name} is none of {', '.join(METHODS)}")
    method = METHODS[name].variant(given.get("schedule"))
    usual |= method.defaults
    optional = {own for other in METHODS.values() for own in other.flags} - set(method.flags)
    for own in optional & given.keys():
        if given[own] != usual[own]:
            raise ValueError(f"{flag(own)} means nothing to --method {name}")
    amounts = [own for own in AMOUNTS if given.get(own) is not None]
    if len(amounts) > 1:
        raise ValueError(f"{flag(amounts[1])} is not allowed with {flag(amounts[0])}")
    usual |= {"ratio": None} if amounts else {}
    if "cost" in method.allocations and amounts and amounts[0].startswith("target"):
        usual |= FOR_TARGETS
    values = {**usual, **given}
    criteria = [name for name in method.criteria if name not in method.unfit]
    for own, known in (("criterion", criteria), ("allocation", method.allocations)):
        if values[own] not in known:
            told = f"--{own} {values[own]} does not fit --method {name}"
            raise ValueError(f"{told}, which knows {', '.join(known)}")
    chosen = (values[own] != usual[own] for own in ("criterion", "allocation", "gradual"))
    if values["pattern"] and any(chosen):
        told = "leave out --criterion, --allocation and --gradual"
        raise ValueError(f"--pattern keeps the largest weights of each block, at once; {told}")
    if values["refit"] and values["gradual"]:
        raise ValueError("--refit is for a cut at once, without --gradual")
    if values["gradual"] and {"taylor", "sensitivity"} & {
        values["criterion"],
        values["allocation"],
    }:
        raise ValueError("--criterion taylor and --allocation sensitivity are not for --gradual")
    if values["ramp"] and "gradual" in method.flags and not values["gradual"]:
        raise ValueError("--ramp means nothing without --gradual")
    if "min_keep" not in given and "min_keep" in method.flags:
        values["min_keep"] = LEAST[values["allocation"]]
    # Only the clock looks at a batch.
    if values["target_latency"] is None:
        values["batch_size"] = None
    elif values["batch_size"] is None:
        values["batch_size"] = 64
    return PruningConfig(**values)


def name_of(steps: Sequence[PruningConfig]) -> str:
    """A folder name for people: method and amount of each step, and what is not its default."""
    return "+".join(map(_name, steps))


def _name(config: PruningConfig) -> str:
    if config.ratio is None:
        name = next(own for own in AMOUNTS if getattr(config, own))
        amount = name.removeprefix("target_") + str(getattr(config, name))
    else:
        ratios = config.ratio if isinstance(config.ratio, tuple) else (config.ratio,)
        amount = ",".join(f"{ratio:g}" for ratio in ratios)
    return "-".join([config.method, amount, *special(config)])


def special(config: PruningConfig) -> list[str]:
    """What is not the default of its method, but for the amount: ["taylor", "global", "by8"].

    A method that another program brought counts as the default one.
    """
    method = config.method if config.method in METHODS else PruningConfig.method
    asked = {"method": method} | {own: getattr(config, own) for own in AMOUNTS[1:]}
    default = resolve(asked)
    schedule = config.schedule if config.method in METHODS else None
    usual = resolve({**asked, "schedule": schedule})
    names = ("criterion", "scope", "allocation")
    parts = [getattr(config, own) for own in names if getattr(config, own) != getattr(usual, own)]
    least = resolve({"method": method, "allocation": config.allocation}).min_keep
    parts += [config.schedule] if config.schedule != default.schedule else []
    parts += [name for name in ("refit", "gradual") if getattr(config, name)]
    parts += ["ramp{:g}-{:g}".format(*config.ramp)] if config.ramp else []
    parts += ["skip" + ",".join(config.skip)] if config.skip else []
    parts += [f"min{config.min_keep:g}"] if config.min_keep != least else []
    # What `with_fast_widths` may have put there does not show.
    fast = (2, 4, 8, FAST) if config.target_latency else (FAST,) if config.ratio is None else ()
    return parts + ([f"by{config.round_to}"] if config.round_to not in (None, *fast) else [])
