"""How to prune, as data: one frozen config for each pruning step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

SCOPES = ("inner", "all")
ALLOCATIONS = ("layer", "global", "sensitivity")
# What a group keeps at least, by default: PruningBench's 10 % where scores alone decide.
LEAST = {"layer": 1.0, "global": 0.1, "sensitivity": 0.1}
ALIASES = {"filters": "l1", "unstructured": "weight"}  # other names of methods
AMOUNTS = ("target_macs", "target_params", "target_latency", "pattern")  # instead of a ratio


@dataclass(frozen=True)
class PruningConfig:
    """One pruning step. Raises ValueError, which names the flag, for a value that cannot be."""

    method: str = "l1"
    ratio: float | tuple[float, ...] | None = 0.3  # removed; several: one for each stage
    target_macs: float | None = None  # targets: fractions of the dense network that are kept
    target_params: float | None = None
    target_latency: float | None = None
    batch_size: int | None = None  # at which the latency is measured
    pattern: str | None = None  # N:M
    criterion: str = "l1"
    scope: str = "inner"
    allocation: str = "layer"
    skip: tuple[str, ...] = ()
    min_keep: float = 1.0  # below 1: a fraction of the group
    round_to: int | None = None  # None: 1, or for a latency target what the device likes
    schedule: str = "asymptotic"
    gradual: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        ratios = self.ratio if isinstance(self.ratio, tuple) else (self.ratio,)
        for ratio in ratios:
            _require(ratio is None or 0 <= ratio < 1, "ratio", ratio, "at least 0 and below 1")
        for name in AMOUNTS[:3]:
            target = getattr(self, name)
            _require(target is None or 0 < target <= 1, name, target, "above 0 and at most 1")
        count = 0 < self.min_keep < 1 or (self.min_keep < 1e9 and self.min_keep % 1 == 0)
        told = "a count, or a fraction above 0 and below 1"
        _require(count and self.min_keep > 0, "min_keep", self.min_keep, told)
        for name in ("round_to", "batch_size"):
            value = getattr(self, name)
            _require(value is None or 1 <= value < 1e9, name, value, "a whole number of at least 1")
        _require(self.scope in SCOPES, "scope", self.scope, f"one of {', '.join(SCOPES)}")
        for name in self.skip:
            _require(re.fullmatch(r"[\w.]+", name), "skip", name, "a stage, block, group or layer")
        if self.pattern is not None:
            kept, _, block = self.pattern.partition(":")
            fits = re.fullmatch(r"\d{1,4}:\d{1,4}", self.pattern) and 0 < int(kept) < int(block)
            _require(fits, "pattern", self.pattern, "N:M with 0 < N < M, like 2:4")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PruningConfig:
        """The config that `as_dict` described."""
        lists = {key: tuple(v) for key, v in values.items() if isinstance(v, list)}
        return cls(**{**values, **lists})

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON and checkpoints."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _require(fits: Any, name: str, value: Any, wanted: str) -> None:
    if not fits:
        raise ValueError(f"--{name.replace('_', '-')} {value} is not {wanted}")


def resolve(given: dict[str, Any]) -> PruningConfig:
    """The config for the values that were given (None: not given), the rest by the method.

    Raises ValueError for what the method cannot use.
    """
    from .library import METHODS  # methods themselves are configured by this module

    given = {key: value for key, value in given.items() if value is not None}
    name = given.get("method", PruningConfig.method)
    given["method"] = name = ALIASES.get(name, name)
    given["skip"] = tuple(sorted(set(given.get("skip", ()))))
    method = METHODS[name]
    usual = {field.name: field.default for field in fields(PruningConfig)} | method.defaults
    optional = {flag for other in METHODS.values() for flag in other.flags} - set(method.flags)
    for flag in optional & given.keys():
        if given[flag] != usual[flag]:
            raise ValueError(f"--{flag.replace('_', '-')} means nothing to --method {name}")
    if any(given.get(amount) for amount in AMOUNTS):
        usual["ratio"] = None
    values = {**usual, **given}
    for flag, known in (("criterion", method.criteria), ("allocation", method.allocations)):
        if values[flag] not in known:
            told = f"--{flag} {values[flag]} does not fit --method {name}"
            raise ValueError(f"{told}, which knows {', '.join(known)}")
    if values["pattern"] and (values["gradual"] or values["criterion"] != usual["criterion"]):
        raise ValueError("--pattern takes the largest weights at once, by magnitude")
    if "min_keep" not in given and "min_keep" in method.flags:
        values["min_keep"] = LEAST[values["allocation"]]
    # Only the clock looks at a batch.
    values["batch_size"] = (values["batch_size"] or 64) if values["target_latency"] else None
    return PruningConfig(**values)


def name_of(steps: Sequence[PruningConfig]) -> str:
    """A folder name for people: method and amount of each step, and what is not its default."""
    return "+".join(map(_name, steps))


def _name(config: PruningConfig) -> str:
    usual = resolve({"method": config.method, "allocation": config.allocation})
    amount = next((flag for flag in AMOUNTS if getattr(config, flag)), None)
    if amount:
        parts = [config.method, amount.removeprefix("target_") + f"{getattr(config, amount)}"]
    else:
        ratios = config.ratio if isinstance(config.ratio, tuple) else (config.ratio,)
        parts = [config.method, ",".join(f"{ratio:g}" for ratio in ratios)]
    if config.criterion != usual.criterion:
        parts.append(config.criterion)
    if config.scope != usual.scope:
        parts.append(config.scope)
    if config.allocation != resolve({"method": config.method}).allocation:
        parts.append(config.allocation)
    if config.schedule != usual.schedule:
        parts.append(config.schedule)
    if config.gradual:
        parts.append("gradual")
    if config.skip:
        parts.append("skip" + ",".join(config.skip))
    if config.min_keep != usual.min_keep:
        parts.append(f"min{config.min_keep:g}")
    if config.round_to:
        parts.append(f"by{config.round_to}")
    return "-".join(parts)
