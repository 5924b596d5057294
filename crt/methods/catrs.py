"""CAT-RS: confidence-aware training for randomized smoothing (Jeong et al. 2023, arXiv 2212.09000).

The published class frequencies of the auxiliary classifier are a file made beforehand with 10,000 votes of a
Gaussian-trained network for one crop of each training image. Here `num_votes` votes are drawn in each step
for the very crop that is trained on: given the moved noise, the gradient of the KL is linear in the
frequencies, so fewer votes add noise but no bias to it.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crt.errors import UserError
from crt.methods.base import Batch, Loss, Method, Teacher
from crt.methods.shared.attacks import EPSILON, draw_noise, frozen, label_loss, noisy_logits, norms, project

NEEDS_LABELS = True
TEACHER = "network"


def catrs(
    *,
    num_noise: int,
    steps: int,
    epsilon: float,
    lbd: float,
    votes_from: Literal["teacher", "self"],
    num_votes: int,
    vote_sigma: float,
    teacher: Teacher | None = None,
) -> Method:
    """Of each image's m noises as many of the easiest as its confidence allows; where all, the worst too.

        L = mean_b [ 1/m * sum of the K_b smallest of CE(f(x_b + e_ib), y_b)
                     + lbd * [K_b = m] * max_i KL(q_b || softmax(f(x_b + v_ib))) ]
        K_b = max(1, Binomial(m, w_b)),  w_b = share of the m noisy images that are classified right

    with v_ib the noise e_ib moved at most epsilon against q_b, and q_b the class frequencies of an auxiliary
    classifier's hard votes under N(0, vote_sigma^2).

    Args:
        num_noise: noise draws per image (m); a step sees 2 m * B noisy images.
        steps: attack steps.
        epsilon: largest l2 norm of v - e, [0,1] pixel units.
        lbd: weight of the worst-case term.
        votes_from: `teacher` as published (a Gaussian-trained one); `self`: the network in training, where
            there is no other.
        num_votes: votes per image and step.
        vote_sigma: noise of the votes; published: 0.25 whatever the sigma of training.
        teacher: the auxiliary classifier.

    Raises:
        UserError: `votes_from` is `teacher` and there is none.
    """
    if votes_from == "teacher" and teacher is None:
        raise UserError("votes_from is 'teacher' but there is no teacher: set it to 'self'")
    auxiliary = teacher.network if teacher is not None and votes_from == "teacher" else None

    def loss(model: nn.Module, batch: Batch, sigma: float, generator: torch.Generator) -> Loss:
        frequencies = vote(
            model if auxiliary is None else auxiliary, batch.images, vote_sigma, num_votes, generator
        )
        noise = draw_noise(batch.images, sigma, num_noise, generator)

        logits = noisy_logits(model, batch.images, noise)
        confidence = (logits.argmax(-1) == batch.labels).to(batch.images.dtype).mean(0)
        trials = torch.empty_like(logits[..., 0]).uniform_(generator=generator)
        easy = (trials < confidence).sum(0).clamp(min=1)  # K_b: a binomial draw
        low = easiest(label_loss(logits, batch.labels), easy)

        worst = attack_noise(model, batch.images, frequencies, noise, epsilon=epsilon, steps=steps)
        divergence = divergences(frequencies, noisy_logits(model, batch.images, worst))
        high = divergence.max(0).values * (easy == num_noise)

        label, worst_case = low.mean(), high.mean()
        parts = {"cross_entropy": label.detach(), "worst_case": worst_case.detach()}
        return Loss(label + lbd * worst_case, {**parts, "noisy_accuracy": confidence.mean()})

    return loss


def easiest(losses: Tensor, counts: Tensor) -> Tensor:
    """The sum of each image's `counts` [B] smallest losses [m, B], divided by m: [B]."""
    ranks = torch.arange(len(losses), device=losses.device)[:, None]
    return torch.where(ranks < counts, losses.sort(0).values, 0).sum(0) / len(losses)


def vote(
    model: nn.Module, images: Tensor, sigma: float, num_votes: int, generator: torch.Generator
) -> Tensor:
    """Class frequencies [B, K] of the model's predictions for images [B, C, H, W] under num_votes noises."""
    with frozen(model) as network, torch.no_grad():
        votes = [  # one batch at a time: memory does not grow with num_votes
            noisy_logits(network, images, draw_noise(images, sigma, 1, generator))[0]
            for _ in range(num_votes)
        ]
    num_classes = votes[0].shape[-1]
    return (
        torch.stack([F.one_hot(logits.argmax(-1), num_classes) for logits in votes]).to(images.dtype).mean(0)
    )


def attack_noise(
    model: nn.Module, images: Tensor, frequencies: Tensor, noise: Tensor, *, epsilon: float, steps: int
) -> Tensor:
    """Noise [m, B, C, H, W] moved to maximize KL(frequencies || prediction), each draw by itself; detached.

    After each step of length 2 epsilon / steps, noise is taken back into the l2 ball of radius epsilon around
    the draw, then to the draw's mean and second moment, so that it still looks Gaussian; the last may exceed
    the ball slightly. Nothing is clipped.
    """
    mean, scale = _moments(noise)
    moved = noise
    with frozen(model) as network:
        for _ in range(steps):
            moved = moved.detach().requires_grad_()
            divergence = divergences(frequencies, noisy_logits(network, images, moved)).sum()
            (gradient,) = torch.autograd.grad(divergence, moved)
            moved = moved.detach() + 2 * epsilon / steps * gradient / (norms(gradient) + EPSILON)
            moved = noise + project(moved - noise, epsilon)
            new_mean, new_scale = _moments(moved)
            moved = mean + scale * (moved - new_mean) / new_scale
    return moved


def divergences(frequencies: Tensor, logits: Tensor) -> Tensor:
    """KL(frequencies || softmax(logits)): [B, K], [m, B, K] -> [m, B]."""
    return F.kl_div(logits.log_softmax(-1), frequencies.expand_as(logits), reduction="none").sum(-1)


def _moments(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and root of the second (raw) moment of each image's entries, as [..., 1, 1, 1]."""
    axes = (-3, -2, -1)
    return noise.mean(axes, keepdim=True), noise.square().mean(axes, keepdim=True).sqrt()
