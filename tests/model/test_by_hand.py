"""What is written out by hand does the same arithmetic as PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.by_hand import GradientDescent, HandwrittenMLP, MyReLU, TwoLayer, sigmoid, softmax
from model.layers import initialize
from model.net import MLP, DataSpec, DynamicNet, TaskError

SPEC = DataSpec((1, 28, 28), 10, "classification", classes=tuple("0123456789"))
VALUES = DataSpec((1000,), 10, "regression")


def test_the_network_by_hand_equals_the_one_of_layers() -> None:
    by_hand, layers = HandwrittenMLP(SPEC), MLP(SPEC, hidden_sizes=[256], activation="sigmoid", output="softmax")
    with torch.no_grad():
        layers.fc1.weight.copy_(by_hand.w1.T), layers.fc1.bias.copy_(by_hand.b1.normal_())
        layers.fc2.weight.copy_(by_hand.w2.T), layers.fc2.bias.copy_(by_hand.b2.normal_())
    images = torch.randn(64, 1, 28, 28)
    torch.testing.assert_close(by_hand(images), layers(images))
    torch.testing.assert_close(by_hand(images).sum(dim=1), torch.ones(64))
    assert by_hand.w1.shape == (784, 256) and by_hand.w2.shape == (256, 10)


def test_sigmoid_and_softmax_equal_pytorchs() -> None:
    x = torch.randn(20, 7, dtype=torch.float64) * 5
    torch.testing.assert_close(sigmoid(x), torch.sigmoid(x))
    torch.testing.assert_close(softmax(x), torch.softmax(x, dim=1))
    assert torch.isfinite(softmax(torch.tensor([[1000.0, 0.0]]))).all()


def test_my_relu_is_clamp_in_value_and_gradient() -> None:
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(50, dtype=torch.float64)
    assert torch.autograd.gradcheck(MyReLU.apply, (x,))
    torch.testing.assert_close(MyReLU.apply(x), x.clamp(min=0))
    (own,) = torch.autograd.grad(MyReLU.apply(x) @ weights, x)
    (clamped,) = torch.autograd.grad(x.clamp(min=0) @ weights, x)
    torch.testing.assert_close(own, clamped)


def test_two_layer_by_clamp_and_by_function_have_the_same_gradients() -> None:
    networks = []
    for relu in ("clamp", "function"):
        torch.manual_seed(0)
        networks.append(TwoLayer(VALUES, relu=relu))
    x, y = torch.randn(64, 1000), torch.randn(64, 10)
    for network in networks:
        (network(x) - y).square().sum().backward()
    for left, right in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad)
    with pytest.raises(TaskError, match="clamp or function"):
        TwoLayer(VALUES, relu="gelu")


def test_gradient_descent_is_sgd() -> None:
    torch.manual_seed(0)
    left, right = nn.Linear(5, 3), nn.Linear(5, 3)
    right.load_state_dict(left.state_dict())
    steps = GradientDescent(left.parameters(), lr=0.1), torch.optim.SGD(right.parameters(), lr=0.1)
    for _ in range(3):
        x = torch.randn(8, 5)
        for network, optimizer in zip((left, right), steps, strict=True):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(left.weight, right.weight)


def test_dynamic_net_draws_its_depth_and_shares_its_weights() -> None:
    network = DynamicNet(VALUES)
    depths: list[int] = []
    network.middle.register_forward_hook(lambda *_: depths.append(1))
    x = torch.randn(4, 1000)

    def draw(seed: int) -> list[int]:
        torch.manual_seed(seed)
        counts = []
        for _ in range(40):
            depths.clear()
            network.train()(x)
            counts.append(len(depths))
        return counts

    assert set(draw(0)) == {0, 1, 2, 3}
    assert draw(0) == draw(0) != draw(1)
    network.eval()
    assert torch.equal(network(x), network(x))
    # In evaluation: the mean over the four depths.
    hidden, outputs = torch.relu(network.first(x)), []
    for _ in range(4):
        outputs.append(network.last(hidden))
        hidden = torch.relu(network.middle(hidden))
    torch.testing.assert_close(network(x), torch.stack(outputs).mean(dim=0))


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("normal", 0.01),
        ("kaiming", (2 / 784) ** 0.5),
        ("xavier", (2 / (784 + 500)) ** 0.5),
        ("zero_bias", (1 / 3 / 784) ** 0.5),
    ],
)
def test_initial_statistics_are_what_was_asked_for(name: str, deviation: float) -> None:
    network = MLP(SPEC, hidden_sizes=[500])
    initialize(network, name)
    weight = network.fc1.weight.detach()
    assert abs(float(weight.mean())) < 0.02 * deviation
    assert float(weight.std()) == pytest.approx(deviation, rel=0.02)
    assert not network.fc1.bias.any() and not network.fc2.bias.any()


def test_default_initialisation_changes_nothing_and_a_wrong_one_is_refused() -> None:
    network = MLP(SPEC)
    before = [parameter.clone() for parameter in network.parameters()]
    initialize(network, "default")
    assert all(map(torch.equal, before, network.parameters()))
    with pytest.raises(TaskError, match="xavier"):
        initialize(network, "xavieer")
    with pytest.raises(TaskError, match="has none"):
        initialize(TwoLayer(VALUES), "normal")
