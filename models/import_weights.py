"""Networks trained elsewhere: a state dict becomes a spec, and weights that fit it.

What shapes do not show is assumed, and said.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .layer_names import in_order, name_layers, some
from .resnet import CONVS, STEMS, Spec, block_plans, build

EPS = 1e-5  # of our BatchNorms
COUNTERS = ("total_ops", "total_params", "n_averaged")  # that tools leave behind
STEP = "num_batches_tracked"
DEEPEST = 8  # dicts around the weights


class Contradiction(ValueError):
    """What was said of the weights is not so."""


class Imported(NamedTuple):
    """What a file holds, and in words what was left out or assumed."""

    spec: Spec
    state_dict: dict[str, Tensor]
    masks: dict[str, Tensor]  # of weights that are held at zero, by layer
    notes: list[str]


def import_weights(
    content: Any,
    *,
    key: str | None = None,
    stem: str | None = None,
    shortcut: str | None = None,
    stride: str | None = None,
    eps: float | None = None,
) -> Imported:
    """Read a trained ResNet, whatever its layers are called.

    `content` is a state dict, or dicts around some; `key` says which, if there are several. The
    rest is what names and shapes do not show: the `stem` (a name of STEMS), where a shortcut
    without parameters puts its zeros ("A": both sides, "A-end"), which convolution of a bottleneck
    has the `stride` ("3x3" or "1x1"), and the `eps` of the BatchNorms. Raises ValueError for what
    is no such network, Contradiction (one of them) if what is said of it is not so.
    """
    found, notes = _find(content, key)
    tensors = _tensors(found, notes)
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    masks = _merge_masks(tensors)
    _complete(tensors, layers)
    names = name_layers(tensors, in_order(layers))
    state = _renamed(tensors, names)
    _fold(state, eps or EPS)
    spec, assumed = _spec(state, stem, shortcut, stride)
    build(spec, state)
    assumed += [f"eps {EPS:g} (--bn-eps)"] if eps is None else []
    stages = " + ".join(map(str, spec["blocks"]))
    notes.append(f"{stages} {spec['kind']} blocks; assumed: {', '.join(assumed) or 'nothing'}")
    return Imported(spec, state, {names[layer]: mask for layer, mask in masks.items()}, notes)


def _find(content: Any, key: str | None) -> tuple[dict, list[str]]:
    """The state dict somewhere in `content`."""
    found = dict(_state_dicts(content, ""))
    if not found:
        raise ValueError("neither a checkpoint of this project nor a state dict of a ResNet")
    if key is not None and key not in found:
        where = (
            f"under {some([*filter(None, found)])}" if any(found) else "at the top; leave it out"
        )
        raise Contradiction(f"--key {key}: the weights are {where}")
    chosen = next(iter(found)) if key is None else key
    several = f"weights under {some([*found])}; read: {chosen} (--key)"
    return found[chosen], [several] if key is None and len(found) > 1 else []


def _state_dicts(content: Any, at: str) -> Iterator[tuple[str, dict]]:
    """All that look like one, by their place: "model", "ema.state_dict"."""
    if not isinstance(content, dict) or at.count(".") > DEEPEST:
        return
    names = [name for name, value in content.items() if isinstance(value, Tensor)]
    weights = [name for name in names if str(name).split(".")[-1] in ("weight", "weight_orig")]
    if any(content[name].dim() == 4 for name in weights):
        yield at, content
    for name, value in content.items():
        yield from _state_dicts(value, f"{at}.{name}".lstrip("."))


def _tensors(found: dict, notes: list[str]) -> dict[str, Tensor]:
    """In float32, without what computes nothing, and without a prefix that all share."""
    tensors, left = {}, []
    for name, value in found.items():
        last = str(name).split(".")[-1]
        named = isinstance(name, str) and isinstance(value, Tensor)
        if named and last not in (*COUNTERS, STEP):
            plain = value.layout == torch.strided and not value.is_quantized and not value.is_meta
            if not plain or not value.numel():
                raise ValueError(f"{name} is no plain tensor; save the weights as dense floats")
            tensors[name] = value.float()
            if last == "running_var" and not (tensors[name] >= 0).all():
                raise ValueError(f"{name} has negative values or NaN; the file is damaged")
        elif last != STEP:
            left.append(str(name))
    if left:
        notes.append(f"left out: {some(left)}")
    names = [name.split(".") for name in tensors]
    while all(len(parts) > 2 and parts[0] == names[0][0] for parts in names):
        names = [parts[1:] for parts in names]
    return dict(zip(map(".".join, names), tensors.values(), strict=True))


def _merge_masks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply the masks that torch.nn.utils.prune left, in place; returns them by layer."""
    masks = {}
    for name in [name for name in tensors if name.endswith(".weight_mask")]:
        layer = name.rpartition(".")[0]
        if f"{layer}.weight_orig" not in tensors:
            raise ValueError(f"{name} has no weight_orig beside it")
        masks[layer] = tensors.pop(name) != 0
        tensors[f"{layer}.weight"] = tensors.pop(f"{layer}.weight_orig") * masks[layer]
    return masks


def _complete(tensors: dict[str, Tensor], layers: Sequence[str]) -> None:
    """Give every layer a weight and a bias, in place, if it can do without in PyTorch."""
    for layer in layers:
        mean, weight = (tensors.get(f"{layer}.{n}") for n in ("running_mean", "weight"))
        if mean is not None:  # BatchNorm with affine=False
            tensors.setdefault(f"{layer}.weight", torch.ones_like(mean))
            tensors.setdefault(f"{layer}.bias", torch.zeros_like(mean))
        elif weight is None:
            alone = [name for name in tensors if name.rpartition(".")[0] == layer]
            raise ValueError(f"a ResNet has no parameter like {some(alone)}")
        elif weight.dim() == 2:
            tensors.setdefault(f"{layer}.bias", torch.zeros(len(weight)))


def _renamed(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    state = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias", "running_mean", "running_var"):
            raise ValueError(f"a ResNet has no parameter like {name}")
        state[f"{names[layer]}.{kind}"] = tensor
    return state


def _fold(state: dict[str, Tensor], eps: float) -> None:
    """Move the biases of convolutions, and another eps, into the BatchNorms, in place.

    gamma * (y + b - mean) / sqrt(var + eps): the bias is subtracted from the mean, and gamma is
    scaled by the quotient of the roots.
    """
    for name in [name for name in state if name.endswith("running_var")]:
        norm, variance = name.rpartition(".")[0], state[name]
        conv = norm.replace("bn", "conv") if "bn" in norm else norm.replace("sample.1", "sample.0")
        if (bias := state.pop(f"{conv}.bias", None)) is not None:
            state[f"{norm}.running_mean"] = state[f"{norm}.running_mean"] - bias
        if eps != EPS:
            scale = ((variance + EPS) / (variance + eps)).sqrt()
            state[f"{norm}.weight"] = state[f"{norm}.weight"] * scale
        state[f"{norm}.{STEP}"] = torch.tensor(0)


def _spec(
    state: dict[str, Tensor], stem: str | None, shortcut: str | None, stride: str | None
) -> tuple[Spec, list[str]]:
    """The spec, and what it assumes."""
    convs = {name.removesuffix(".weight"): w for name, w in state.items() if w.dim() == 4}
    blocks: dict[str, int] = {}
    for name in convs:
        if name.endswith(".conv1"):
            stage = name.split(".")[0]
            blocks[stage] = blocks.get(stage, 0) + 1
    kind = "bottleneck" if "layer1.0.conv3" in convs else "basic"
    kernel = convs["conv1"].shape[-1]
    fitting = [name for name, one in STEMS.items() if one.kernel == kernel]
    if not fitting:
        raise ValueError(f"a stem of {kernel}x{kernel} pixels is not known")
    if stem not in (None, *fitting):
        raise Contradiction(f"--stem {stem}: the first convolution has {kernel}x{kernel} pixels")
    usual = "imagenet" if kernel == 7 else "cifar"
    spec: Spec = {
        "arch": "resnet",
        "depth": 2 + CONVS[kind] * sum(blocks.values()),
        "num_classes": state["fc.weight"].shape[0],
        "width": convs["conv1"].shape[0],
        "blocks": list(blocks.values()),
        "kind": kind,
        "stride": stride or "3x3",
        "stem": stem or usual,
        "shortcut": "B",
        "widths": {name: weight.shape[0] for name, weight in convs.items()},
        "pads": {},
    }
    channels = spec["width"]
    for plan in block_plans(spec):
        width = spec["widths"][f"{plan.name}.{plan.convs[-1].name}"]
        if plan.shortcut == "identity" and (plan.stride > 1 or width != channels):
            if width < channels:
                raise ValueError(f"{plan.name} has fewer channels than before, and no projection")
            spec["shortcut"] = shortcut or "A"
            new = width - channels
            spec["pads"][f"{plan.name}.downsample"] = 0 if shortcut == "A-end" else new // 2
        channels = width
    pads = bool(spec["pads"])
    if shortcut and pads != (shortcut != "B"):
        told = "no parameters" if pads else "projections"
        raise Contradiction(f"--shortcut {shortcut}, but the shortcuts of the network have {told}")
    assumed = [] if stem else [f"stem {usual} (--stem)"]
    assumed += [f"shortcut {spec['shortcut']} (--shortcut)"] if pads and not shortcut else []
    strided = kind == "bottleneck" and len(blocks) > 1 and not stride
    return spec, assumed + ["stride on 3x3 (--stride)"] * strided
