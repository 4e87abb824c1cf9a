"""Why a smaller network is not as much faster as its MACs promise.

Not guessed: each reason is a count, or a measurement of what would be if one thing about the
network were different, on the same machine, engine and batch.
"""

from __future__ import annotations

import torch

from models import Spec, build, channel_groups, cost_of, layer_costs
from utils.device import Machine

from .engines import ENGINES, IN_TORCH
from .timing import hardware_multiple, interleaved, layer_times


def keeps_up(measured: float, theoretical: float) -> bool:
    """Whether a measured speedup is most of the promised one: three quarters, as logarithms."""
    return measured >= theoretical**0.75


def verdict(theoretical: float, measured: float) -> str | None:
    """One line on a speedup that falls short of the MACs, None for one that does not."""
    if theoretical < 1.05 or keeps_up(measured, theoretical):
        return None
    return f"speedup {measured:.2f} for a MAC reduction of {theoretical:.2f}"


def reasons(
    spec: Spec, dense: Spec, zeros: float, shape: tuple[int, ...], engine: str, machine: Machine
) -> list[str]:
    """What keeps the network `spec` from being as much faster than `dense` as it is smaller.

    `zeros` is the share of its weights that are zero, `shape` that of the batch.
    """
    found = []
    if zeros > 0.01:
        found.append(f"{zeros:.0%} of its parameters are zero, and dense kernels multiply zeros")
    if engine in IN_TORCH:  # what would be is not worth minutes of compiling
        multiple = hardware_multiple(machine.device.type, channel_groups(dense))
        wide = rounded(spec, multiple)
        thin = {**wide, "widths": dict.fromkeys(wide["widths"], 1)}
        own, bare, even = _times([spec, thin, wide], shape, engine, machine)
        if bare > 0.4 * own:
            told = "of its time remains with a single channel per layer (launch overhead)"
            found.append(f"{bare / own:.0%} {told}")
        if even < 0.95 * own and wide["widths"] != spec["widths"]:
            told = f"odd widths: rounded up to multiples of {multiple} it would take"
            found.append(f"{told} {even / own:.2f} of its time, with more channels")
        time, macs = _depthwise_shares(spec, shape, machine)
        if time > 1.5 * macs:
            found.append(f"depthwise layers are {macs:.0%} of its MACs, but {time:.0%} of its time")
    kept = _activations(dense, shape) / _activations(spec, shape)
    if not keeps_up(kept, cost_of(dense, shape[-1]).macs / cost_of(spec, shape[-1]).macs):
        found.append(f"the activations that its layers write shrank only {kept:.2f}x")
    return found


def rounded(spec: Spec, multiple: int) -> Spec:
    """The same network with every width rounded up to a multiple."""
    widths = {
        name: width if ".se.fc1" in name else -(-width // multiple) * multiple
        for name, width in spec["widths"].items()
    }
    return {**spec, "widths": widths, "pads": dict.fromkeys(spec["pads"], 0)}


def _times(specs: list[Spec], shape: tuple[int, ...], engine: str, machine: Machine) -> list[float]:
    x = torch.randn(shape)
    calls = [ENGINES[engine](build(spec).eval(), machine)(x) for spec in specs]
    return [timing.median for timing in interleaved(calls, machine.device, seconds=0.5)]


def _depthwise_shares(spec: Spec, shape: tuple[int, ...], machine: Machine) -> tuple[float, float]:
    """Of its time and of its MACs."""
    if spec["arch"] != "resnet_de":
        return 0.0, 0.0
    times = layer_times(build(spec).eval(), torch.randn(shape), machine)
    rows = [row for row in layer_costs(spec, shape[-1]) if row.macs]
    depthwise = [row for row in rows if row.name.endswith("conv2_dw")]
    time = sum(times[row.name] for row in depthwise) / sum(times[row.name] for row in rows)
    return time, sum(row.macs for row in depthwise) / sum(row.macs for row in rows)


def _activations(spec: Spec, shape: tuple[int, ...]) -> int:
    rows = layer_costs(spec, shape[-1])
    return sum(row.shape[0] * row.size**2 for row in rows if row.kind == "conv")
