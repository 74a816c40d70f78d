"""DDPG as the paper uses it (arXiv 1802.03494, section 3.2), in one file.

Reads observations and rewards; imports nothing about networks or pruning. Equal seeds give bit-identical runs: all
randomness comes from the agent's own generators, and the agent runs torch on one thread.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from amc.search.agents.base import Setting
from amc.search.bounds import Bounds
from amc.search.environment import FEATURES, Observation, Rollout, roll_out
from amc.search.journal import EpisodeRecord
from amc.search.problem import Problem
from amc.search.surface import Surface

# Without a budget, an episode near the best policy has a cost in this range, relative to the best policy's cost.
# Such an episode costs about the same, or slightly less.
STEP = (0.95, 1.01)


@dataclass(frozen=True, slots=True)
class DDPGConfig:
    """Hyperparameters; the defaults are the paper's unless a comment names another source (docs/paper.md)."""

    warmup_episodes: int = 100  # random episodes before the actor acts
    hidden: int = 300  # units in each of two hidden layers
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    tau: float = 0.01  # step of the target networks
    batch_size: int = 64  # transitions
    replay_size: int = 2000  # transitions
    gamma: float = 1.0
    sigma: float = 0.5  # initial standard deviation of the exploration noise
    noise_decay: float = 0.95  # of sigma, per episode after the warm-up; from the official code
    baseline_decay: float = 0.95  # of the moving average of rewards; from the official code
    updates_per_episode: int = 8  # gradient steps after each episode; ours, at most 2% of the time of a score
    elite_fraction: float = 0.75  # share of the episodes that explore near the best policy so far; ours
    elite_sigma: float = 0.5  # their noise, as a share of sigma; ours
    elite_groups: float = 0.4  # the share of groups that they change; ours
    uniform_first: bool = True  # under a budget, episode 0 is the uniform policy; ours

    def __post_init__(self) -> None:
        if self.warmup_episodes < 1 or not 0 <= self.elite_fraction <= 1 or not 0 < self.elite_groups <= 1:
            raise ValueError(f"DDPG needs at least one warm-up episode and fractions in [0, 1], got {self}")

    @classmethod
    def for_episodes(cls, episodes: int, *, uniform_first: bool = True) -> Self:
        """The defaults for a search of `episodes` episodes: a quarter is warm-up, but at most the paper's 100.

        The noise falls to a fifth over the rest. With the official code's decay the noise would vanish after a
        hundred episodes. Episodes would then repeat policies, and the agent would learn nothing from them.
        """
        warmup = min(100, max(1, episodes // 4))
        decay = 0.2 ** (1 / max(1, episodes - warmup))
        return cls(warmup_episodes=warmup, noise_decay=decay, uniform_first=uniform_first)


class DDPGAgent:
    """Deep deterministic policy gradient, one continuous action per group.

    An episode explores at random (warm-up), near the actor's policy or near the best policy so far. The agent
    requests keep fractions for all groups before the episode begins and projects them onto the budget's surface.
    The projection needs costs only. In the paper, only the last layers compensate for the noise on earlier layers.
    """

    name = "ddpg"
    max_episodes = None

    def __init__(self, problem: Problem, config: DDPGConfig, *, seed: int) -> None:
        self.config = config
        self.surface = Surface(problem)
        self.replay = ReplayBuffer(config.replay_size)
        self._problem, self._bounds = problem, Bounds(problem)
        self._generator = np.random.default_rng(seed)
        self._plan: list[float] = []
        self._episode = 0
        self._baseline: float | None = None
        self._best: tuple[float, tuple[int, ...]] | None = None
        weights = torch.Generator().manual_seed(seed)
        with _one_thread():
            self._actor, self._target_actor = _Actor(config.hidden, weights), _Actor(config.hidden, weights)
            self._critic, self._target_critic = (
                _Critic(config.hidden, weights),
                _Critic(config.hidden, weights),
            )
            self._actor.aim_at(float(1.0 - self.surface.uniform().mean()))
            self._target_actor.load_state_dict(self._actor.state_dict())
            self._target_critic.load_state_dict(self._critic.state_dict())
        self._actor_optimizer = torch.optim.Adam(self._actor.parameters(), config.actor_lr, fused=True)
        self._critic_optimizer = torch.optim.Adam(self._critic.parameters(), config.critic_lr, fused=True)

    def settings(self) -> dict[str, Setting]:
        """The hyperparameters. Journals of a search that does not begin with the uniform policy never name that."""
        settings = asdict(self.config)
        if not self.config.uniform_first:
            del settings["uniform_first"]
        return settings

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Plan an episode."""
        c, draw = self.config, self._generator
        self._episode = episode
        if episode == 0 and attempt == 0 and not self.surface.bounded:
            # The dense network meets every limit on accuracy: a safe start for the search.
            self._plan = [0.0] * len(self._problem.decisions)
            return
        if episode == 0 and attempt == 0 and c.uniform_first:
            self._plan = (1.0 - self.surface.uniform()).tolist()
            return
        if episode < c.warmup_episodes or self._best is None:
            self._plan = (1.0 - self.surface.sample(draw)).tolist()
            return
        # The noise grows with each attempt, so that the agent leaves the policies that were already scored.
        sigma = min(1.0, c.sigma * c.noise_decay ** (episode - c.warmup_episodes) * 1.3**attempt)
        cost = None
        if draw.random() < c.elite_fraction:
            keep = self._best[1]
            if not self.surface.bounded:
                cost = self._problem.cost(self._problem.metric, keep) * draw.uniform(*STEP)
            moved = draw.random(len(keep)) < c.elite_groups
            moved[draw.integers(len(keep))] = True
            sigma *= c.elite_sigma
        else:
            keep = roll_out(self._problem, self._bounds, self.mean_action).keep_counts
            moved = np.ones(len(keep), dtype=bool)
        fractions = np.array(keep) / self._problem.dense
        fractions[moved] = [self._truncated_normal(fraction, sigma) for fraction in fractions[moved]]
        self._plan = (1.0 - self.surface.project(fractions, cost=cost)).tolist()

    def act(self, observation: Observation) -> float:
        """The planned sparsity of the next group. Ignores the observation."""
        return self._plan.pop(0)

    def mean_action(self, observation: Observation) -> float:
        """The actor's sparsity in (0, 1) for an observation [11], without noise."""
        with _one_thread(), torch.no_grad():
            return float(self._actor(torch.from_numpy(observation)))

    def end_episode(self, rollout: Rollout, record: EpisodeRecord) -> None:
        """Store the executed transitions and, after the warm-up, learn. Skips a failed episode."""
        reward = record.reward
        if reward is None:
            return
        if self._best is None or reward > self._best[0]:
            self._best = (reward, rollout.keep_counts)
        decay = self.config.baseline_decay
        self._baseline = reward if self._baseline is None else decay * self._baseline + (1 - decay) * reward
        self.replay.add(rollout, reward)
        if self._episode >= self.config.warmup_episodes - 1:
            with _one_thread():
                for _ in range(self.config.updates_per_episode):
                    self._update(self._baseline)

    def estimates(self) -> dict[tuple[int, ...], float]:
        """Empty: the scores themselves count."""
        return {}

    def _update(self, baseline: float) -> None:
        """One gradient step of critic and actor.

        Critic: y = R - b + gamma * Q'(s', mu'(s')), the mean of (y - Q(s, a))^2. R, the episode's reward,
        is on every transition (paper, section 3.2). So with gamma = 1, Q counts R once for each remaining step.
        """
        c = self.config
        rows = self._generator.integers(len(self.replay), size=c.batch_size)
        observation, action, reward, following, done = self.replay.batch(rows)
        with torch.no_grad():
            ahead = self._target_critic(following, self._target_actor(following))
            target = reward - baseline + c.gamma * (1 - done) * ahead
        critic_loss = (self._critic(observation, action) - target).square().mean()
        self._critic_optimizer.zero_grad()
        critic_loss.backward()
        self._critic_optimizer.step()
        actor_loss = -self._critic(observation, self._actor(observation)).mean()
        self._actor_optimizer.zero_grad()
        actor_loss.backward(inputs=list(self._actor.parameters()))
        self._actor_optimizer.step()
        with torch.no_grad():
            for target_net, net in ((self._target_actor, self._actor), (self._target_critic, self._critic)):
                torch._foreach_lerp_(list(target_net.parameters()), list(net.parameters()), c.tau)

    def _truncated_normal(self, mean: float, sigma: float) -> float:
        """Normal noise around `mean`, truncated to [0, 1]."""
        while True:
            value = float(self._generator.normal(mean, sigma))
            if 0.0 <= value <= 1.0:
                return value


class ReplayBuffer:
    """The latest transitions: the executed action, the next observation and the episode's final reward."""

    def __init__(self, capacity: int) -> None:
        self._observation = torch.zeros(capacity, len(FEATURES))
        self._next = torch.zeros(capacity, len(FEATURES))
        self._action, self._reward, self._done = (torch.zeros(capacity, 1) for _ in range(3))
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, len(self._action))

    @property
    def actions(self) -> Tensor:
        """The executed sparsities [stored]."""
        return self._action[: len(self), 0]

    def add(self, rollout: Rollout, reward: float) -> None:
        """Store an episode. It replaces the oldest transitions if the buffer is full."""
        for transition in rollout.transitions:
            row = self._added % len(self._action)
            self._observation[row] = torch.from_numpy(transition.observation)
            self._next[row] = torch.from_numpy(transition.next_observation)
            self._action[row], self._reward[row] = transition.action, reward
            self._done[row] = float(transition.done)
            self._added += 1

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Observation [B, 11], action [B, 1], reward [B, 1], next observation [B, 11], done [B, 1]."""
        index = torch.from_numpy(rows)
        return (
            self._observation[index],
            self._action[index],
            self._reward[index],
            self._next[index],
            self._done[index],
        )


class _Actor(nn.Module):
    """Observation [..., 11] -> sparsity [..., 1] in (0, 1)."""

    def __init__(self, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = _linear(len(FEATURES), hidden, generator)
        self.second = _linear(hidden, hidden, generator)
        self.last = _linear(hidden, 1, generator, bound=3e-3)

    def forward(self, observation: Tensor) -> Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(observation))))
        return torch.sigmoid(cast(Tensor, self.last(hidden)))

    def aim_at(self, sparsity: float) -> None:
        """Make the untrained actor return about `sparsity` for every observation."""
        within = min(max(sparsity, 0.01), 0.99)  # a sigmoid never reaches 0 or 1
        with torch.no_grad():
            self.last.bias.fill_(math.log(within / (1 - within)))


class _Critic(nn.Module):
    """Observation [..., 11] and sparsity [..., 1] -> expected reward above the baseline [..., 1]."""

    def __init__(self, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.observation = _linear(len(FEATURES), hidden, generator)
        self.action = _linear(1, hidden, generator)
        self.second = _linear(hidden, hidden, generator)
        self.last = _linear(hidden, 1, generator, bound=3e-3)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        hidden = torch.relu(self.observation(observation) + self.action(action))
        return cast(Tensor, self.last(torch.relu(self.second(hidden))))


def _linear(inputs: int, outputs: int, generator: torch.Generator, bound: float | None = None) -> nn.Linear:
    """A layer with weights from `generator`. Torch's own initialisation would use the global generator."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    bound = 1 / math.sqrt(inputs) if bound is None else bound
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: sums then have a fixed order, and more threads do not speed up small matrices."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
