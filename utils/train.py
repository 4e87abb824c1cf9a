"""One training loop for every stage."""

import copy
import math
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from models import build, spec_of
from pruning import Method, Record, State
from pruning.allocation import Kept
from pruning.surgery import cut, cut_tensors, mask_channels, verify

from .checkpoint import CheckpointError
from .config import LR_SCHEDULES, Recipe
from .data import Data, Split, augmented, epoch_batches, normalize, pad_for_crops
from .device import Machine, place, rank, world_size
from .log import say
from .run import Outcome, Run

EVAL_BATCH = 250
CHECKED = 16  # images that a cut is checked on
SAVED = ("model", "optimizer", "schedule")
CHECK_EVERY = 50  # steps between looks at the loss: each one waits for the device


class Diverged(Exception):
    """The loss is no longer a finite number."""


class Trained(NamedTuple):
    """What a training gives: the network to hand over, the state of its pruning, the log."""

    network: nn.Module
    state: State
    rows: list[dict[str, Any]]  # one for each epoch

    def outcome(self, record: Record | None) -> Outcome:
        """What is handed over and reported: the last epoch, whatever came before."""
        last, seconds = self.rows[-1], sum(row["seconds"] for row in self.rows)
        measured = {"top1": last["top1"], "loss": last["loss"], "seconds": seconds}
        return Outcome(self.network, measured, record and replace(record, state=self.state))


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    run: Run,
    method: Method | None = None,
    teacher: nn.Module | None = None,
) -> Trained:
    """Train `model`, in place until a pruning cuts it, going on from `run.state` if there is one.

    `method` takes part, and says what network is evaluated and handed over. With a `teacher` its
    softened logits join the loss. The state after each epoch is saved only if the loss is finite.
    Raises Diverged, with the last good state in the run folder.
    """
    machine, method = run.machine, method or Method()
    if run.state and run.state.get("spec", spec_of(model)) != spec_of(model):
        model = build(run.state["spec"])  # a pruning has cut it meanwhile
    images, test = (split.to(machine.device) for split in (data.train, data.test))
    images = images._replace(images=pad_for_crops(images.images))
    batch_size = min(recipe.batch_size, len(images.labels))
    if batch_size % world_size():
        problem = f"cannot be shared evenly by {world_size()} processes"
        raise ValueError(f"--batch-size {batch_size} {problem}")
    if batch_size < 2 * world_size():
        problem = f"a batch of {batch_size} for {world_size()} processes is too small for BatchNorm"
        raise ValueError(f"{problem}, which needs two images in each")
    steps = len(images.labels) // batch_size
    place(model, machine)
    training = _Training(model, recipe, machine, method, teacher, steps)
    seen = {"train": len(data.train.labels), "test": len(data.test.labels), "mean": data.mean}
    if run.state and run.state.get("images", seen) != seen:
        problem = "the images are not those that this training began with"
        raise ValueError(f"{run.folder}: {problem}; restore them, or start over with --force")
    try:
        rows = training.restore(run.state)
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{run.resume}: damaged ({told}); --force starts over") from None
    if rows:
        run.save_log(rows)  # a process killed after the state, and before the log, lacks a line
    method.on_start(model)
    training.prepare()

    def measure(network: nn.Module) -> tuple[float, float]:
        return evaluate(place(network, machine), data, machine, test)

    def finish() -> tuple[nn.Module, State]:
        network, state = method.finish(training.model)
        if method.recalibrates and network is not training.model:
            recalibrate(network, data, machine, recipe)
        return network, state

    for epoch in range(len(rows), recipe.epochs):
        start, lr = time.perf_counter(), training.schedule.get_last_lr()[0]
        drawn = (recipe.seed * 1_000_003 + epoch, recipe.augment, slice(rank(), None, world_size()))
        batches = epoch_batches(data, images, batch_size, *drawn)
        loss, top1 = training.epoch(batches, f"epoch {epoch + 1}")
        if not all(v.isfinite().all() for v in training.model.state_dict().values()):
            told = f"weights NaN or infinite after epoch {epoch + 1}"
            raise Diverged(f"{told}; try a lower --lr, with --force")
        row = {"epoch": epoch + 1, "lr": lr, "train_loss": loss, "train_top1": top1}
        row["images_per_second"] = steps * batch_size / (time.perf_counter() - start)
        progress = (epoch + 1) / recipe.epochs
        told = method.on_epoch(training.model, progress, rows, measure)
        if kept := method.to_cut(training.model, progress):
            training.cut(kept, data)
        if (epoch + 1) % recipe.eval_every == 0 or epoch + 1 == recipe.epochs:
            row["top1"], row["loss"] = measure(finish()[0])
            if not math.isfinite(row["loss"]):
                message = f"the test loss is NaN or infinite after epoch {epoch + 1}"
                raise Diverged(f"{message}; try a lower --lr, with --force")
        row |= {**told, "seconds": time.perf_counter() - start}
        rows.append(row)
        run.save_state({**training.state(), "images": seen}, rows)
        say(_line(rows, recipe.epochs))
    slim, state = method.finish(training.model)
    if slim is not training.model:  # before BatchNorm is recalibrated
        _check(mask_channels(training.on_cpu(), state.kept_channels()), slim, data)
    return Trained(*finish(), rows)


@dataclass
class _Training:
    """What changes while a network is trained, and one step of that."""

    model: nn.Module
    recipe: Recipe
    machine: Machine
    method: Method
    teacher: nn.Module | None
    steps: int  # of an epoch

    def __post_init__(self) -> None:
        recipe, total = self.recipe, self.recipe.epochs * self.steps
        if self.teacher is not None and recipe.compile:
            self.teacher = torch.compile(self.teacher)
        how = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "fused": True}
        parameters = self.model.parameters()
        self.optimizer = torch.optim.SGD(parameters, recipe.lr, nesterov=recipe.momentum > 0, **how)
        curve, start = LR_SCHEDULES[recipe.lr_schedule], recipe.lr_start
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: curve(start + (1 - start) * step / total)
        )

    def prepare(self) -> None:
        """Get ready to train the network as it is now."""
        self.forward = self.model
        if self.recipe.compile:
            # On a GPU, launching a thin layer takes longer than running it; a graph is one launch.
            graphs = self.machine.device.type == "cuda" and world_size() == 1
            mode = "reduce-overhead" if graphs else None
            self.forward = torch.compile(self.model, mode=mode)
        if world_size() > 1:
            self.forward = DistributedDataParallel(self.forward)

    def on_cpu(self) -> nn.Module:
        """The network as it is now, on the CPU and without gates."""
        weights = {name: tensor.cpu() for name, tensor in self.model.state_dict().items()}
        return build(spec_of(self.model), weights)

    def cut(self, kept: Kept, data: Data) -> None:
        """Cut channels out of the network and of its momentum; the schedule goes on.

        Raises RuntimeError if the cut network computes something else for training images, Diverged
        if its logits are not finite.
        """
        spec, moving = spec_of(self.model), self.optimizer.state
        buffers = {n: moving[p].get("momentum_buffer") for n, p in self.model.named_parameters()}
        momentum = cut_tensors(spec, kept, {n: b for n, b in buffers.items() if b is not None})
        whole = self.on_cpu()
        slim = cut(whole, kept)
        _check(mask_channels(whole, kept), slim, data)
        self.model = place(slim, self.machine)
        self.optimizer.param_groups[0]["params"] = list(self.model.parameters())
        moving.clear()
        for name, buffer in momentum.items():
            parameter = self.model.get_parameter(name)  # in whose order in memory it is copied
            own = torch.empty_like(parameter, requires_grad=False).copy_(buffer)
            moving[parameter] = {"momentum_buffer": own}
        self.prepare()

    def state(self) -> dict[str, Any]:
        """All that has changed so far, as plain types and tensors."""
        states = {name: getattr(self, name).state_dict() for name in SAVED}
        return {**states, "spec": spec_of(self.model), "method": vars(self.method.state)}

    def restore(self, saved: dict[str, Any] | None) -> list[dict[str, Any]]:
        """Go on from what an interrupted run saved, if there is any; returns its log."""
        if saved is None:
            return []
        for name in SAVED:
            getattr(self, name).load_state_dict(saved[name])
        for parameter in self.model.parameters():
            momentum = self.optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None and momentum.shape != parameter.shape:
                raise ValueError("a momentum does not fit its parameter")
        for name, tensor in self.model.state_dict().items():
            if not tensor.isfinite().all():
                raise ValueError(f"{name} holds NaN or infinite values")
        self.method.state = self.method.State.from_dict(saved["method"])
        say(f"going on after epoch {len(saved['rows'])}")
        return saved["rows"]

    def epoch(self, batches: Any, name: str) -> tuple[float, float]:
        """One pass over the batches: mean loss, and top-1 accuracy in percent while training."""
        self.model.train()
        hide = bool(rank()) or None  # None: shown on a terminal only
        lr, sums = self.schedule.get_last_lr()[0], 0.0
        for step, (x, y) in enumerate(tqdm(batches, name, self.steps, leave=False, disable=hide)):
            sums = sums + self.step(x, y)  # stays on the device; read now and then
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == self.steps:
                loss, top1 = _means(sums)
                if not math.isfinite(loss):
                    where = f"in {name} (learning rate {lr:.3g})"
                    remedy = "try a lower --lr, with --force"
                    raise Diverged(f"the loss became NaN or infinite {where}; {remedy}")
        for buffer in self.model.buffers() if world_size() > 1 else ():
            dist.broadcast(buffer, 0)  # BatchNorm's statistics differ; those of rank 0 are saved
        return loss, top1

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One update on a batch; what it adds to the running sums."""
        self.optimizer.zero_grad()  # first: replaying a graph overwrites the old gradients
        with self.machine.autocast():
            logits = self.forward(x).float()
        loss = F.cross_entropy(logits, y, label_smoothing=self.recipe.label_smoothing)
        if self.teacher is not None:
            loss = self.distill(loss, logits, x)
        loss.backward()
        self.method.on_gradients(self.model)
        self.optimizer.step()
        total = self.recipe.epochs * self.steps
        self.method.on_step(self.model, self.optimizer, self.schedule.last_epoch, total)
        self.schedule.step()
        return _tally(loss * len(y), logits, y)

    def distill(self, loss: Tensor, logits: Tensor, x: Tensor) -> Tensor:
        """The loss with the teacher's part: T^2 KL, weighted.

        Hinton et al. 2015 (arXiv 1503.02531), section 2.
        """
        t, weight = self.recipe.temperature, self.recipe.teacher_weight
        with torch.no_grad(), self.machine.autocast():
            theirs = self.teacher(x).float()
        ours, theirs = F.log_softmax(logits / t, 1), F.log_softmax(theirs / t, 1)
        soft = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return (1 - weight) * loss + weight * t * t * soft


def _line(rows: list[dict[str, Any]], epochs: int) -> str:
    row = rows[-1]
    left = sum(r["seconds"] for r in rows) / len(rows) * (epochs - len(rows))
    told = f"  {left / 60:.0f} min left" if left > 90 else f"  {left:.0f} s left" if left else ""
    test = f"test {row['loss']:.3f} {row['top1']:5.2f} %  " if "top1" in row else ""
    return (
        f"epoch {row['epoch']:3d}/{epochs}  lr {row['lr']:.4f}  train {row['train_loss']:.3f} "
        f"{row['train_top1']:5.2f} %  {test}{row['images_per_second']:.0f} images/s{told}"
    )


def check(masked: nn.Module, slim: nn.Module, data: Data) -> float:
    """The largest difference between the logits of two networks for some training images.

    The first one is on the CPU. Raises RuntimeError if they do not compute the same, ValueError if
    logits are not finite.
    """
    x = normalize(data.train.images[:CHECKED], data.mean, data.std)
    difference, largest = verify(masked, copy.deepcopy(slim).cpu(), x)
    say(f"largest logit difference {difference:.2e} (largest logit {largest:.1f})")
    return difference


def _check(masked: nn.Module, slim: nn.Module, data: Data) -> None:
    """The same while training. Finite weights may come with BatchNorm statistics that are not."""
    try:
        check(masked, slim, data)
    except ValueError as error:
        raise Diverged(f"{error}; try a lower --lr, with --force") from None


def recalibrate(model: nn.Module, data: Data, machine: Machine, recipe: Recipe) -> None:
    """Average BatchNorm's statistics anew, in place, over images augmented as in training."""
    place(model, machine)
    with machine.autocast():
        update_bn(augmented(data, 2048, recipe.seed, recipe.augment), model, machine.device)


@torch.inference_mode()
def evaluate(
    model: nn.Module, data: Data, machine: Machine, split: Split | None = None
) -> tuple[float, float]:
    """Top-1 accuracy in percent and mean cross-entropy on `split`, by default the test images.

    The network must be on `machine.device`; its mode is left as it was.
    """
    split, training = split or data.test, model.training
    model.eval()
    sums = torch.zeros(3, device=machine.device)
    mine = [part[rank() :: world_size()].to(machine.device) for part in split]
    for images, y in zip(*(part.split(EVAL_BATCH) for part in mine), strict=True):
        with machine.autocast():
            logits = model(normalize(images, data.mean, data.std)).float()
        sums += _tally(F.cross_entropy(logits, y, reduction="sum"), logits, y)
    model.train(training)
    loss, top1 = _means(sums)
    return top1, loss


def _tally(loss: Tensor, logits: Tensor, y: Tensor) -> Tensor:
    correct = (logits.argmax(1) == y).sum()
    return torch.stack([loss.detach(), correct, torch.full_like(correct, len(y))])


def _means(sums: Tensor) -> tuple[float, float]:
    if world_size() > 1:
        sums = sums.clone()  # the caller goes on adding to its own
        dist.all_reduce(sums)
    loss, correct, count = sums.double().tolist()
    return loss / count, 100 * correct / count
