"""One stage at work: its input, its data, and the run folder that it writes.

model.pt       the hand-over to the next stage
metrics.jsonl  one object per epoch
result.json    the line of standard output; written last, so it marks the stage as done
resume.pt      the state after the last whole epoch, while training is unfinished
"""

import contextlib
import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from os.path import realpath  # unlike Path.resolve never fails on links that loop
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from models import complete, cost_of, costs, spec_of
from pruning import PruningConfig, Record
from pruning.config import flag

from . import checkpoint as checkpoints
from . import elsewhere, format1
from .checkpoint import Checkpoint, CheckpointError
from .config import NetworkConfig, Recipe, RunConfig, fill
from .data import Data, load
from .device import Machine, describe, rank
from .files import locked, make_folder, plain, sha256, write_json, write_text
from .log import say

# What an error calls a field of an identity whose name is not that of its flag.
WORDS = {
    "parent": "the input checkpoint",
    "blocks": "the input checkpoint",
    "name": "--recipe or --budget",
    "folder": "--data",
}


# --------------------------------------------------------------------------- input


def network_for(given: Mapping[str, Any], parent: Checkpoint | None = None) -> NetworkConfig:
    """The network and data of a stage: those of the parent, or as `given`, or the defaults.

    Raises ValueError if what is given contradicts the parent.
    """
    if (given["mean"] is None) != (given["std"] is None):
        raise ValueError("--mean and --std go together")
    if parent is None:
        network = fill(NetworkConfig, given)
    else:
        network = parent.network_config()
        for name, known in _known(parent, network).items():
            if given.get(name) not in (None, *known):
                contradicted = f"contradicts {parent.file}, which has {known[0]}"
                raise ValueError(f"{flag(name)} {given[name]} {contradicted}")
        network = replace(network, train_images=given.get("train_images"))
        if parent.stage == "elsewhere":  # the file does not tell how it is to be read
            told = ("key", "bn_eps", "resize", "class_order", "mean", "std")
            told = {name: given[name] for name in told if given.get(name) is not None}
            network = fill(NetworkConfig, told, asdict(network))
    if network.dataset == "folder":
        network = replace(network, folder=str(directory(given.get("data"), parent).resolve()))
    return network


def _known(parent: Checkpoint, network: NetworkConfig) -> dict[str, tuple[Any, ...]]:
    """The values that flags may have, since a checkpoint has them."""
    names = ("dataset", "image_size", "arch", "depth", "width", "shortcut", "stem", "stride")
    known = {name: (getattr(network, name),) for name in names}
    known |= {name: (parent.data[name],) for name in ("mean", "std")}
    if parent.stage == "elsewhere":
        return known
    first = parent.history[0]["arguments"]["network"] if parent.history else {}
    known |= {name: (first.get(name),) for name in ("key", "bn_eps")}
    return {**known, "resize": (network.resize,), "class_order": parent.class_orders()}


def directory(given: Path | None, parent: Checkpoint | None) -> Path:
    """Where the images are: as `given`, or where those of the parent were, or "data"."""
    return given or (parent and parent.directory) or Path("data")


def default_folder(network: NetworkConfig, seed: int) -> Path:
    """runs/<dataset>/<network>/seed<k>."""
    return Path("runs", network.dataset, network.name, f"seed{seed}")


def output_folder(config: RunConfig, usual: Path, *inputs: Checkpoint | None) -> Path:
    """--save, or else `usual`; ValueError if the images or an input are there."""
    folder = config.save or usual
    if realpath(folder) == realpath(directory(config.data, inputs[0])):
        raise ValueError(f"--save {folder} is where the images are; choose another folder")
    old, known = folder / "model.pt", [one for one in inputs if one]
    if realpath(old) in [realpath(one.file) for one in known]:
        raise ValueError(f"{folder} holds an input of this stage; choose another --save")
    ancestors = [entry["parent"] for one in known for entry in one.history]
    if config.force and old.is_file() and sha256(old) in ancestors:
        raise ValueError(f"{folder} holds what an input was made from; choose another --save")
    return folder


def read_parent(path: Path | None, given: Mapping[str, Any], usual: str) -> Checkpoint:
    """The input of a stage: the checkpoint at `path`, or in `usual` beside this run's others.

    Raises CheckpointError if it cannot be read.
    """
    if path is None:
        path = default_folder(network_for(given), given["seed"] or 0) / usual
    parent = read(path, given)
    data, network = parent.data, parent.network_config()
    say(f"from {parent.file}: {network.name} for {data['dataset']}, {data['image_size']} pixels")
    return parent


def read(path: Path, given: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint at `path`, or a network trained elsewhere, with what is `given` of it.

    Raises CheckpointError if it cannot be read.
    """
    file = checkpoints.find(path)
    content = checkpoints.load_file(file)
    if checkpoints.is_checkpoint(content):
        return checkpoints.parse(content, file)
    return elsewhere.read(content, file, given)


def require_finished(checkpoint: Checkpoint) -> None:
    """Raise ValueError for a network that is set up for a pruning which training has yet to do."""
    if checkpoint.pending:
        what = f"its {checkpoint.steps[-1].method} pruning happens in finetune.py; run that first"
        raise ValueError(f"{checkpoint.file}: {what}")


def data_for(
    network: NetworkConfig,
    place: Path | None,
    checkpoint: Checkpoint | None = None,
    download: bool = True,
) -> Data:
    """The data of a stage; with a checkpoint, normalized as its network was trained.

    `train_images` takes a random subset of the training images. Raises ValueError if the classes
    are not those of the network.
    """
    moved = not place and network.dataset != "folder"
    place = directory(place, checkpoint)
    if moved and not place.is_dir():
        place = Path("data")
    order = network.class_order
    if checkpoint and checkpoint.data["classes"]:
        order = order or "strings"
    how = network.image_size, network.resize, order
    data = load(network.dataset, place, *how, download)
    wanted = network.train_images
    if wanted and wanted < len(data.train.labels):
        data = data._replace(train=data.train.draw(wanted, seed=0))
    if network.mean and network.std:
        data = data._replace(mean=list(network.mean), std=list(network.std))
    if checkpoint is None:
        return data
    known, count = checkpoint.data, checkpoint.spec["num_classes"]
    ours = [unicodedata.normalize("NFC", name) for name in known["classes"] or []]
    if count != len(data.classes) or ours not in ([], data.classes):
        odd = sorted(set(ours) ^ set(data.classes))[:5] if ours else []
        told = f"{len(data.classes)} classes, the network {count}"
        if odd:
            told += f"; not in both: {', '.join(odd)}"
        elif ours:
            told += ", in another order"
        raise ValueError(f"--dataset {network.dataset} (in {place}) has {told}")
    return data._replace(mean=known["mean"] or data.mean, std=known["std"] or data.std)


# ---------------------------------------------------------------------- run folder


@dataclass
class Outcome:
    """What a stage made. `measured` holds at least top1, loss and seconds."""

    model: nn.Module  # handed over
    measured: dict[str, Any]
    pruning: Record | None = None
    network: nn.Module | None = None  # what `model` will be when its pruning ends, if not the same


class Run(contextlib.AbstractContextManager):
    """One stage at work in its folder, where no other process may work meanwhile.

    `result` is set if the stage is done, `state` if it was interrupted. Only the process of
    rank 0 writes.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], machine: Machine, force: bool = False
    ) -> None:
        """Enter `folder`. `identity` is all that determines the outcome, as plain data.

        With `force`, what the folder holds is ignored, and replaced once there is something to
        replace it. Raises ValueError if the folder was made with another identity.
        """
        self.folder = folder
        self.model, self.resume = folder / "model.pt", folder / "resume.pt"
        self.identity = plain(identity)
        self.machine = machine
        self.result: dict[str, Any] | None = None
        self.state: dict[str, Any] | None = None
        self.forced = self._force = force
        self._held = contextlib.ExitStack()
        self._missing = [path for path in (folder, *folder.parents) if not path.exists()]
        found: list[Any] = [None]
        if rank() == 0:
            try:
                found = [self._enter()]
            except Exception as error:
                found = [error]
        if dist.is_initialized():
            dist.broadcast_object_list(found)  # the others follow what rank 0 found
        if isinstance(found[0], Exception):
            raise found[0]
        self.result = found[0]
        if self.result is None and not force and self.resume.is_file():
            self.state = self._unfinished()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # nothing came of it: leave no empty folders
            for path in self._missing if rank() == 0 else ():
                path.rmdir()
        self._held.close()

    def _enter(self) -> dict[str, Any] | None:
        """Hold the folder, unless the stage is done; then, its result."""
        if self.folder.is_file():
            raise ValueError(f"--save {self.folder} is no run folder; choose another")
        for name in ("model.pt", "metrics.jsonl", "result.json", "resume.pt"):
            if (file := self.folder / name).exists() and not file.is_file():
                raise ValueError(f"{file} is no file; remove it, or choose another --save")
        # A finished stage is read without the lock: a process with --force may hold it just now.
        with contextlib.suppress(OSError, CheckpointError):
            if (self.folder / "result.json").is_file():
                result = self._finished(held=False)
                if result and not self.resume.exists():
                    return result
        make_folder(self.folder)
        try:
            self._held.enter_context(locked(self.folder, seconds=0))
        except BlockingIOError:
            message = "another process is at work in this folder; wait, or choose another --save"
            raise OSError(f"{self.folder}: {message}") from None
        for left_over in self.folder.glob(".*.tmp"):  # of a process killed while it wrote
            left_over.unlink()
        result = self._finished(held=True)
        if result:
            self.resume.unlink(missing_ok=True)  # killed just before it was removed
        return result

    def _finished(self, held: bool) -> dict[str, Any] | None:
        """The result of the stage, if it is done and need not be done again.

        The checkpoint tells it; result.json is written anew where it is lost, damaged or old, if
        the folder is `held`.
        """
        file, known = self.folder / "result.json", {}
        if self._force or not self.model.is_file():
            return None
        if self.resume.exists() and not file.is_file():  # killed before it wrote it
            return None
        content = checkpoints.load_file(self.model, "--force starts over")
        if not checkpoints.is_checkpoint(content):
            problem = "not of this project; choose another --save, or start over with --force"
            raise ValueError(f"{self.model} is {problem}")
        checkpoint = checkpoints.parse(content, self.model)
        if not checkpoint.history:
            raise CheckpointError(f"{self.model}: lacks its history; --force starts over")
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            known = dict(json.loads(file.read_text()))
        if known.get("sha256", checkpoint.sha256) != checkpoint.sha256:
            problem = f"not the file that {file.name} beside it is of; remove the wrong one of both"
            raise CheckpointError(f"{self.model}: {problem}")
        self._compare(checkpoint.history[-1]["arguments"])
        result = self._tell(checkpoint) | {"sha256": checkpoint.sha256}
        if "widths" not in result:  # of an older file
            if checkpoint.pending and "widths" not in known:
                return None  # it does not tell what it will be
            result["widths"] = known.get("widths", checkpoint.spec["widths"])
        if result != {**known, "checkpoint": result["checkpoint"]}:  # the folder may have moved
            if not held:
                return None
            with contextlib.suppress(OSError):
                write_json(file, result)
        return result

    def _unfinished(self) -> dict[str, Any]:
        """What `save_state` saved."""
        state = checkpoints.load_file(self.resume, "--force starts over")
        checkpoints.require_intact(self.resume, "--force starts over")
        try:
            if "hooks" in state:
                state = format1.unfinished(state)
            self._compare(state["arguments"])
            return state | ({"spec": complete(state["spec"])} if "spec" in state else {})
        except (AttributeError, KeyError, TypeError):
            raise CheckpointError(f"{self.resume}: damaged; --force starts over") from None

    def _compare(self, made_with: dict[str, Any]) -> None:
        old, new = (dict(_leaves(identity)) for identity in (made_with, self.identity))
        differing = {
            name.rpartition(".")[2]: f"was {_show(old.get(name))}, is {_show(new.get(name))}"
            for name in sorted(old.keys() | new.keys())
            if plain(old.get(name)) != new.get(name)
        }
        if differing:
            lines = [f"{WORDS.get(name, flag(name))} {words}" for name, words in differing.items()]
            raise ValueError(
                f"{self.folder} was made with other arguments: {'; '.join(lines)}. "
                "Choose another folder with --save, or start over with --force"
            )

    def _replace(self) -> None:
        """Now there is something new: what `force` ignored goes, the mark of being done first.

        Not the network, which is there until another takes its place.
        """
        if self._force:
            for name in ("result.json", "resume.pt", "metrics.jsonl"):
                (self.folder / name).unlink(missing_ok=True)
        self._force = False

    def save_state(self, state: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Record the end of an epoch: everything needed to go on from here, and the log."""
        if rank() == 0:
            self._replace()
            state = {**state, "rows": rows, "arguments": self.identity}
            checkpoints.save_plain(self.resume, state)
            self.save_log(rows)

    def save_log(self, rows: list[dict[str, Any]]) -> None:
        """Write the log anew: one line for each epoch."""
        if rank() == 0:
            lines = [json.dumps(plain(row)) + "\n" for row in rows]
            write_text(self.folder / "metrics.jsonl", "".join(lines))

    def hand_over(
        self, stage: str, outcome: Outcome, data: Data, parent: Checkpoint | None = None
    ) -> dict[str, Any]:
        """Write the checkpoint, then the result that marks the stage as done; returns it."""
        model, record = outcome.model, outcome.pruning
        network = outcome.network or model
        made_with, machine = versions(), describe(self.machine)
        told = self.identity.get("recipe") or self.identity.get("pruning") or self.identity
        seed = told.get("seed", 0)
        metrics = {**outcome.measured, **(record.state.figures() if record else {})}
        metrics |= {**costs(network, data.image_size), "widths": spec_of(network)["widths"]}
        entry = {"stage": stage, "arguments": self.identity, "seed": seed, "metrics": metrics}
        entry |= {"versions": made_with, "machine": machine, "parent": self.identity["parent"]}
        history = [*(parent.history if parent else []), entry]
        state = {key: tensor.cpu().contiguous() for key, tensor in model.state_dict().items()}
        network_and_data = spec_of(model), state, data.description()
        checkpoint = Checkpoint(stage, *network_and_data, record, metrics, history)
        result = self._tell(checkpoint)
        if rank() == 0:
            self._replace()
            checkpoint.save(self.model)
            result["sha256"] = sha256(self.model)  # what later stages call parent
            write_json(self.folder / "result.json", result)
            self.resume.unlink(missing_ok=True)
        return result

    def _tell(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What result.json says of a checkpoint."""
        record, made = checkpoint.pruning, checkpoint.history[-1]
        dense = cost_of(checkpoint.dense, checkpoint.image_size)
        result = {"stage": checkpoint.stage, "checkpoint": str(self.model)}
        result["dataset"] = checkpoint.data["dataset"]
        result |= {key: checkpoint.spec[key] for key in ("arch", "depth")}
        result["method"] = record.steps[-1].method if record else None
        result |= {"ratio": record.ratio if record else 0.0, "seed": made["seed"]}
        result |= {"pruning": [step.as_dict() for step in checkpoint.steps]}
        result |= {"control": checkpoint.control, "dense_params": dense.params}
        result |= {"dense_macs": dense.macs, **checkpoint.metrics}
        result |= {"machine": made["machine"], "commit": made["versions"]["commit"]}
        return plain({**result, "arguments": self.identity})


def _leaves(identity: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names, like "recipe.lr", and values of an identity."""
    kinds = {"network": NetworkConfig, "recipe": Recipe, "pruning": PruningConfig}
    for name, value in identity.items():
        if name in kinds:  # an older version had fewer options
            with contextlib.suppress(TypeError, ValueError, AttributeError):
                value = {**plain(asdict(kinds[name]())), **value}
        if isinstance(value, dict):
            yield from ((f"{name}.{field}", own) for field, own in value.items())
        else:
            yield name, value


def _show(value: Any) -> str:
    return value[:8] if isinstance(value, str) and len(value) == 64 else str(value)


def versions() -> dict[str, str | None]:
    """What produced a checkpoint: library versions and, in a git checkout, the commit."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = None
    with contextlib.suppress(OSError):  # no git
        told = subprocess.run(git, capture_output=True, text=True, errors="replace").stdout
        commit = told.strip() or None
    return {"torch": str(torch.__version__), "python": sys.version.split()[0], "commit": commit}
