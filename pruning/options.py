"""The command-line flags that say how to prune, shared by the stages that need them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from models import Group, Spec

from .allocation import ALLOCATIONS
from .criteria import CRITERIA
from .methods import METHODS, Pruned
from .methods.soft import SCHEDULES
from .methods.weight import WEIGHT_CRITERIA

SCOPES = ("inner", "all")
AMOUNTS = ("target_macs", "target_params", "target_latency", "pattern")  # instead of a ratio
DEFAULTS: dict[str, Any] = {
    "method": "l1",
    "ratio": 0.3,
    "criterion": "l1",
    "scope": "inner",
    "allocation": "layer",
    "skip": [],
    "min_keep": None,
    "round_to": None,
    "schedule": "asymptotic",
    "gradual": False,
    **dict.fromkeys(AMOUNTS),
}
# What a group keeps at least, by default: PruningBench's 10 % where scores alone decide.
LEAST = {"layer": 1.0, "global": 0.1, "sensitivity": 0.1}


def _number(test: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not test(value):
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    parse.__name__ = "number"
    return parse


_fraction = _number(lambda x: 0 <= x < 1, "at least 0 and below 1")
_target = _number(lambda x: 0 < x <= 1, "above 0 and at most 1")
_least = _number(
    lambda x: 0 < x < 1 or (x >= 1 and x.is_integer()), "a count, or a fraction above 0 and below 1"
)


def _count(text: str) -> int:
    return int(_number(lambda x: x >= 1 and x.is_integer(), "a whole number of at least 1")(text))


def _ratio(text: str) -> float | list[float]:
    values = [_fraction(part) for part in text.split(",")]
    return values[0] if len(values) == 1 else values


def _pattern(text: str) -> str:
    kept, colon, block = text.partition(":")
    if not (colon and kept.isdigit() and block.isdigit() and 0 < int(kept) < int(block)):
        raise argparse.ArgumentTypeError(f"{text} is not N:M with 0 < N < M, like 2:4")
    return text


class _Names(argparse.Action):
    """Names whose order and repetition do not matter."""

    def __call__(self, parser: Any, args: Any, values: Any, option: str | None = None) -> None:
        setattr(args, self.dest, sorted(set(values)))


def _add_amount_flags(g: Any) -> None:
    """How much to prune: one of these."""
    g.add_argument(
        "--ratio",
        type=_ratio,
        metavar="R[,R...]",
        help="fraction to remove (default: 0.3); or one for each stage of the network",
    )
    for name, what in (("macs", "MACs"), ("params", "parameters"), ("latency", "latency")):
        g.add_argument(
            f"--target-{name}",
            type=_target,
            metavar="F",
            help=f"keep this fraction of the dense network's {what}",
        )
    g.add_argument(
        "--pattern", type=_pattern, metavar="N:M", help="weight: keep N of every M weights"
    )


def add_pruning_flags(p: argparse.ArgumentParser) -> None:
    """How to prune. In a later stage the same flags find the run again."""
    g = p.add_argument_group("pruning")
    g.add_argument("--method", choices=METHODS, help="way of pruning (default: l1)")
    _add_amount_flags(g.add_mutually_exclusive_group())
    g.add_argument(
        "--criterion",
        choices=[*CRITERIA, *(set(WEIGHT_CRITERIA) - set(CRITERIA))],
        help="what makes a channel important (default: l1; soft: l2; weight: magnitude)",
    )
    g.add_argument(
        "--scope",
        choices=SCOPES,
        help="inner: within blocks; all: the residual stream too (default: inner)",
    )
    g.add_argument(
        *("--allocation", "--threshold"),
        choices=ALLOCATIONS,
        help="layer: the ratio everywhere; global: where scores are lowest; sensitivity: where "
        "accuracy suffers least (default: layer; weight: global)",
    )
    g.add_argument(
        "--skip",
        nargs="+",
        action=_Names,
        metavar="NAME",
        help="stages, blocks, groups or layers to leave whole",
    )
    g.add_argument(
        "--min-keep",
        type=_least,
        metavar="N",
        help="least number of channels a group keeps, or least fraction of them if below 1 "
        "(default: 1; 0.1 unless --allocation is layer)",
    )
    g.add_argument(
        "--round-to",
        type=_count,
        metavar="N",
        help="widths become multiples of N (default: 1, or what suits the device for its latency)",
    )
    g.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="soft: how the ratio rises over the epochs (default: asymptotic)",
    )
    gradual = "weight: prune during fine-tuning, on a cubic schedule"
    g.add_argument("--gradual", action="store_true", default=None, help=gradual)


def fill_defaults(args: argparse.Namespace) -> None:
    """Replace what was not given by its default; ValueError for what the method cannot use."""
    if args.method is None:
        args.method = DEFAULTS["method"]
    method = METHODS[args.method]
    optional = {flag for other in METHODS.values() for flag in other.flags} - set(method.flags)
    for name in optional:
        if getattr(args, name) not in (None, DEFAULTS[name]):
            raise ValueError(f"--{name.replace('_', '-')} means nothing to --method {args.method}")
    for name, default in {**DEFAULTS, **method.defaults}.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if any(getattr(args, name) for name in AMOUNTS):
        args.ratio = None
    for name, known in (("criterion", method.criteria), ("allocation", method.allocations)):
        if getattr(args, name) not in known:
            raise ValueError(
                f"--{name} {getattr(args, name)} does not fit --method {args.method}, "
                f"which knows {', '.join(known)}"
            )
    if args.pattern and (args.gradual or args.criterion != method.defaults["criterion"]):
        raise ValueError("--pattern takes the largest weights at once, by magnitude")
    if args.min_keep is None and "min_keep" in method.flags:
        args.min_keep = LEAST[args.allocation]


def any_given(args: argparse.Namespace) -> bool:
    """Whether the command line asks for any pruning."""
    return any(getattr(args, name) is not None for name in DEFAULTS)


def record(
    args: argparse.Namespace, name: str, pruned: Pruned, dense: Spec, share_cut: float
) -> dict[str, Any]:
    """What a checkpoint says about its pruning, as plain data.

    `dense` is the network before any pruning, `share_cut` the fraction of the MACs that this
    pruning removed.
    """
    return {
        "method": args.method,
        "name": name,
        "ratio": pruned.ratio,
        "options": {flag: getattr(args, flag) for flag in DEFAULTS},
        "dense": dense,
        "share_cut": share_cut,
        **pruned.state,
    }


def hardware_multiple(device: str, groups: list[Group]) -> int:
    """What widths should be multiples of to be fast, no more than a quarter of a small group.

    16 channels fill half a row of an AMX tile, 8 the 16 bytes that a GPU reads at once. The
    middles of squeeze-and-excitation do not count: they work on single pixels.
    """
    smallest = min((group.size for group in groups if group.norms), default=4)
    return max(1, min(8 if device == "cuda" else 16, smallest // 4))


def inherit(args: argparse.Namespace, pruning: dict[str, Any] | None) -> None:
    """Fill the flags from the record in a checkpoint; ValueError if one contradicts it."""
    recorded = pruning["options"] if pruning else dict.fromkeys(DEFAULTS)
    for name in DEFAULTS:
        flag, value = getattr(args, name), recorded.get(name)
        if flag is not None and flag != value:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {flag} contradicts the checkpoint, which has {value}")
        setattr(args, name, value)


def tag(args: argparse.Namespace) -> str:
    """The folder name of a way of pruning: method and ratio, and what is not the default."""
    filled = argparse.Namespace(**vars(args))
    fill_defaults(filled)
    usual = {**DEFAULTS, **METHODS[filled.method].defaults}
    for name in AMOUNTS:
        if value := getattr(filled, name):
            amount = f"{name.removeprefix('target_')}{value}"
            break
    else:
        ratios = filled.ratio if isinstance(filled.ratio, list) else [filled.ratio]
        amount = ",".join(f"{ratio:g}" for ratio in ratios)
    parts = [filled.method, amount]
    for name in ("criterion", "scope", "allocation", "schedule"):
        if getattr(filled, name) != usual[name]:
            parts.append(getattr(filled, name))
    if filled.gradual:
        parts.append("gradual")
    if filled.skip:
        parts.append("skip" + ",".join(filled.skip))
    if filled.min_keep not in (None, LEAST[filled.allocation]):
        parts.append(f"min{filled.min_keep:g}")
    if filled.round_to:
        parts.append(f"by{filled.round_to}")
    return "-".join(parts)
