"""Networks by their published sizes, and PowerSign against a loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from ala_metric.training import PowerSign, SmallConvNet, models


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet32", 464_154), ("wrn", 36_479_194), ("densenet", 769_162)]
)
def test_published_sizes(name: str, parameters: int) -> None:
    """He et al. 2016 (0.46 M), Zagoruyko & Komodakis 2016 (36.5 M), Huang et al. 2017 (0.8 M)."""
    with torch.device("meta"):
        network = models.make(name, 10, (3, 32, 32))
    assert sum(weight.numel() for weight in network.parameters()) == parameters


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.ResNet(7, depth=8, inputs=1),
        lambda: models.WideResNet(7, depth=10, width=2, dropout=0.3, inputs=1),
        lambda: models.DenseNet(7, depth=10, growth=4, inputs=1),
        lambda: models.Perceptron(7, (1, 8, 8), hidden=32),
    ],
)
def test_learns_a_batch_by_heart(make: object) -> None:
    torch.manual_seed(0)
    network = make()
    images, labels = torch.rand(7, 1, 8, 8), torch.arange(7)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    first = None
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert network(images).shape == (7, 7)
    assert loss.item() < first / 2


def test_shortcuts_without_parameters() -> None:
    """Option A: with zero weights in the bodies a ResNet passes its pixels on."""
    network = models.ResNet(3, depth=8)
    block = network.features[4]  # the first of the second stage
    for weight in block.body.parameters():
        torch.nn.init.zeros_(weight)
    images = torch.rand(2, 16, 8, 8)
    out = block.eval()(images)
    assert torch.equal(out[:, 8:24], images[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_names_and_depths_are_checked() -> None:
    assert isinstance(models.make("convnet", 4, (1, 8, 8)), SmallConvNet)
    with pytest.raises(ValueError, match="name must be one of"):
        models.make("alexnet", 10, (3, 32, 32))
    for make, depth in ((models.ResNet, 31), (models.WideResNet, 27), (models.DenseNet, 99)):
        with pytest.raises(ValueError, match=r"depth of \w+ must be 6 n"):
            make(10, depth=depth)


def test_nasnet_says_what_is_missing() -> None:
    try:
        import timm  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install timm"):
            models.make("nasnet", 10, (3, 32, 32))


def test_powersign_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
    expected, average = weight.detach().tolist(), [0.0] * 5
    optimizer = PowerSign([weight], lr=0.1, total_steps=4, weight_decay=0.01)
    sign = lambda x: (x > 0) - (x < 0)  # noqa: E731
    for step, gradient in enumerate(gradients):
        weight.grad = gradient.clone()
        optimizer.step()
        decay = (1 + math.cos(math.pi * min(step / 4, 1))) / 2
        for i in range(5):
            g = float(gradient[i]) + 0.01 * expected[i]
            average[i] = 0.9 * average[i] + 0.1 * g
            expected[i] -= 0.1 * math.exp(decay * sign(g) * sign(average[i])) * g
    torch.testing.assert_close(weight.detach(), torch.tensor(expected, dtype=torch.float64))
    for bad in ({"lr": -1.0}, {"beta": 1.0}, {"total_steps": 0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            PowerSign([weight], **bad)


def test_powersign_resumes() -> None:
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [PowerSign([weight], lr=0.1, total_steps=9) for weight in weights]
    for step in range(5):
        if step == 3:
            weights[1].data.copy_(weights[0].data)
            optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        for weight, optimizer in list(zip(weights, optimizers))[: 1 if step < 3 else 2]:
            weight.grad = torch.tensor([1.0, -2.0, 0.5]) * (-1) ** step
            optimizer.step()
    assert torch.equal(*weights)
