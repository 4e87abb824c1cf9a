"""Small real things for the tests: networks with lively BatchNorms, image trees."""

import os

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import nn
from torch.nn import functional as F

from models import build

# Examples are drawn afresh on a developer's machine, and are the same in every automatic run.
settings.register_profile("ours", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ours")
torch.set_num_threads(1)
# The commands that tests start share two cores with each other, and the same bits are expected
# of them again and again, which a GPU does not give. It has a file of its own:
#     TEST_CUDA=1 python -m pytest tests/chain/test_cuda.py
os.environ["OMP_NUM_THREADS"] = "1"
if "TEST_CUDA" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def lively(spec, seed=0):
    """A network in evaluation mode whose BatchNorms are far from the identity."""
    torch.manual_seed(seed)
    model = build(spec).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model


def step_on_noise(model, method, optimizer, step, steps):
    """One update as utils/train.py does it, on four random images of 10 classes."""
    x, y = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))
    optimizer.zero_grad()
    F.cross_entropy(model.train()(x), y).backward()
    method.on_gradients(model)
    optimizer.step()
    method.on_step(model, optimizer, step, steps)


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A class-folder tree: 3 classes, 12 training and 6 test images each, 10 x 12 pixels."""
    root = tmp_path_factory.mktemp("tree")
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 80, (12, 10, 3), np.uint8) + 80 * (
                    np.arange(3) == label
                )
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root
