"""A search slow enough to be killed: python kill_me.py JOURNAL. Ends by writing its best policy."""

import sys
import time
from pathlib import Path

from amc.search import DDPGAgent, DDPGConfig, search
from tests.search.toys import residual_problem

EPISODES = 24
CONFIG = DDPGConfig(warmup_episodes=6, hidden=32, updates_per_episode=2)


def run(journal_path: Path, seconds: float) -> tuple[int, ...]:
    problem, toy_score = residual_problem(6, "macs<=50%", 1)

    def score(policy: tuple[int, ...]) -> float:
        time.sleep(seconds)
        return toy_score(policy)

    agent = DDPGAgent(problem, CONFIG, seed=5)
    return search(problem, score, agent, episodes=EPISODES, seed=5, journal_path=journal_path).best.keep


if __name__ == "__main__":
    sys.stdout.write(f"{run(Path(sys.argv[1]), 0.03)}\n")
