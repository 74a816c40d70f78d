"""DDPG as the paper uses it (arXiv 1802.03494, section 3.2), in one file.

Reads observations and rewards; imports nothing about networks or pruning. Equal seeds give bit-identical runs: all
randomness comes from the agent's own generators, and the agent runs torch on one thread.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from amc.run.settings import check_rules, convert_types_
from amc.search.agents.base import Agent, PlannedAgent, SearchTask, Setting
from amc.search.agents.exploring import ATTEMPT_GROWTH, decay_of, perturbed, truncated_normal, warmup_of
from amc.search.agents.schedule import Schedule
from amc.search.bounds import Bounds
from amc.search.environment import FEATURES, Observation, Rollout, roll_out
from amc.search.journal import EpisodeRecord
from amc.search.problem import FloatArray, Problem


@dataclass(frozen=True, slots=True)
class PaperDDPGConfig:
    """Hyperparameters of the published agent; the defaults are the paper's unless a comment names another source."""

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

    def __post_init__(self) -> None:
        convert_types_(self, "DDPG: ")
        positive, share = "above 0 and finite", "above 0 and at most 1"
        rules = {
            "warmup_episodes": (self.warmup_episodes >= 1, "at least 1"),
            "hidden": (self.hidden >= 1, "at least 1"),
            "actor_lr": (0 < self.actor_lr < math.inf, positive),
            "critic_lr": (0 < self.critic_lr < math.inf, positive),
            "tau": (0 < self.tau <= 1, share),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "replay_size": (self.replay_size >= 1, "at least 1"),
            "gamma": (0 <= self.gamma <= 1, "in [0, 1]"),
            "sigma": (0 < self.sigma <= 1, share),
            "noise_decay": (0 < self.noise_decay <= 1, share),
            "baseline_decay": (0 <= self.baseline_decay <= 1, "in [0, 1]"),
        }
        check_rules(self, rules, "DDPG: ")

    @classmethod
    def for_episodes(cls, episodes: int, **options: Any) -> Self:
        """The defaults for a search of `episodes` episodes: a quarter is warm-up, but at most the paper's 100.

        The paper has 100 of 400. `options` replace the defaults.
        """
        return cls(**{"warmup_episodes": warmup_of(episodes), **options})


@dataclass(frozen=True, slots=True)
class DDPGConfig(PaperDDPGConfig):
    """The published hyperparameters and our own; docs/paper.md lists the differences."""

    updates_per_episode: int = 8  # gradient steps after each episode; ours, at most 2% of the time of a score
    elite_fraction: float = 0.75  # share of the episodes that explore near the best policy so far; ours
    elite_sigma: float = 0.5  # their noise, as a share of sigma; ours
    elite_groups: float = 0.4  # the share of groups that they change; ours
    uniform_first: bool = True  # under a budget, episode 0 is the uniform policy; ours

    def __post_init__(self) -> None:
        PaperDDPGConfig.__post_init__(self)  # super() does not know a class with slots
        rules = {
            "updates_per_episode": (self.updates_per_episode >= 0, "at least 0"),
            "elite_fraction": (0 <= self.elite_fraction <= 1, "in [0, 1]"),
            "elite_sigma": (0 < self.elite_sigma <= 1, "above 0 and at most 1"),
            "elite_groups": (0 < self.elite_groups <= 1, "above 0 and at most 1"),
        }
        check_rules(self, rules, "DDPG: ")

    @classmethod
    def for_episodes(cls, episodes: int, **options: Any) -> Self:
        """As for the published agent, but the noise falls to a fifth over the rest of the search.

        With the official code's decay the noise would vanish after a hundred episodes. Episodes would then repeat
        policies, and the agent would learn nothing from them.
        """
        config = cls(**{"warmup_episodes": warmup_of(episodes), **options})
        decay = decay_of(episodes, config.warmup_episodes)
        return config if "noise_decay" in options else replace(config, noise_decay=decay)


class ActorCritic:
    """The actor, the critic, their target networks and the replay buffer."""

    def __init__(self, config: PaperDDPGConfig, generator: np.random.Generator, *, seed: int) -> None:
        """`seed`: of the weights. `generator` draws the batches."""
        self.replay = ReplayBuffer(config.replay_size)
        self._config, self._generator = config, generator
        self._baseline: float | None = None
        weights = torch.Generator().manual_seed(seed)
        with one_thread():
            self._actor, self._target_actor = _Actor(config.hidden, weights), _Actor(config.hidden, weights)
            self._critic, self._target_critic = (
                _Critic(config.hidden, weights),
                _Critic(config.hidden, weights),
            )
            self._target_actor.load_state_dict(self._actor.state_dict())
            self._target_critic.load_state_dict(self._critic.state_dict())
        self._actor_optimizer = torch.optim.Adam(self._actor.parameters(), config.actor_lr, fused=True)
        self._critic_optimizer = torch.optim.Adam(self._critic.parameters(), config.critic_lr, fused=True)

    def aim_at(self, sparsity: float) -> None:
        """Make the untrained actor return about `sparsity` for every observation."""
        self._actor.aim_at(sparsity)
        self._target_actor.aim_at(sparsity)

    def mean_action(self, observation: Observation) -> float:
        """The actor's sparsity in (0, 1) for an observation [11], without noise."""
        with one_thread(), torch.no_grad():
            return float(self._actor(torch.from_numpy(observation)))

    def store(self, rollout: Rollout, reward: float) -> None:
        """Add an episode to the replay buffer, and its reward to the moving average."""
        decay = self._config.baseline_decay
        self._baseline = reward if self._baseline is None else decay * self._baseline + (1 - decay) * reward
        self.replay.add(rollout, reward)

    def learn(self, updates: int) -> None:
        """Take `updates` gradient steps. The replay buffer must hold an episode."""
        assert self._baseline is not None, "there is nothing to learn from"
        with one_thread():
            for _ in range(updates):
                self._update(self._baseline)

    def _update(self, baseline: float) -> None:
        """One gradient step of critic and actor.

        Critic: y = R - b + gamma * Q'(s', mu'(s')), the mean of (y - Q(s, a))^2. R, the episode's reward,
        is on every transition (paper, section 3.2). So with gamma = 1, Q counts R once for each remaining step.
        """
        c = self._config
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


class DDPGAgent(PlannedAgent):
    """Deep deterministic policy gradient, one continuous action per group.

    An episode explores at random (warm-up), near the actor's policy or near the best policy so far. The agent
    requests keep fractions for all groups before the episode begins and projects them onto the budget's surface.
    The projection needs costs only. In the paper, only the last layers compensate for the noise on earlier layers.
    """

    name = "ddpg"
    max_episodes = None

    def __init__(self, problem: Problem, config: DDPGConfig, *, seed: int, episodes: int = 1) -> None:
        """`episodes`: of the search; needed only with a time limit, see `Schedule`."""
        super().__init__(problem)
        self.config, self._schedule = config, Schedule(episodes)
        self._problem, self._bounds = problem, Bounds(problem)
        self._generator = np.random.default_rng(seed)
        self._learner = ActorCritic(config, self._generator, seed=seed)
        self._learner.aim_at(float(1.0 - self.surface.uniform().mean()))
        self.replay, self.mean_action = self._learner.replay, self._learner.mean_action
        self._reached = 0.0  # point of the schedule
        self._best: tuple[float, tuple[int, ...]] | None = None

    def settings(self) -> dict[str, Setting]:
        """The hyperparameters. Journals of a search that does not begin with the uniform policy never name that."""
        settings = asdict(self.config)
        if not self.config.uniform_first:
            del settings["uniform_first"]
        return settings

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Plan an episode."""
        self._reached = self._schedule.reached(episode)
        if episode == 0 and attempt == 0 and (self.config.uniform_first or not self.surface.bounded):
            fractions = self.surface.start()
        elif self._reached < self.config.warmup_episodes or self._best is None:
            fractions = self.surface.sample(self._generator)
        else:
            fractions = self._explore(self._best[1], attempt)
        self.plan = (1.0 - fractions).tolist()

    def _explore(self, best: tuple[int, ...], attempt: int) -> FloatArray:
        """Keep fractions [groups] near the best policy, or near the actor's."""
        c, draw = self.config, self._generator
        sigma = min(1.0, c.sigma * c.noise_decay ** (self._reached - c.warmup_episodes) * ATTEMPT_GROWTH**attempt)
        if draw.random() < c.elite_fraction:
            near = sigma * c.elite_sigma
            return perturbed(self._problem, self.surface, best, sigma=near, groups=c.elite_groups, generator=draw)
        keep = roll_out(self._problem, self._bounds, self.mean_action).keep_counts
        fractions = np.array(keep) / self._problem.dense
        noisy = np.array([truncated_normal(draw, fraction, sigma) for fraction in fractions])
        return self.surface.project(noisy)

    def end_episode(self, rollout: Rollout, record: EpisodeRecord) -> None:
        """Store the executed transitions and, after the warm-up, learn. Skips a failed episode."""
        self._schedule.note(record)
        reward = record.reward
        if reward is None:
            return
        if self._best is None or reward > self._best[0]:
            self._best = (reward, rollout.keep_counts)
        self._learner.store(rollout, reward)
        if self._reached >= self.config.warmup_episodes - 1:
            self._learner.learn(self.config.updates_per_episode)


class PaperDDPGAgent(Agent):
    """DDPG as published: the actor decides group after group, with noise on every action.

    Nothing is projected, no episode explores around the best policy, and the actor starts at a sparsity of a half.
    As in the official code there is one gradient step for each step of an episode. The environment is ours: it keeps
    the policy within the budget, and near it by the last groups.
    """

    name = "ddpg-paper"
    max_episodes = None

    def __init__(self, task: SearchTask, config: PaperDDPGConfig) -> None:
        self._config, self._schedule = config, Schedule(task.episodes)
        self._largest = 1.0 - task.problem.least / task.problem.dense  # sparsities [groups]
        self._generator = np.random.default_rng(task.seed)
        self._learner = ActorCritic(config, self._generator, seed=task.seed)
        self._plan: list[float] = []  # of a random episode
        self._reached, self._sigma = 0.0, config.sigma  # point of the schedule, and the noise there

    def settings(self) -> dict[str, Setting]:
        """The hyperparameters."""
        return asdict(self._config)

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Draw a random episode, or set the noise of the actor's."""
        c = self._config
        self._reached = self._schedule.reached(episode)
        random = self._reached < c.warmup_episodes
        self._plan = self._generator.uniform(0.0, self._largest).tolist() if random else []
        self._sigma = c.sigma * c.noise_decay ** (self._reached - c.warmup_episodes)

    def act(self, observation: Observation) -> float:
        """The sparsity of the next group."""
        if self._plan:
            return self._plan.pop(0)
        return truncated_normal(self._generator, self._learner.mean_action(observation), self._sigma)

    def end_episode(self, rollout: Rollout, record: EpisodeRecord) -> None:
        """Store the executed transitions and, after the warm-up, learn. Skips a failed episode."""
        self._schedule.note(record)
        if record.reward is None:
            return
        self._learner.store(rollout, record.reward)
        if self._reached >= self._config.warmup_episodes - 1:
            self._learner.learn(len(rollout.transitions))


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
def one_thread() -> Iterator[None]:
    """Run torch on one thread: sums then have a fixed order, and more threads do not speed up small matrices."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
