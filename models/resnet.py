"""One ResNet class for every depth, described by plain data.

A network is its *spec*, a dict of plain types:

    {"arch": "resnet", "depth": 50, "num_classes": 100, "width": 64, "blocks": [3, 4, 6, 3],
     "kind": "bottleneck", "stride": "3x3", "stem": "cifar", "shortcut": "B",
     "widths": {"conv1": 64, "layer1.0.conv1": 37, ...}, "pads": {}}

`widths` gives the output channels of every convolution by its name; `pads` says, for each
parameter-free shortcut, how many of the zero channels stand in front. A block with neither a
projection nor a pad has an identity shortcut. `new_spec` fills both for a dense network, `build` is
the only constructor, and `spec_of` reads the widths off the live modules, so that a spec cannot
drift from its weights.

Attribute names are torchvision's, so that state dicts trained elsewhere fit.
"""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Spec = dict[str, Any]

# Blocks per stage: He et al. 2016 (arXiv 1512.03385), table 1. Depth 26 is the bottleneck network
# with two blocks a stage. Other depths, 6n + 2, are the thin CIFAR family of section 4.2: n basic
# blocks in each of three stages.
BASIC = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
CONVS = {"basic": 2, "bottleneck": 3}  # of a block, in a network that is not separable
ARCHS = ("resnet", "resnet_de")  # _de: depthwise-separable, with squeeze-and-excitation
SE_REDUCTION = 16  # Hu et al. 2018 (arXiv 1709.01507), section 3
SHORTCUTS = ("A", "A-end", "B")  # zeros on both sides | zeros behind | 1x1 projection
STRIDES = ("3x3", "1x1")  # which convolution of a bottleneck has it: torchvision's | He et al.'s


class Stem(NamedTuple):
    """What comes before the first block."""

    kernel: int
    stride: int
    pool: bool  # a max-pool, 3x3 with stride 2


STEMS = {
    "cifar": Stem(3, 1, False),
    "cifar-pool": Stem(3, 1, True),
    "3x3s2": Stem(3, 2, False),
    "3x3s2-pool": Stem(3, 2, True),
    "7x7": Stem(7, 1, False),
    "7x7s2": Stem(7, 2, False),
    "imagenet": Stem(7, 2, True),
}


class ConvPlan(NamedTuple):
    """One convolution of a block and the BatchNorm behind it."""

    name: str
    bn: str
    kernel: int
    stride: int
    depthwise: bool = False


class BlockPlan(NamedTuple):
    """What a block is made of; everything about it but its widths."""

    name: str
    stage: int  # 1-based
    stride: int
    convs: tuple[ConvPlan, ...]
    shortcut: str  # "identity", "pad" or "projection"
    se: bool  # squeeze-and-excitation before the sum


def usual_blocks(depth: int) -> tuple[tuple[int, ...], str]:
    """Blocks per stage and kind of block of a depth. Raises ValueError if there is none."""
    if depth in BOTTLENECK:
        return BOTTLENECK[depth], "bottleneck"
    if depth in BASIC:
        return BASIC[depth], "basic"
    if depth < 8 or depth % 6 != 2:
        known = ", ".join(map(str, sorted([*BASIC, *BOTTLENECK])))
        raise ValueError(f"unknown depth; known are {known}, and 6n + 2: 8, 14, 20, 32, ...")
    return ((depth - 2) // 6,) * 3, "basic"


def is_usual(spec: Spec) -> bool:
    """Whether the blocks are those of the depth."""
    with contextlib.suppress(ValueError):
        return usual_blocks(spec["depth"]) == (tuple(spec["blocks"]), spec["kind"])
    return False


def block_plans(spec: Spec) -> list[BlockPlan]:
    """The blocks of a network in order: the one place that knows the topology."""
    plans = []
    for stage, count in enumerate(spec["blocks"], start=1):
        for index in range(count):
            name, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            shortcut = "identity"
            if f"{name}.downsample.0" in spec["widths"]:
                shortcut = "projection"
            elif f"{name}.downsample" in spec["pads"]:
                shortcut = "pad"
            separable = spec["arch"] == "resnet_de"
            convs = _convs(spec["kind"], separable, stride, spec["stride"])
            plans.append(BlockPlan(name, stage, stride, convs, shortcut, separable))
    return plans


def _convs(kind: str, separable: bool, stride: int, strided: str) -> tuple[ConvPlan, ...]:
    if kind == "basic":
        return ConvPlan("conv1", "bn1", 3, stride), ConvPlan("conv2", "bn2", 3, 1)
    first, second = (1, stride) if strided == "3x3" else (stride, 1)
    middle = (ConvPlan("conv2", "bn2", 3, second),)
    if separable:  # Howard et al. 2017 (arXiv 1704.04861), section 3.1
        depthwise = ConvPlan("conv2_dw", "bn2_dw", 3, second, depthwise=True)
        middle = (depthwise, ConvPlan("conv2", "bn2", 1, 1))
    return ConvPlan("conv1", "bn1", 1, first), *middle, ConvPlan("conv3", "bn3", 1, 1)


def new_spec(
    depth: int,
    num_classes: int,
    *,
    arch: str = "resnet",
    width: int | None = None,
    stem: str = "cifar",
    stride: str = "3x3",
    shortcut: str | None = None,
) -> Spec:
    """The spec of a dense network.

    `width` is the number of channels of the first stage (default 64; 16 for the thin family),
    `shortcut` defaults to B, and to A for the thin family, as in He et al. 2016.
    Raises ValueError for a combination that does not exist.
    """
    blocks, kind = usual_blocks(depth)
    if arch not in ARCHS:
        raise ValueError(f"unknown arch {arch!r}; known: {', '.join(ARCHS)}")
    if arch == "resnet_de" and depth not in BOTTLENECK:
        depths = ", ".join(map(str, BOTTLENECK))
        raise ValueError(f"resnet_de exists for the bottleneck depths only: {depths}")
    if stride != "3x3" and kind == "basic":
        raise ValueError(f"stride {stride} is for bottleneck blocks")
    for name, value, known in (("stem", stem, STEMS), ("stride", stride, STRIDES)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    thin = len(blocks) == 3
    shortcut = shortcut or ("A" if thin else "B")
    if shortcut not in SHORTCUTS:
        raise ValueError(f"unknown shortcut {shortcut!r}; known: {', '.join(SHORTCUTS)}")
    if shortcut != "B" and not thin:
        raise ValueError(f"shortcut {shortcut} exists for the thin depths only, not for {depth}")
    width = width or (16 if thin else 64)
    spec: Spec = {
        "arch": arch,
        "depth": depth,
        "num_classes": num_classes,
        "width": width,
        "blocks": list(blocks),
        "kind": kind,
        "stride": stride,
        "stem": stem,
        "shortcut": shortcut,
        "widths": {"conv1": width},
        "pads": {},
    }
    expansion, channels = 4 if kind == "bottleneck" else 1, width
    for block in block_plans(spec):
        inner = width * 2 ** (block.stage - 1)
        for conv in block.convs:
            last = conv is block.convs[-1]
            spec["widths"][f"{block.name}.{conv.name}"] = inner * expansion if last else inner
        if block.se:
            spec["widths"][f"{block.name}.se.fc1"] = max(1, inner * expansion // SE_REDUCTION)
            spec["widths"][f"{block.name}.se.fc2"] = inner * expansion
        if block.stride > 1 or inner * expansion != channels:
            if shortcut == "B":
                spec["widths"][f"{block.name}.downsample.0"] = inner * expansion
            else:  # such a block doubles its channels: a quarter of the new ones on either side
                spec["pads"][f"{block.name}.downsample"] = inner // 4 if shortcut == "A" else 0
        channels = inner * expansion
    return spec


def complete(spec: Spec) -> Spec:
    """The spec with what older versions left to the depth."""
    if "blocks" in spec:
        return spec
    blocks, kind = usual_blocks(spec["depth"])
    return {**spec, "blocks": list(blocks), "kind": kind, "stride": "3x3"}


class PadShortcut(nn.Module):
    """Shortcut A: every `stride`-th pixel, and zeros for the new channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, before: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = before
        self.after = out_channels - in_channels - before

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class SqueezeExcitation(nn.Module):
    """Scales each channel by what all channels look like on average (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(self.avgpool(x)))).sigmoid()


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    # The gradient of a strided depthwise convolution takes a CPU far longer in bf16: 27 ms, and
    # 0.7 ms in float32, for 32 channels of 32x32, batch 128, on two cores of a Xeon with AMX.
    bf16 = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if bf16 and conv.training and conv.groups > 1 and conv.stride != (1, 1):
        with torch.autocast("cpu", enabled=False):
            return conv(x.float())
    return conv(x)


class Block(nn.Module):
    """A basic or bottleneck block: a chain of convolutions and a shortcut around it."""

    def __init__(self, plan: BlockPlan, in_channels: int, spec: Spec) -> None:
        super().__init__()
        widths, self.convs, channels = spec["widths"], plan.convs, in_channels
        for conv in plan.convs:
            out = widths[f"{plan.name}.{conv.name}"]
            shape = {"kernel_size": conv.kernel, "stride": conv.stride, "padding": conv.kernel // 2}
            groups = channels if conv.depthwise else 1
            layer = nn.Conv2d(channels, out, **shape, groups=groups, bias=False)
            self.add_module(conv.name, layer)
            self.add_module(conv.bn, nn.BatchNorm2d(out))
            channels = out
        self.se: nn.Module | None = None
        if plan.se:
            self.se = SqueezeExcitation(channels, widths[f"{plan.name}.se.fc1"])
        self.downsample: nn.Module | None = None
        if plan.shortcut == "projection":
            out = widths[f"{plan.name}.downsample.0"]
            projection = nn.Conv2d(in_channels, out, 1, plan.stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out))
        elif plan.shortcut == "pad":
            before = spec["pads"][f"{plan.name}.downsample"]
            self.downsample = PadShortcut(in_channels, channels, plan.stride, before)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for conv in self.convs:
            out = getattr(self, conv.bn)(_convolve(getattr(self, conv.name), out))
            if conv is not self.convs[-1]:
                out = F.relu(out, inplace=True)
        if self.se is not None:
            out = self.se(out)
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class ResNet(nn.Module):
    """A ResNet whose every width is free. Input (n, 3, h, w), output logits (n, num_classes)."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        # What cannot be read back off the modules; see spec_of.
        self.fixed = {k: v for k, v in spec.items() if k not in ("num_classes", "widths", "pads")}
        widths, stem = spec["widths"], STEMS[spec["stem"]]
        channels = widths["conv1"]
        self.conv1 = nn.Conv2d(3, channels, stem.kernel, stem.stride, stem.kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem.pool else nn.Identity()
        self.stages = []
        for plan in block_plans(spec):
            stage = f"layer{plan.stage}"
            if stage not in self.stages:
                self.stages.append(stage)
                self.add_module(stage, nn.Sequential())
            getattr(self, stage).append(Block(plan, channels, spec))
            channels = widths[f"{plan.name}.{plan.convs[-1].name}"]
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, spec["num_classes"])

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(self.avgpool(x).flatten(1))


def build(spec: Spec, state_dict: dict[str, Tensor] | None = None) -> ResNet:
    """The network of a spec, freshly initialized, or with `state_dict` loaded strictly.

    With a state dict the tensors are taken over as they are (no copy, no initialization), so
    that rebuilding a large network takes milliseconds. Raises ValueError if anything does not
    fit.
    """
    if spec.get("arch") not in ARCHS or spec.get("kind") not in CONVS:
        raise ValueError(f"unknown network {spec.get('arch')} {spec.get('kind')}")
    try:
        if state_dict is None:
            model = ResNet(spec)
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            return model
        with torch.device("meta"):
            model = ResNet(spec)
        model.load_state_dict(state_dict, strict=True, assign=True)
    except KeyError as error:
        raise ValueError(f"the spec does not give {error}") from None
    except RuntimeError as error:
        problem = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()
        raise ValueError(f"weights and spec do not fit: {problem}") from None
    return model


def spec_of(model: nn.Module) -> Spec:
    """The spec of a live network; `build(spec_of(model))` has the same shapes."""
    modules = dict(model.named_modules())
    convs = {name: m for name, m in modules.items() if isinstance(m, nn.Conv2d)}
    pads = {name: m for name, m in modules.items() if isinstance(m, PadShortcut)}
    return {
        **model.fixed,
        "num_classes": model.fc.out_features,
        "widths": {name: conv.out_channels for name, conv in convs.items()},
        "pads": {name: pad.before for name, pad in pads.items()},
    }
