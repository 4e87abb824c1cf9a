"""A small study on disk, with numbers that can be checked by hand."""

import json

import pytest

MACHINE = {"device": "cpu", "name": "a processor", "threads": 2, "precision": "bf16"}
NET = {"dataset": "cifar100", "arch": "resnet", "depth": 20}
SHAPE = {**NET, "width": 16, "shortcut": "A", "image_size": 32}
WIDTHS = {"conv1": 16, "layer1.0.conv1": 16, "layer1.0.conv2": 16}
NETWORK = "cifar100 resnet20"


def cell(study, label):
    return next(c for c in study.cells if c.label == label)


def edit(folder, change):
    file = folder / "result.json"
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


def write(folder, stage, tag=None, *, seed=0, top1=70.0, share=1.0, nonzero=None, parent=None,
          curve=(), speeds=(), shape=SHAPE, **arguments):  # fmt: skip
    """One run folder. `share` is that of the dense MACs and parameters which are left."""
    folder.mkdir(parents=True)
    method = tag.split("-")[0] if tag else None
    result = {
        **{"stage": stage, "checkpoint": str(folder / "model.pt"), "seed": seed, "loss": 1.0},
        **{k: shape[k] for k in NET},
        **{"method": method, "ratio": None, "tag": tag, "top1": top1, "seconds": 1.0},
        **{"params": round(1e6 * share), "macs": round(4e7 * share)},
        "nonzero_params": round(1e6 * (nonzero or share)),
        "effective_macs": round(4e7 * (nonzero or share)),
        "widths": {name: max(1, round(w * share)) for name, w in WIDTHS.items()},
        "machine": MACHINE,
        "sha256": f"hash of {folder.name} {tag} {seed}",
        "arguments": {**shape, "seed": seed, "parent": parent, "epochs": 5, **arguments},
    }
    (folder / "result.json").write_text(json.dumps(result) + "\n")
    if curve:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve))
    if speeds:
        speeds = [{"reference": f"hash of baseline None {seed}", **row, "sha256": result["sha256"]}
                  for row in speeds]  # fmt: skip
        (folder / "benchmark.json").write_text(json.dumps(list(speeds)) + "\n")
    return result["sha256"]


def timing(engine="fused", images_per_second=1000.0, speedup=1.0, theoretical=1.0, **more):
    return {
        **{"engine": engine, "precision": "bf16", "machine": MACHINE, "batch_size": 128},
        **{"latency_ms": 2.0 / speedup, "latency_ms_p10": 1.0, "latency_ms_p90": 3.0},
        **{"images_per_second": images_per_second * speedup, "latency_speedup": speedup},
        **{"measured_speedup": speedup, "theoretical_speedup": theoretical},
        **{"speedup_ratio": speedup / theoretical, "logit_difference_share": 0.01},
        **{"file_bytes": 4_000_000, "compressed_bytes": 3_000_000, "peak_memory_bytes": 10**8},
        **{"remarks": [], "compared_with": "baseline", **more},
    }


@pytest.fixture
def study(tmp_path):
    """Dense, three methods and two controls at two ratios; two seeds for l1 and random."""
    root = tmp_path / "runs/cifar100/resnet20"
    epochs = [{"epoch": e, "top1": 50.0 + 3 * e} for e in range(1, 6)]
    soft = [{**row, "flipped": 8 - 2 * i, "regrown": i, "overlap": 0.5 + i / 8}
            for i, row in enumerate(epochs)]  # fmt: skip
    for seed in (0, 1):
        folder = root / f"seed{seed}"
        dense = write(folder / "baseline", "baseline", seed=seed, top1=70.0 + seed, curve=epochs,
                      speeds=[timing(), timing("eager", 500.0)])  # fmt: skip
        for tag, top1, share, nonzero, speedup in (
            ("l1-0.3", 69.9, 0.7, None, 1.05),
            ("l1-0.6", 66.0, 0.4, None, 2.4),
            ("l1-0.6-random", 64.0, 0.4, None, 2.4),
            ("weight-0.6", 70.2, 1.0, 0.4, 1.0),
            ("soft-0.6", 60.0, 0.4, None, 2.4),
        ):
            if seed == 1 and not tag.startswith("l1-0.6"):
                continue
            why = ["batch 128: not faster"] if speedup < 1.01 else []
            rows = [timing(speedup=speedup, theoretical=1 / (nonzero or share), remarks=why)]
            pruned = write(folder / tag / "pruned", "pruned", tag, seed=seed, top1=10.0,
                           share=share, nonzero=nonzero, parent=dense, epochs=None)  # fmt: skip
            write(folder / tag / "finetuned", "finetuned", tag, seed=seed, top1=top1 + seed,
                  share=share, nonzero=nonzero, parent=pruned, speeds=rows, recipe="default",
                  curve=soft if "soft" in tag else epochs)  # fmt: skip
        write(folder / "l1-0.6" / "like", "like", "l1-0.6", seed=seed, top1=65.0 + seed,
              share=0.4, curve=epochs, budget="epochs", parent=pruned)  # fmt: skip
    heat = {"layer1.0.conv1": {"0.3": 1.0, "0.6": 5.0}, "layer1.stream": {"0.3": 2.0, "0.6": 9.0}}
    (root / "seed0/sensitivity").mkdir()
    (root / "seed0/sensitivity/l1-inner-abc.json").write_text(json.dumps({"drops": heat}))
    return tmp_path / "runs"
