"""DDPG as the paper uses it (arXiv 1802.03494, section 3.2), in one file.

Sees observations and rewards; imports nothing of networks or pruning. Equal seeds give equal runs bit for bit:
all randomness comes from the agent's own generators, and torch runs on one thread in here.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from amc.search.baselines import Setting
from amc.search.environment import FEATURES, Observation, Rollout
from amc.search.problem import Problem
from amc.search.surface import Surface


@dataclass(frozen=True, slots=True)
class DDPGConfig:
    """Hyperparameters; the defaults are the paper's unless the comment says otherwise (docs/paper.md)."""

    warmup_episodes: int = 100  # random episodes before the actor acts
    hidden: int = 300  # units in each of two hidden layers
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    tau: float = 0.01  # step of the target networks
    batch_size: int = 64  # transitions
    replay_size: int = 2000  # transitions
    gamma: float = 1.0
    sigma: float = 0.5  # initial standard deviation of the exploration noise
    noise_decay: float = 0.95  # of sigma, per episode after the warm-up
    baseline_decay: float = 0.95  # of the moving average of rewards
    updates_per_episode: int = 20  # gradient steps after each episode
    elite_fraction: float = 0.5  # of the episodes explore around the best policy; not in the paper

    @classmethod
    def for_episodes(cls, episodes: int) -> Self:
        """Defaults for a search of that many episodes: the paper's at 400 and above, scaled below."""
        warmup = min(100, max(1, episodes // 4))
        exploiting = max(1, episodes - warmup - 1)
        return cls(warmup_episodes=warmup, noise_decay=(0.01 / 0.5) ** (1 / exploiting))


class DDPGAgent:
    """Deep deterministic policy gradient, one continuous action per group."""

    name = "ddpg"
    max_episodes = None

    def __init__(self, problem: Problem, config: DDPGConfig, *, seed: int) -> None:
        self.config, self._seed = config, seed
        self._surface = Surface(problem)
        self._sizes = problem.dense
        self._generator = np.random.default_rng(seed)
        weights = torch.Generator().manual_seed(seed)
        with _one_thread():
            self._actor, self._target_actor = _Actor(config.hidden, weights), _Actor(config.hidden, weights)
            self._critic, self._target_critic = (
                _Critic(config.hidden, weights),
                _Critic(config.hidden, weights),
            )
            self._actor.aim_at(float(1.0 - self._surface.uniform().mean()))
            self._target_actor.load_state_dict(self._actor.state_dict())
            self._target_critic.load_state_dict(self._critic.state_dict())
        self._actor_optimizer = torch.optim.Adam(self._actor.parameters(), config.actor_lr, fused=True)
        self._critic_optimizer = torch.optim.Adam(self._critic.parameters(), config.critic_lr, fused=True)
        self.replay = ReplayBuffer(config.replay_size)
        self._baseline: float | None = None
        self._best: tuple[float, tuple[int, ...]] | None = None
        self._plan: list[float] | None = None
        self._sigma = 0.0
        self._warm = True

    def settings(self) -> dict[str, Setting]:
        """The hyperparameters."""
        return asdict(self.config)

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Choose how this episode explores."""
        c = self.config
        self._warm = episode < c.warmup_episodes
        if self._warm:
            self._plan = (1.0 - self._surface.sample(self._generator)).tolist()
            return
        # Wider after each attempt, so that a policy that was not scored before is found.
        self._sigma = min(c.sigma, c.sigma * c.noise_decay ** (episode - c.warmup_episodes) * 1.3**attempt)
        elite = self._generator.random() < c.elite_fraction
        self._plan = self._around_best() if elite and self._best is not None else None

    def act(self, observation: Observation) -> float:
        """Sparsity for the next group: the plan's, or the actor's plus truncated normal noise."""
        if self._plan is not None:
            return self._plan.pop(0)
        with _one_thread(), torch.no_grad():
            mean = float(self._actor(torch.from_numpy(observation)))
        return self._truncated_normal(mean)

    def end_episode(self, rollout: Rollout, reward: float | None) -> None:
        """Store what was executed, and learn once the warm-up is over. A failed episode is skipped."""
        if reward is None:
            return
        if self._best is None or reward > self._best[0]:
            self._best = (reward, rollout.keep_counts)
        decay = self.config.baseline_decay
        self._baseline = reward if self._baseline is None else decay * self._baseline + (1 - decay) * reward
        self.replay.add(rollout, reward)
        if not self._warm:
            with _one_thread():
                for _ in range(self.config.updates_per_episode):
                    self._update(self._baseline)

    def _update(self, baseline: float) -> None:
        """One gradient step of critic and actor (the paper's equations 1 and 2)."""
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

    def _around_best(self) -> list[float]:
        assert self._best is not None
        best = np.array(self._best[1]) / self._sizes
        return (1.0 - self._surface.land(np.array([self._truncated_normal(f) for f in best]))).tolist()

    def _truncated_normal(self, mean: float) -> float:
        """Normal noise of the current sigma around `mean`, truncated to [0, 1]."""
        while True:
            value = float(self._generator.normal(mean, self._sigma))
            if 0.0 <= value <= 1.0:
                return value


class ReplayBuffer:
    """The latest transitions, each with its episode's final reward, executed action and explicit next state."""

    def __init__(self, capacity: int) -> None:
        self._observation = torch.zeros(capacity, len(FEATURES))
        self._next = torch.zeros(capacity, len(FEATURES))
        self._action, self._reward, self._done = (torch.zeros(capacity, 1) for _ in range(3))
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, len(self._action))

    @property
    def actions(self) -> Tensor:
        """Executed actions [stored], sparsities."""
        return self._action[: len(self), 0]

    def add(self, rollout: Rollout, reward: float) -> None:
        """Store an episode over the oldest transitions."""
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
        return torch.sigmoid(self.last(hidden))

    def aim_at(self, sparsity: float) -> None:
        """Let the untrained actor answer about `sparsity` everywhere."""
        with torch.no_grad():
            self.last.bias.fill_(math.log(sparsity / (1 - sparsity)))


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
        return self.last(torch.relu(self.second(hidden)))


def _linear(inputs: int, outputs: int, generator: torch.Generator, bound: float | None = None) -> nn.Linear:
    """A layer drawn from our generator; torch's own initialisation would draw from the global one."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = 1 / math.sqrt(inputs) if bound is None else bound
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: small matrices gain nothing from more, and sums then have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
