"""Files of format 1, which said everything in one flat dict of flags, as those of format 2."""

from dataclasses import fields
from typing import Any

from pruning import resolve
from pruning.config import PruningConfig

from .config import NetworkConfig, Recipe, fill
from .files import plain

Flat = dict[str, Any]


def checkpoint(content: Flat) -> Flat:
    """The content of a checkpoint."""
    entries, old = content["history"], content["pruning"]
    told = [identity(entry["arguments"], entry["stage"], len(entries)) for entry in entries]
    history = [entry | {"arguments": new} for entry, new in zip(entries, told, strict=True)]
    if old:
        made = [e["arguments"] for e in entries if e["stage"] in ("pruned", "scratch")]
        steps = [_step(flat) for flat in made] or [_step(old["options"])]
        own = {key: old[key] for key in ("ratio", "dense", "share_cut")}
        steps_told = [step.as_dict() for step in steps]
        old = {"method": steps[-1].method, "steps": steps_told, **own, **state(old)}
    return {**content, "history": history, "pruning": old}


def identity(flat: Flat, stage: str, stages: int = 0) -> Flat:
    """What `arguments` are now: the configs of a run. `stages`: how many its checkpoint had."""
    known: Flat = {**flat, "folder": flat.get("data")}
    if stage == "pruned" and stages > 1:  # then these were read off the parent
        known |= {"mean": None, "std": None}
    made: Flat = {"network": plain(vars(fill(NetworkConfig, known))), "parent": flat.get("parent")}
    made["precision"] = flat["precision"]
    if stage in ("pruned", "scratch"):
        made["pruning"] = _step(flat).as_dict()
    if stage == "pruned":
        made["no_eval"] = bool(flat.get("no_eval"))
    else:
        name = "equal-flops" if flat.get("budget") == "flops" else flat.get("recipe")
        renamed = {"teacher": flat.get("teacher_hash"), "recalibrate": flat.get("reestimate_bn")}
        made["recipe"] = plain(vars(fill(Recipe, {"name": name, **renamed}, flat)))
    return made


def unfinished(content: Flat) -> Flat:
    """What an unfinished training saved."""
    flat, hooks = content.pop("arguments"), content.pop("hooks")
    stage = "finetuned" if "recipe" in flat else "like" if flat.get("parent") else "baseline"
    stage = "scratch" if stage == "baseline" and "name" in flat else stage
    method = state(hooks) if hooks else {}
    return {**content, "method": method, "arguments": identity(flat, stage)}


def state(old: Flat) -> Flat:
    """The state of a pruning method, as a checkpoint or an unfinished training held it."""
    plan = old.get("plan")
    kept = {k.replace(".stream", ".residual"): v for k, v in (old.get("kept") or {}).items()}
    new: Flat = {"kept": kept, "masks": old.get("masks") or {}, "pending": plan is not None}
    if plan and old["method"] == "soft":
        multiple = old["options"]["round_to"] or 1
        new |= {"final_ratio": plan["ratio"], "history": plan["history"], "multiple": multiple}
    elif plan:
        new |= {"layers": plan["layers"], "start": plan["start"] or {}}
    if "channels_removed" in old:
        new["channels_removed"] = old["channels_removed"]
    return new


def _step(flat: Flat) -> PruningConfig:
    given = {f.name: flat.get(f.name) for f in fields(PruningConfig)}
    skip = [name.replace(".stream", ".residual") for name in given["skip"] or []]
    ratio = tuple(given["ratio"]) if isinstance(given["ratio"], list) else given["ratio"]
    if given["target_latency"]:  # then it was what the device likes
        given["round_to"] = None
    return resolve({**given, "skip": skip, "ratio": ratio})
