"""Networks trained elsewhere: a plain state dict becomes a spec and a state dict that fits."""

import re
from typing import Any

import torch
from torch import Tensor

from .resnet import BASIC, BOTTLENECK, STEMS, THIN, Spec, block_plans

_RENAMED = ((r"^module\.", ""), (r"\.shortcut\.", ".downsample."), (r"^linear\.", "fc."))


def import_weights(content: Any, shortcut: str | None = None) -> tuple[Spec, dict[str, Tensor]]:
    """Spec and state dict of a torchvision-style ResNet, read off the names and shapes.

    `content` is a state dict, or a dict that holds one under "state_dict", "model" or "net".
    Shapes do not show where a parameter-free shortcut puts its zeros: `shortcut` says "A" (both
    sides, the default) or "A-end". Raises ValueError if it is no such network.
    """
    for key in ("state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = isinstance(content, dict) and all(isinstance(v, Tensor) for v in content.values())
    if not tensors or not all(isinstance(key, str) for key in content):
        raise ValueError("neither a checkpoint of this project nor a state dict")
    state = {}
    for key, tensor in content.items():
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        state[key] = tensor.float() if tensor.is_floating_point() else tensor
    return _read(state, shortcut), _with_counters(state)


def _read(state: dict[str, Tensor], shortcut: str | None) -> Spec:
    for key in ("conv1.weight", "fc.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"):
        if key not in state:
            raise ValueError(f"not a torchvision-style ResNet: {key} is missing")
        if state[key].dim() != (2 if key == "fc.weight" else 4):
            raise ValueError(f"not a torchvision-style ResNet: {key} has {state[key].dim()} axes")
    blocks: dict[int, set[int]] = {}
    for key in state:
        if match := re.match(r"layer(\d+)\.(\d+)\.", key):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    counts = tuple(len(blocks[stage]) for stage in sorted(blocks))
    family = BOTTLENECK if "layer1.0.conv3.weight" in state else {**BASIC, **THIN}
    depth = next((d for d, stages in family.items() if stages == counts), None)
    if depth is None:
        raise ValueError(f"no known ResNet has {counts} blocks in its stages")
    kernel = state["conv1.weight"].shape[-1]
    stem = next((name for name, (size, _) in STEMS.items() if size == kernel), None)
    if stem is None:
        raise ValueError(f"a stem of {kernel}x{kernel} pixels is not known")
    projects = "layer2.0.downsample.0.weight" in state
    if shortcut not in (None, "B") if projects else shortcut == "B":
        kind = "projections" if projects else "no parameters"
        raise ValueError(f"--shortcut {shortcut}, but the shortcuts of the network have {kind}")
    shortcut = "B" if projects else shortcut or "A"
    convs = {k[: -len(".weight")]: v for k, v in state.items() if v.dim() == 4}
    spec: Spec = {
        "arch": "resnet",
        "depth": depth,
        "num_classes": state["fc.weight"].shape[0],
        "width": convs["conv1"].shape[0],
        "stem": stem,
        "shortcut": shortcut,
        "widths": {name: weight.shape[0] for name, weight in convs.items()},
        "pads": {},
    }
    for plan in block_plans(spec):
        if plan.shortcut == "pad":
            new = convs[f"{plan.name}.conv2"].shape[0] - convs[f"{plan.name}.conv1"].shape[1]
            spec["pads"][f"{plan.name}.downsample"] = new // 2 if shortcut == "A" else 0
    return spec


def _with_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Old files lack BatchNorm's step counters, which nothing computes with."""
    norms = [key[: -len("running_mean")] for key in state if key.endswith("running_mean")]
    return {f"{name}num_batches_tracked": torch.tensor(0) for name in norms} | state
