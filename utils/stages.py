"""What the stages share: finding their input, their data, and handing over their output."""

from __future__ import annotations

import argparse
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import adopt, build, cost_of, layer_costs, new_spec, spec_of

from . import checkpoint as checkpoints
from .checkpoint import Checkpoint, CheckpointError
from .cli import versions
from .data import Data, load
from .files import sha256
from .machine import Machine, describe
from .runs import Run

DEFAULTS = {"dataset": "cifar100", "arch": "resnet", "depth": 50, "seed": 0, "image_size": 32}


def fill_defaults(args: argparse.Namespace) -> None:
    """Replace what was not given by its default, for a stage without an input checkpoint."""
    for name, default in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    spec = new_spec(args.depth, 1, arch=args.arch, width=args.width, shortcut=args.shortcut)
    args.width, args.shortcut = spec["width"], spec["shortcut"]


def _on_cpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return value.cpu() if isinstance(value, torch.Tensor) else value


def network_name(arguments: dict[str, Any]) -> str:
    """<arch><depth>; a width or shortcut that is not the default joins it."""
    arch, depth = arguments["arch"], arguments["depth"]
    usual, name = new_spec(depth, 1, arch=arch), f"{arch}{depth}"
    if arguments["width"] != usual["width"]:
        name += f"w{arguments['width']}"
    if arguments["shortcut"] != usual["shortcut"]:
        name += f"-{arguments['shortcut']}"
    return name


def default_folder(args: argparse.Namespace) -> Path:
    """runs/<dataset>/<network>/seed<k>."""
    return Path("runs", args.dataset, network_name(vars(args)), f"seed{args.seed}")


def read_input(
    args: argparse.Namespace, path: Path | None, default: str
) -> tuple[Path, Checkpoint]:
    """The checkpoint file at `path`, or in the folder `default` beside this run's others.

    Returns the file and its content. Fills the flags that the checkpoint decides, and
    `args.parent` with the hash of the file. Raises ValueError for a flag that contradicts it.
    """
    if path is None:
        flags = argparse.Namespace(**vars(args))
        fill_defaults(flags)
        path = default_folder(flags) / default
    file = checkpoints.find(path)
    content = checkpoints.load_file(file)
    if not checkpoints.is_checkpoint(content):
        if not hasattr(args, "mean"):
            raise CheckpointError(f"{file}: not a checkpoint of this project; prune it first")
        content = _adopt(content, file, args)
    checkpoint = checkpoints.validate(content, file)
    spec, data = checkpoint["spec"], checkpoint["data"]
    found = {key: spec[key] for key in ("arch", "depth", "width", "shortcut")}
    found |= {"dataset": data["dataset"], "image_size": data["image_size"]}
    found |= {name: data[name] for name in ("mean", "std") if hasattr(args, name)}
    for name, value in found.items():
        given = getattr(args, name)
        if given not in (None, value):
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {given} contradicts {file}, which has {value}")
        setattr(args, name, value)
    if args.seed is None:
        args.seed = checkpoint["history"][-1]["seed"] if checkpoint["history"] else 0
    args.parent = sha256(file)
    return file, checkpoint


def _adopt(content: Any, file: Path, args: argparse.Namespace) -> Checkpoint:
    """A network trained elsewhere as the checkpoint that it never had."""
    try:
        spec, state_dict = adopt(content, args.shortcut)
        build(spec, state_dict)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}") from None
    if (args.mean is None) != (args.std is None):
        raise ValueError("--mean and --std go together")
    description = {
        "dataset": args.dataset or DEFAULTS["dataset"],
        "classes": None,
        "mean": args.mean,
        "std": args.std,
        "image_size": args.image_size or DEFAULTS["image_size"],
    }
    return {
        "format": checkpoints.FORMAT,
        "stage": "elsewhere",
        "spec": spec,
        "state_dict": state_dict,
        "data": description,
        "pruning": None,
        "metrics": {},
        "history": [],
    }


def trained_with(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The training flags of the dense network that a checkpoint descends from, if it tells."""
    stages = ("baseline", "scratch", "like")
    told = [e["arguments"] for e in checkpoint["history"] if e["stage"] in stages]
    return told[0] if told else None


def require_finished(checkpoint: Checkpoint, file: Path) -> None:
    """Raise ValueError for a network that is set up for a pruning which training has yet to do."""
    if checkpoint["pruning"] and "plan" in checkpoint["pruning"]:
        method = checkpoint["pruning"]["method"]
        raise ValueError(f"{file}: its {method} pruning happens in finetune.py; run that first")


def output_folder(args: argparse.Namespace, default: str, source: Path | None = None) -> Path:
    """--save, or `default` beside this run's others; ValueError if the input `source` is there."""
    folder = args.save or default_folder(args) / default
    if folder.resolve() == args.data.resolve():
        raise ValueError(f"--save {folder} is where the images are; choose another folder")
    if source and source.resolve() == (folder / "model.pt").resolve():
        raise ValueError(f"{folder} holds the input of this stage; choose another --save")
    return folder


def load_data(args: argparse.Namespace, checkpoint: Checkpoint | None = None) -> Data:
    """The data of a stage; with a checkpoint, normalised as its network was trained.

    `args.train_images` takes a random subset of the training images. Raises ValueError if the
    classes are not those of the network.
    """
    data = load(args.dataset, args.data, args.image_size)
    wanted = getattr(args, "train_images", None)
    if wanted and wanted < len(data.train.labels):
        data = data._replace(train=data.train.draw(wanted, seed=0))
    if checkpoint is None:
        return data
    known, classes = checkpoint["data"], checkpoint["spec"]["num_classes"]
    if classes != len(data.classes) or known["classes"] not in (None, data.classes):
        theirs = known["classes"] or [f"{classes} classes"]
        odd = sorted(set(theirs) ^ set(data.classes))[:5]
        raise ValueError(
            f"--dataset {args.dataset} --data {args.data} has {len(data.classes)} classes, the "
            f"network {classes}; not in both: {', '.join(odd)}"
        )
    return data._replace(mean=known["mean"] or data.mean, std=known["std"] or data.std)


def costs(network: nn.Module, image_size: int) -> dict[str, float]:
    """Parameters and MACs; and what is left of them if zero weights could be left out.

    `effective_macs` is theoretical: dense kernels multiply zeros like any other number.
    """
    spec, parameters = spec_of(network), network.named_parameters()
    nonzero = {name: torch.count_nonzero(values).item() for name, values in parameters}
    left = sum(
        row.macs * (nonzero[f"{row.name}.weight"] / prod(row.shape))
        for row in layer_costs(spec, image_size)
    )
    counted = {"nonzero_params": sum(nonzero.values()), "effective_macs": round(left)}
    return {**cost_of(spec, image_size)._asdict(), **counted}


def hand_over(
    run: Run,
    args: argparse.Namespace,
    machine: Machine,
    stage: str,
    model: nn.Module,
    data: Data,
    measured: dict[str, Any],
    parent: Checkpoint | None = None,
    pruning: dict[str, Any] | None = None,
    network: nn.Module | None = None,
) -> dict[str, Any]:
    """Write the checkpoint and the result of a stage; returns the result.

    `measured` holds at least top1, loss and seconds. What it costs is counted on `network`, if
    that is not the same as `model`: what `model` will be when its pruning ends.
    """
    spec, made_with = spec_of(model), versions()
    metrics = {**measured, **costs(network or model, data.image_size)}
    result = {
        "stage": stage,
        "checkpoint": str(run.folder / "model.pt"),
        "dataset": data.name,
        "arch": spec["arch"],
        "depth": spec["depth"],
        "method": pruning["method"] if pruning else None,
        "ratio": pruning["ratio"] if pruning else 0.0,
        "tag": pruning["name"] if pruning else None,
        "seed": args.seed,
        **metrics,
        "widths": spec_of(network or model)["widths"],
        "machine": describe(machine),
        "commit": made_with["commit"],
    }
    entry = {
        "stage": stage,
        "arguments": run.arguments,
        "seed": args.seed,
        "versions": made_with,
        "machine": describe(machine),
        "metrics": metrics,
        "parent": run.arguments.get("parent"),
    }
    checkpoint = {
        "format": checkpoints.FORMAT,
        "stage": stage,
        "spec": spec,
        "state_dict": {k: v.cpu().contiguous() for k, v in model.state_dict().items()},
        "data": data.description(),
        "pruning": _on_cpu(pruning),
        "metrics": metrics,
        "history": [*(parent["history"] if parent else []), entry],
    }
    return run.finish(checkpoint, result)
