"""One training loop for every stage."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .data import Data, Split, epoch_batches, normalise, pad_for_crops
from .log import say
from .machine import Machine, place, rank, world_size
from .runs import Run

EVAL_BATCH = 250
CHECK_EVERY = 50  # steps between looks at the loss: each one waits for the device


class Recipe(NamedTuple):
    """How to train. `lr` is the peak; `batch_size` counts the images of all processes."""

    epochs: int
    batch_size: int
    lr: float
    lr_schedule: str
    momentum: float
    weight_decay: float
    label_smoothing: float
    augment: str
    lr_start: float = 0.0  # fraction of the schedule that is left out at its beginning
    temperature: float = 4.0  # of a teacher's logits
    teacher_weight: float = 0.9  # of its part in the loss


class Hooks(NamedTuple):
    """How a pruning method takes part in training. All are optional.

    `before_step()` runs between the gradients and the update, `after_step(optimizer, step, steps)`
    after it; `after_epoch(epoch, epochs, rows, measure)` returns what
    joins the log row; `finish()` gives the network whose accuracy counts. `state` is saved and
    restored with the rest.
    """

    before_step: Callable[[], None] | None = None
    after_step: Callable[[torch.optim.Optimizer, int, int], None] | None = None
    after_epoch: Callable[..., dict[str, Any]] | None = None
    finish: Callable[[], nn.Module] | None = None
    state: dict[str, Any] | None = None


NO_HOOKS = Hooks()
BASELINE = Recipe(
    epochs=100,
    batch_size=128,
    lr=0.1,
    lr_schedule="onecycle",
    momentum=0.9,
    weight_decay=5e-4,
    label_smoothing=0.1,
    augment="crop-flip",
)
# Li et al. 2017 (arXiv 1608.08710), section 4: 40 epochs at the last learning rate of training.
LI2017 = Recipe(40, 128, 0.001, "constant", 0.9, 1e-4, 0.0, "crop-flip")

# Learning rate as a fraction of its peak, after the fraction t in [0, 1) of all steps.
LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    # Smith & Topin 2018 (arXiv 1708.07120), with the usual cosine descent
    "onecycle": lambda t: 0.04 + 0.96 * t / 0.3 if t < 0.3 else _cosine((t - 0.3) / 0.7),
    # Loshchilov & Hutter 2017 (arXiv 1608.03983), without restarts
    "cosine": lambda t: _cosine(t),
    # He et al. 2016 (arXiv 1512.03385), section 4.2: a tenth at 1/2 and 3/4 of the way
    "multistep": lambda t: 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01,
    "constant": lambda t: 1.0,
}


def _cosine(t: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * t))


class Diverged(Exception):
    """The loss is no longer a finite number."""


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    run: Run,
    machine: Machine,
    seed: int,
    *,
    compile: bool = False,
    hooks: Hooks = NO_HOOKS,
    teacher: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place, going on from `run.state` if there is one; one log row per epoch.

    With a `teacher` its softened logits join the loss. The state after each epoch is saved only
    if the loss is finite. Raises Diverged, with the last good state in the run folder.
    """
    place(model, machine)
    images, test = (split.to(machine.device) for split in (data.train, data.test))
    images = images._replace(images=pad_for_crops(images.images, recipe.augment))
    batch_size = _fitting_batch(recipe.batch_size, len(images.labels))
    steps = len(images.labels) // batch_size
    optimizer, schedule = _optimizer(model, recipe, steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    rows = _restore(run, parts, hooks)
    trained = torch.compile(model) if compile else model
    if world_size() > 1:
        trained = DistributedDataParallel(trained)
    learn = _learner(trained, recipe, machine, teacher)
    update = _updater(learn, optimizer, schedule, recipe.epochs * steps, hooks)

    def measure(network: nn.Module) -> tuple[float, float]:
        return evaluate(place(network, machine), data, machine, test)

    for epoch in range(len(rows), recipe.epochs):
        start, lr, name = time.perf_counter(), schedule.get_last_lr()[0], f"epoch {epoch + 1}"
        model.train()
        drawn = (seed * 1_000_003 + epoch, recipe.augment, slice(rank(), None, world_size()))
        batches = epoch_batches(data, images, batch_size, *drawn)
        hide = bool(rank()) or None  # None: shown on a terminal only
        bar = tqdm(batches, name, steps, leave=False, disable=hide)
        loss, top1 = _train_epoch(update, bar, f"in {name} (learning rate {lr:.3g})")
        row = {"epoch": epoch + 1, "lr": lr, "train_loss": loss, "train_top1": top1}
        row["images_per_second"] = steps * batch_size / (time.perf_counter() - start)
        row |= _after_epoch(model, hooks, measure, rows, epoch, recipe.epochs)
        row["seconds"] = time.perf_counter() - start
        rows.append(row)
        states = {name: part.state_dict() for name, part in parts.items()}
        run.save_state({**states, "hooks": hooks.state}, rows)
        say(_line(row, recipe.epochs))
    return rows


def _restore(run: Run, parts: dict[str, Any], hooks: Hooks) -> list[dict[str, Any]]:
    """Load what an interrupted run saved, if there is any; returns its log."""
    if run.state is None:
        return []
    for name, part in parts.items():
        part.load_state_dict(run.state[name])
    if hooks.state is not None:
        hooks.state.clear()
        hooks.state.update(run.state["hooks"])
    say(f"going on after epoch {len(run.state['rows'])}")
    return run.state["rows"]


def _after_epoch(
    model: nn.Module,
    hooks: Hooks,
    measure: Callable[[nn.Module], tuple[float, float]],
    rows: list[dict[str, Any]],
    epoch: int,
    epochs: int,
) -> dict[str, Any]:
    """Let the method act, then evaluate the network that counts; what joins the log row."""
    for buffer in model.buffers() if world_size() > 1 else ():
        dist.broadcast(buffer, 0)  # BatchNorm's statistics differ; those of rank 0 are saved
    extra = hooks.after_epoch(epoch, epochs, rows, measure) if hooks.after_epoch else {}
    top1, loss = measure(hooks.finish() if hooks.finish else model)
    if not math.isfinite(loss):
        message = f"the test loss is NaN or infinite after epoch {epoch + 1}"
        raise Diverged(f"{message}; try a lower --lr, with --force")
    return {"loss": loss, "top1": top1, **extra}


def _line(row: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {row['epoch']:3d}/{epochs}  lr {row['lr']:.4f}  train loss {row['train_loss']:.3f} "
        f"top1 {row['train_top1']:5.2f}  test loss {row['loss']:.3f} top1 {row['top1']:5.2f}  "
        f"{row['images_per_second']:.0f} img/s"
    )


def _optimizer(
    model: nn.Module, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
        fused=True,
    )
    curve, total, start = LR_SCHEDULES[recipe.lr_schedule], recipe.epochs * steps, recipe.lr_start
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: curve(start + (1 - start) * step / total)
    )
    return optimizer, schedule


def _learner(
    model: nn.Module, recipe: Recipe, machine: Machine, teacher: nn.Module | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """A function that leaves the gradients of one batch in the parameters, and tallies it."""

    def learn(x: Tensor, y: Tensor) -> Tensor:
        with machine.autocast():
            logits = model(x).float()
        loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
        if teacher is not None:
            loss = _with_teacher(loss, logits, teacher, x, recipe, machine)
        loss.backward()
        return _tally(loss, logits, y)

    return learn


def _updater(
    learn: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    total: int,
    hooks: Hooks,
) -> Callable[[Tensor, Tensor], Tensor]:
    """A function that takes one of `total` steps on a batch, hooks included, and tallies it."""

    def update(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        tally = learn(x, y)
        if hooks.before_step:
            hooks.before_step()
        optimizer.step()
        if hooks.after_step:
            hooks.after_step(optimizer, schedule.last_epoch, total)
        schedule.step()
        return tally

    return update


def _with_teacher(
    loss: Tensor, logits: Tensor, teacher: nn.Module, x: Tensor, recipe: Recipe, machine: Machine
) -> Tensor:
    """Distillation (Hinton et al. 2015, arXiv 1503.02531, section 2): T^2 KL, weighted."""
    t, weight = recipe.temperature, recipe.teacher_weight
    with torch.no_grad(), machine.autocast():
        theirs = teacher(x).float()
    soft = F.kl_div(
        F.log_softmax(logits / t, 1),
        F.log_softmax(theirs / t, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - weight) * loss + weight * t * t * soft


@torch.no_grad()
def reestimate_batchnorm(
    model: nn.Module, data: Data, machine: Machine, augment: str, seed: int, images: int = 2048
) -> nn.Module:
    """Replace BatchNorm's running statistics by averages over training images, in place.

    Those of a network before it was cut do not fit the one after. Uses images augmented as in
    training; returns the network.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
    place(model, machine).train()
    count = min(images, len(data.train.labels))
    padded = data.train._replace(images=pad_for_crops(data.train.images, augment))
    batches = epoch_batches(data, padded, min(128, count), seed, augment)
    for x, _ in itertools.islice(batches, max(1, count // 128)):
        with machine.autocast():
            model(x.to(machine.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def outcome(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What a stage reports of its training: the last epoch, whatever came before."""
    seconds = sum(row["seconds"] for row in rows)
    return {"top1": rows[-1]["top1"], "loss": rows[-1]["loss"], "seconds": seconds}


def _train_epoch(
    update: Callable[[Tensor, Tensor], Tensor], batches: tqdm, where: str
) -> tuple[float, float]:
    """One pass over the batches: mean loss, and top-1 accuracy in percent while training."""
    sums = 0.0
    for step, (x, y) in enumerate(batches, start=1):
        sums = sums + update(x, y)  # stays on the device; read now and then
        if step % CHECK_EVERY == 0 or step == batches.total:
            loss, top1 = _means(sums)
            if not math.isfinite(loss):
                raise Diverged(
                    f"the loss became NaN or infinite {where}; try a lower --lr, with --force"
                )
    return loss, top1


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
            logits = model(normalise(images, data.mean, data.std)).float()
        sums += _tally(F.cross_entropy(logits, y), logits, y)
    model.train(training)
    loss, top1 = _means(sums)
    return top1, loss


def _tally(loss: Tensor, logits: Tensor, y: Tensor) -> Tensor:
    correct = (logits.argmax(1) == y).sum()
    return torch.stack([loss.detach() * len(y), correct, torch.full_like(correct, len(y))])


def _means(sums: Tensor) -> tuple[float, float]:
    if world_size() > 1:
        sums = sums.clone()  # the caller goes on adding to its own
        dist.all_reduce(sums)
    loss, correct, count = sums.double().tolist()
    return loss / count, 100 * correct / count


def _fitting_batch(batch_size: int, images: int) -> int:
    batch_size = min(batch_size, images)
    if batch_size % world_size():
        processes = f"{world_size()} processes"
        raise ValueError(f"--batch-size {batch_size} cannot be shared evenly by {processes}")
    return batch_size
