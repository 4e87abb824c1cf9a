"""The peer of speed.md: training as PyTorch's examples write it. Float32, eager, a DataLoader.

    python docs/plain_training.py --depth 50

Prints the images per second of the steps after the first two.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import FakeData

sys.path.insert(0, str(Path(__file__).parents[1]))
from models import ARCHS, build, new_spec

WARMUP, STEPS = 2, 8


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--depth", type=int, default=50)
    p.add_argument("--arch", choices=ARCHS, default="resnet")
    p.add_argument("--width", type=int)
    p.add_argument("--batch-size", type=int, default=128)
    args, _ = p.parse_known_args()  # speed.sh has flags for the stages, too
    how = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.51, 0.49, 0.44), (0.27, 0.26, 0.28)),
    ]
    count = args.batch_size * (WARMUP + STEPS)
    images = FakeData(count, (3, 32, 32), 100, transforms.Compose(how))
    loader = DataLoader(images, args.batch_size, shuffle=True, num_workers=2)
    model = build(new_spec(args.depth, 100, arch=args.arch, width=args.width))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    for step, (x, y) in enumerate(loader):
        if step == WARMUP:
            start = time.perf_counter()
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    rate = STEPS * args.batch_size / (time.perf_counter() - start)
    print(f"training in plain PyTorch: {rate:.1f} images/s")


if __name__ == "__main__":
    main()
