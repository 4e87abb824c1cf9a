"""Whatever the layers of a ResNet are called: which of them is which in ours?

Names say which convolutions stand together in a block, shapes what they do there.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor

# The kernels of a block's convolutions, and which of them are the chain: all but a 1x1 convolution
# on the shortcut, in front of the others or behind them.
PATTERNS = {
    (3, 3): slice(0, 2),
    (3, 3, 1): slice(0, 2),
    (1, 3, 3): slice(1, 3),
    (1, 3, 1): slice(0, 3),
    (1, 3, 1, 1): slice(0, 3),
    (1, 1, 3, 1): slice(1, 4),
}


def name_layers(tensors: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, str]:
    """Our name, like "layer1.0.conv1", for every layer, of those in the order of `layers`.

    `tensors` are its weights: "stage.1.conv.weight". Raises ValueError if they form no ResNet.
    """
    axes = {layer: tensors[f"{layer}.weight"].dim() for layer in layers}
    convs = [layer for layer in layers if axes[layer] == 4]
    norms = [layer for layer in layers if f"{layer}.running_mean" in tensors]
    linears = [layer for layer in layers if axes[layer] == 2]
    if odd := [layer for layer in layers if layer not in {*convs, *norms, *linears}]:
        raise ValueError(f"not a ResNet with BatchNorm: {some(odd)}")
    stems = [layer for layer in convs if tensors[f"{layer}.weight"].shape[1] == 3]
    least = min((layer.count(".") for layer in stems), default=0)
    stems = [layer for layer in stems if layer.count(".") == least]  # the others are in blocks
    if len(stems) != 1 or len(linears) != 1:
        problem = f"{len(stems)} convolutions of RGB images, {len(linears)} linear layers"
        raise ValueError(f"not a ResNet, which has one of each: {problem}")
    blocks = _blocks([layer for layer in convs if layer not in stems], norms, tensors)
    outside = set(norms) - {layer for block in blocks.values() for layer in block}
    if len(outside) != 1:
        where = some(sorted(outside)) or "none"
        raise ValueError(f"one BatchNorm outside of the blocks is wanted, behind the stem: {where}")
    names = {stems[0]: "conv1", outside.pop(): "bn1", linears[0]: "fc"}
    stage, index, before, parent = 0, 0, None, None
    nested = len({path.rpartition(".")[0] for path in blocks}) > 1
    for path, members in blocks.items():
        own = _in_block(path, members, tensors)
        last = next(layer for layer in reversed(own) if own[layer].startswith("conv"))
        width = len(tensors[f"{last}.weight"])
        above, projects = path.rpartition(".")[0], "downsample.0" in own.values()
        # A stage is a module of its own or, in a flat list of blocks, changes the width.
        starts = above != parent if nested else width != before
        if projects and stage and not starts:
            raise ValueError(f"{path} has a projection, but is not the first block of a stage")
        stage, index = (stage + 1, 0) if starts or not stage else (stage, index + 1)
        before, parent = width, above
        names |= {layer: f"layer{stage}.{index}.{name}" for layer, name in own.items()}
    return names


def some(names: Sequence[str]) -> str:
    """At most three of them."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def in_order(layers: Sequence[str]) -> list[str]:
    """The paths as they were registered, as far as a file shows, which may be in any order.

    Modules whose names differ by a number or a letter, like "conv1" and "conv2" or "conv_a" and
    "conv_b", follow that; others stand as they do in the file.
    """
    children: dict[str, list[str]] = {}
    for layer in layers:
        head, _, rest = layer.partition(".")
        children.setdefault(head, []).extend([rest] if rest else [])
    alike: dict[str, list[str]] = {}
    for head in children:
        alike.setdefault(re.sub(NUMBER, "#", head), []).append(head)
    ordered = []
    for heads in alike.values():
        for head in sorted(heads, key=_numbers):
            ordered += [head] if head in layers else []
            ordered += [f"{head}.{rest}" for rest in in_order(children[head])]
    return ordered


NUMBER = r"\d+|(?<=_)[a-z]$|^[a-z]$"


def _numbers(name: str) -> list[int]:
    return [int(n) if n.isdigit() else ord(n) for n in re.findall(NUMBER, name)]


def _blocks(
    convs: Sequence[str], norms: Sequence[str], tensors: Mapping[str, Tensor]
) -> dict[str, list[str]]:
    """The layers of each block by its path: the shortest at which convolutions fit a pattern."""
    for parts in range(1, 1 + max((layer.count(".") for layer in convs), default=0)):
        paths = {layer: ".".join(layer.split(".")[:parts]) for layer in (*convs, *norms)}
        blocks = {paths[layer]: [k for k in paths if paths[k] == paths[layer]] for layer in convs}
        if all(_kernels(members, tensors) in PATTERNS for members in blocks.values()):
            return blocks
    wanted = "modules with two to four convolutions, like layer1.0.conv1, layer1.0.conv2"
    raise ValueError(f"no blocks can be told apart in {some(convs)}; wanted are {wanted}")


def _kernels(members: Sequence[str], tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    weights = [tensors[f"{layer}.weight"] for layer in members]
    return tuple(weight.shape[-1] for weight in weights if weight.dim() == 4)


def _in_block(path: str, members: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The names of the layers inside of their block, the chain of convolutions last."""
    shapes = {layer: tensors[f"{layer}.weight"].shape for layer in members}
    convs = [layer for layer in members if len(shapes[layer]) == 4]
    norms = [layer for layer in members if len(shapes[layer]) == 1]
    if len(norms) != len(convs):
        raise ValueError(f"{path} has {len(convs)} convolutions and {len(norms)} BatchNorms")
    chain, names = convs[PATTERNS[_kernels(members, tensors)]], {}
    for one, two in pairwise(chain):
        if shapes[one][0] > shapes[two][1] and shapes[one][0] % shapes[two][1] == 0:
            raise ValueError(f"{two} is a grouped convolution, which is not supported")
    if extra := [layer for layer in convs if layer not in chain]:
        beside = [n for n in norms if n.rpartition(".")[0] == extra[0].rpartition(".")[0] != path]
        forms = [re.sub(NUMBER, "#", layer) for layer in norms]
        single = [n for n, form in zip(norms, forms, strict=True) if forms.count(form) == 1]
        if len(beside) == 1:
            norm = beside[0]
        elif len(single) == 1:  # bn_skip, beside bn1 and bn2
            norm = single[0]
        else:
            norm = norms[convs.index(extra[0])]
        names |= {extra[0]: "downsample.0", norm: "downsample.1"}
    own = [layer for layer in norms if layer not in names]
    names |= {layer: f"bn{number}" for number, layer in enumerate(own, start=1)}
    return names | {layer: f"conv{number}" for number, layer in enumerate(chain, start=1)}
