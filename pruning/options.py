"""The command-line flags that say how to prune, shared by the stages that need them."""

from __future__ import annotations

import argparse
from typing import Any

from .allocation import ALLOCATIONS
from .criteria import CRITERIA
from .methods import METHODS

SCOPES = ("inner", "all")
DEFAULTS: dict[str, Any] = {
    "method": "l1",
    "ratio": 0.3,
    "criterion": "l1",
    "scope": "inner",
    "allocation": "layer",
    "skip": [],
    "min_keep": None,
    "round_to": 1,
    "target_macs": None,
    "target_params": None,
}

# What a group keeps at least, by default: PruningBench's 10 % where scores alone decide.
LEAST = {"layer": 1.0, "global": 0.1}


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0 and below 1")
    return value


def _target(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def _ratio(text: str) -> float | list[float]:
    values = [_fraction(part) for part in text.split(",")]
    return values[0] if len(values) == 1 else values


def _least(text: str) -> float:
    value = float(text)
    if value <= 0 or (value >= 1 and value != int(value)):
        raise argparse.ArgumentTypeError(f"{text} is neither a count nor a fraction below 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def add_pruning_flags(p: argparse.ArgumentParser) -> None:
    """How to prune. In a later stage the same flags find the run again."""
    g = p.add_argument_group("pruning")
    g.add_argument("--method", choices=METHODS, help="way of pruning")
    amount = g.add_mutually_exclusive_group()
    amount.add_argument(
        "--ratio",
        type=_ratio,
        metavar="R[,R...]",
        help="fraction of the channels to remove; or one for each stage of the network",
    )
    amount.add_argument(
        "--target-macs", type=_target, metavar="F", help="keep this fraction of the dense MACs"
    )
    amount.add_argument(
        "--target-params",
        type=_target,
        metavar="F",
        help="keep this fraction of the dense parameters",
    )
    g.add_argument("--criterion", choices=CRITERIA, help="what makes a channel important")
    g.add_argument(
        "--scope", choices=SCOPES, help="inner: within blocks; all: the residual stream too"
    )
    g.add_argument(
        "--allocation",
        choices=ALLOCATIONS,
        help="layer: the ratio in every group; global: where the scores are lowest",
    )
    g.add_argument(
        "--skip", nargs="+", metavar="NAME", help="stages, blocks or groups to leave whole"
    )
    g.add_argument(
        "--min-keep",
        type=_least,
        metavar="N",
        help="least number of channels a group keeps, or least fraction of them if below 1 "
        "(default: 1; with --allocation global 0.1)",
    )
    g.add_argument("--round-to", type=_count, metavar="N", help="widths become multiples of N")
    for action in g._group_actions:
        default = DEFAULTS[action.dest]
        if default not in (None, []):
            action.help += f" (default: {default})"


def fill_defaults(args: argparse.Namespace) -> None:
    """Replace what was not given by its default."""
    for name, default in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.target_macs or args.target_params:
        args.ratio = None
    if args.min_keep is None:
        args.min_keep = LEAST[args.allocation]


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The pruning flags as plain data, for the checkpoint."""
    return {name: getattr(args, name) for name in DEFAULTS}


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
    if filled.target_macs:
        amount = f"macs{filled.target_macs:g}"
    elif filled.target_params:
        amount = f"params{filled.target_params:g}"
    else:
        ratios = filled.ratio if isinstance(filled.ratio, list) else [filled.ratio]
        amount = ",".join(f"{ratio:g}" for ratio in ratios)
    parts = [filled.method, amount]
    for name in ("criterion", "scope", "allocation"):
        if getattr(filled, name) != DEFAULTS[name]:
            parts.append(getattr(filled, name))
    if filled.skip:
        parts.append("skip" + "+".join(filled.skip))
    if filled.min_keep != LEAST[filled.allocation]:
        parts.append(f"min{filled.min_keep:g}")
    if filled.round_to != DEFAULTS["round_to"]:
        parts.append(f"by{filled.round_to}")
    return "-".join(parts)
