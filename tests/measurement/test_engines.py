"""Every engine computes what the network computes."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from measurement.engines import ENGINES, folded
from measurement.memory import peak_memory
from measurement.timing import layer_times, profile
from models import layer_costs, new_spec
from tests.conftest import lively
from utils.device import Machine

CPU = Machine(torch.device("cpu"), torch.float32)
SPECS = [new_spec(20, 7, width=5), new_spec(26, 7, arch="resnet_de", width=4)]


@pytest.mark.parametrize(
    ("engine", "spec"), [*((engine, SPECS[1]) for engine in ENGINES), ("fused", SPECS[0])]
)
def test_logits(engine, spec):
    network = lively(spec)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    bind = ENGINES[engine](network, CPU)
    for batch in (1, 3):
        x = torch.randn(batch, 3, 16, 16)
        with torch.inference_mode():
            wanted = network(x)
        near = 0.1 * wanted.abs().max().item() if engine.endswith("int8") else 1e-4
        torch.testing.assert_close(bind(x)(), wanted, rtol=1e-4, atol=near)
    for key, tensor in network.state_dict().items():  # the network itself is left alone
        assert torch.equal(tensor, before[key])
    assert network.conv1.weight.requires_grad


def test_folding_leaves_no_batchnorm():
    network = folded(lively(SPECS[1]))
    assert not [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_bf16_is_used_where_the_machine_says_so():
    network = lively(SPECS[0])
    x = torch.randn(4, 3, 16, 16)
    wanted = network(x)
    for engine in ("eager", "fused"):
        found = ENGINES[engine](network, CPU._replace(dtype=torch.bfloat16))(x)()
        assert found.dtype == torch.bfloat16
        error = (found.float() - wanted).abs().max()
        assert 1e-4 < error < 0.1 * wanted.abs().max()


def test_many_compiled_networks_stay_compiled():
    """Dynamo gives up on a function after eight versions, and falls back to eager in silence."""
    torch._dynamo.reset()
    counter = CompileCounter()
    x = torch.randn(2, 3, 8, 8)
    torch._dynamo.config.recompile_limit = 8
    ENGINES["compile"](lively(new_spec(20, 2, width=1)), CPU)  # raises the limit
    for classes in range(2, 12):
        network = lively(new_spec(20, classes, width=1))
        torch.compile(network, backend=counter, dynamic=False)(x)
    assert counter.frame_count == 10


def test_every_layer_is_timed_and_operators_are_named():
    network = lively(SPECS[1])
    x = torch.randn(2, 3, 16, 16)
    times = layer_times(network, x, CPU)
    assert times.keys() == {row.name for row in layer_costs(SPECS[1])}
    assert all(seconds > 0 for seconds in times.values())
    seen = profile(ENGINES["eager"](network, CPU)(x), CPU.device)
    assert seen["cuda_ms"] is None
    assert 0 < sum(operator["cpu_ms"] for operator in seen["operators"]) <= seen["cpu_ms"]
    assert any("conv" in operator["name"] for operator in seen["operators"])


def test_memory_is_that_of_inference():
    network = lively(new_spec(20, 10))

    def memory(engine, batch):
        return peak_memory(network, (batch, 3, 32, 32), CPU, engine)

    small = memory("fused", 8)
    # Twice 16 channels of 32 x 32 pixels in float32 live at once: 8 MB for 64 images.
    assert memory("fused", 128) - small > 8e6
    assert memory("openvino", 8) < 6e7  # and not the 150 MB and more that exporting it takes
