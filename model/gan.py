"""Two networks against each other (Goodfellow et al. 2014), each with its own optimiser: points on a ring of Gaussians.

python train.py experiment=gan
The losses are those of R3GAN (Huang et al. 2024, arXiv:2501.05441), which keep the generator from dropping modes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train
from model.batching import Batch
from model.examples import Examples
from model.metrics import Metric
from model.net import DataSpec

SEEDS = {"train": 0, "val": 1, "test": 2}
FRAME = 240  # pixels a side of a frame of the GIF
NUM_SHOWN = 1000  # points in it

# ------------------------------------------------------------------------------------------------ the data, the measures


def centres(num_modes: int, radius: float) -> Tensor:
    """Of the Gaussians, [num_modes, 2]."""
    angles = torch.arange(num_modes) * (2 * math.pi / num_modes)
    return radius * torch.stack([angles.cos(), angles.sin()], dim=1)


def ring(
    split: str, root: str, *, num_modes: int = 8, radius: float = 1.0, noise: float = 0.05, num_examples: int = 2000
) -> Examples:
    """Points in the plane [n, 2] from as many Gaussians of deviation `noise`, evenly on a circle; no targets."""
    generator = torch.Generator().manual_seed(SEEDS[split])
    modes = torch.arange(num_examples) % num_modes
    return Examples(centres(num_modes, radius)[modes] + noise * torch.randn(num_examples, 2, generator=generator))


def coverage(num_modes: int, radius: float, noise: float) -> Metric:
    """The share of the real distribution that the samples [n, 2] meet, 1 at most.

    That is, over the modes, the sum of the share of samples within three deviations of it, as far as it is not too large.
    """
    return Metric(
        lambda outputs, targets: hits(outputs, num_modes, radius, noise),
        lambda shares: float(shares.clamp(max=1 / num_modes).sum()),
        higher_is_better=True,
    )


def modes(num_modes: int, radius: float, noise: float) -> Metric:
    """How many modes have at least a quarter of their share of the samples [n, 2] within three deviations."""
    return Metric(
        lambda outputs, targets: hits(outputs, num_modes, radius, noise),
        lambda shares: float((shares >= 1 / (4 * num_modes)).sum()),
        higher_is_better=True,
    )


def hits(points: Tensor, num_modes: int, radius: float, noise: float) -> Tensor:
    """Which mode each of the points [n, 2] is within three deviations of, [n, num_modes]."""
    return (torch.cdist(points, centres(num_modes, radius).to(points)) < 3 * noise).float()


# ---------------------------------------------------------------------------------------------------------- the networks


class GAN(nn.Module):
    """A generator, noise [n, noise_size] -> points [n, 2], and a critic, points [n, 2] -> how real they look [n, 1]."""

    for_one_process = True  # two backward passes a step, each through a part of the network

    def __init__(self, spec: DataSpec, *, noise_size: int = 16, width: int = 128) -> None:
        super().__init__()
        (size,) = spec.input_shape
        self.noise_size = noise_size
        self.generator = layers(noise_size, width, size)
        self.critic = layers(size, width, 1)

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise)

    def loss(self, real: Tensor, targets: None = None) -> tuple[dict[str, Tensor], Tensor]:
        """(the generator's loss beside the points `real` [n, 2], [n]; as many points of its own), without a step."""
        noise = torch.randn(len(real), self.noise_size, generator=torch.Generator().manual_seed(0)).to(real.device)
        fake = self.generator(noise)
        return {"loss": F.softplus(self.critic(real) - self.critic(fake))[:, 0]}, fake


def layers(size_in: int, width: int, size_out: int) -> nn.Sequential:
    """Three linear layers with leaky ReLU between them."""
    slope = nn.LeakyReLU(0.2)
    return nn.Sequential(nn.Linear(size_in, width), slope, nn.Linear(width, width), slope, nn.Linear(width, size_out))


# -------------------------------------------------------------------------------------------------------------- the step


class Adversaries(train.Learner):
    """A step of the critic, then one of the generator. critic_lr: the critic's learning rate; penalty: on its gradient."""

    model: Any  # a GAN

    def __init__(
        self,
        model: GAN,
        loss: Any,
        make_optimizer: Any,
        make_schedule: Any,
        *,
        critic_lr: float | None = None,
        penalty: float = 0.05,
        **given: Any,
    ) -> None:
        super().__init__(model, loss, make_optimizer, make_schedule, **given)
        self.penalty, self.was_skipped = penalty, False
        self.optimizer, self.critic_optimizer = make_optimizer(model.generator), make_optimizer(model.critic)
        for group in self.critic_optimizer.param_groups:
            group["lr"] = critic_lr or group["lr"]
        self.schedule, self.critic_schedule = make_schedule(self.optimizer), make_schedule(self.critic_optimizer)
        self.frames: list[Tensor] = []  # of the GIF: points [NUM_SHOWN, 2] after each epoch

    def step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        real, (generator, critic) = batch.inputs, (self.model.generator, self.model.critic)
        fake = generator(torch.randn(len(real), self.model.noise_size, device=real.device))
        seen = [points.detach().requires_grad_() for points in (real, fake)]
        scores = [critic(points) for points in seen]
        slopes = torch.autograd.grad([score.sum() for score in scores], seen, create_graph=True)
        steepness = sum(slope.square().sum(dim=1) for slope in slopes)
        critic_loss = F.softplus(scores[1] - scores[0])[:, 0]
        update(self.critic_optimizer, (critic_loss + self.penalty / 2 * steepness).mean())
        loss = F.softplus(critic(real) - critic(fake))[:, 0]
        self.learning_rate = self.optimizer.param_groups[0]["lr"]
        update(self.optimizer, loss.mean())
        for schedule in (self.schedule, self.critic_schedule):
            schedule.after_step()
        self.average.update()
        return {"loss": loss.detach(), "critic": critic_loss.detach()}, fake.detach()

    @torch.no_grad()
    def after_epoch(self, monitored: float) -> None:
        for schedule in (self.schedule, self.critic_schedule):
            schedule.after_epoch(monitored)
        noise = torch.randn(NUM_SHOWN, self.model.noise_size, generator=torch.Generator().manual_seed(0))
        self.frames.append(self.average.network(noise.to(self.world.device)).cpu())

    def state_dict(self) -> dict[str, Any]:
        others = {"optimizer": self.critic_optimizer, "schedule": self.critic_schedule}
        return {"critic": {name: part.state_dict() for name, part in others.items()}, "frames": list(self.frames)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critic_optimizer.load_state_dict(state["critic"]["optimizer"])
        self.critic_schedule.load_state_dict(state["critic"]["schedule"])
        self.frames = list(state["frames"])

    def show(self, epoch: int) -> Mapping[str, Tensor | str]:
        real = self.first_batch().inputs.cpu()
        return {"samples": torch.stack([scatter(real, points) for points in self.frames])}


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimiser down a loss."""
    optimizer.zero_grad()  # of what the other's step has left there, too
    loss.backward()
    optimizer.step()


def scatter(real: Tensor, fake: Tensor) -> Tensor:
    """Two sets of points [n, 2] as an image [3, FRAME, FRAME]: the real ones in grey, the generator's in blue over them."""
    image = torch.ones(3, FRAME, FRAME)
    reach = 1.3 * real.abs().max()
    for points, colour in ((real, (0.8, 0.8, 0.8)), (fake, (0.0, 0.45, 0.7))):
        places = ((points / reach + 1) / 2 * FRAME).long()
        columns, rows = places[(places >= 0).all(dim=1) & (places < FRAME).all(dim=1)].T
        dots = torch.zeros(1, 1, FRAME, FRAME)
        dots[0, 0, FRAME - 1 - rows, columns] = 1
        covered = F.max_pool2d(dots, 3, stride=1, padding=1)[0, 0] > 0
        image[:, covered] = torch.tensor(colour)[:, None]
    return image
