"""How the measured parts of many_workers.py read, and the searches with many workers that are computed from them."""

from __future__ import annotations

import itertools
import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import batches
from common import Record, machine, records, table
from search_toys import REFERENCE, Case, Outcome
from simulated_workers import Fleet, Search, Spent, drawn, simulate

RESULT = "many-workers-{model}.json"
FLEETS = (1, 2, 4, 16, 64, 256, 1024)  # workers
EPISODES = 2048  # of the searches that are computed
NETWORK = 0.001  # seconds of a round trip to another machine of the same network, beyond a worker's pipe
FAR = 0.1  # seconds; to another continent, or through a slow scheduler
CHECKED_BATCH = 4  # of the searches that check the simulation
KNOWN = (0, 64, 256, 1024, 2048)  # policies between which the agent's seconds are shown
NEARLY = 0.98  # of the highest speed: a smaller batch that reaches it is taken, as it costs less in quality
TARGETS = (0.8, 0.9, 0.95)  # shares of the gap between random policies and the optimum


# What is computed


@dataclass(frozen=True)
class Conditions:
    """What is assumed beside the measured parts."""

    network: float = NETWORK  # seconds of a round trip beyond a worker's pipe
    deaths: float = 0.0  # of a worker, an hour of scoring
    longer: float = 1.0  # factor of the scores' seconds
    at_once: bool = False  # workers begin as soon as a policy is proposed


USUAL = Conditions()
OTHERS = {
    "as above": USUAL,
    "through pipes, without a network": Conditions(network=0.0),
    f"{1000 * FAR:g} ms more to a worker": Conditions(network=FAR),
    "each worker dies once an hour": Conditions(deaths=1.0),
    "each worker dies every five minutes": Conditions(deaths=12.0),
    "workers begin at once": Conditions(at_once=True),
    "scores take 10 times as long": Conditions(longer=10.0),
    "scores take 100 times as long": Conditions(longer=100.0),
}


def search_of(record: Record, batch: int, episodes: int, longer: float = 1.0) -> Search:
    """The seconds of a search: the agent's of a measured batch, and scores drawn from those of proposed policies."""
    agent = record["agent"][str(batch)]
    place = [bisect_right(agent["known"], episode) - 1 for episode in range(episodes)]
    return Search(
        propose=[agent["propose"][part] for part in place],
        score=[longer * seconds for seconds in drawn(record["scores"]["proposed"], episodes)],
        learn=[agent["learn"][part] + record["pipe"]["driver"] for part in place],
    )


def computed(
    record: Record, workers: int, batch: int, episodes: int = EPISODES, conditions: Conditions = USUAL
) -> Spent:
    """A search with these workers, which start and exchange as measured."""
    pipe = record["pipe"]
    fleet = Fleet(workers, pipe["start"], pipe["exchange"] + conditions.network, conditions.deaths)
    search = search_of(record, batch, episodes, conditions.longer)
    return simulate(search, batch, fleet, streamed=conditions.at_once)


def measured_batches(record: Record) -> list[int]:
    return [int(batch) for batch in record["agent"]]


def best_batch(record: Record, workers: int, conditions: Conditions = USUAL) -> int:
    """The smallest batch that is nearly as fast as the fastest."""
    sizes = measured_batches(record)
    seconds = {size: computed(record, workers, size, conditions=conditions).seconds for size in sizes}
    return min(batch for batch, took in seconds.items() if took * NEARLY <= min(seconds.values()))


# How it reads


def section(record: Record) -> str:
    model = record["model"]
    return (
        f"## Many workers: {model}\n\n"
        f"`python benchmarks/many_workers.py --model {model} --weights W --data cifar10:DATA --search-images "
        f"{record['images']}`, {record['groups']} groups at half the MACs.\n\n"
        "**Measured**, in CPU seconds of one thread; other work slowed the machine down:\n\n"
        f"{scores_table(record)}\n"
        f"The agent, a policy. The first proposal of a batch fits the model to all that is known, and is counted in "
        f"the mean:\n\n{agent_table(record)}\n{pipe_line(record)}\n"
        f"**Computed** from these: searches of {EPISODES:,} policies, whose scores take as long as those of proposed "
        f"policies, drawn at random. A worker's exchange takes {1000 * NETWORK:g} ms more than through its pipe, as "
        "to another machine nearby. How many times as many policies an hour as one worker with a batch of 1:\n\n"
        f"{speeds_table(record)}\n"
        "Where the time goes, with the smallest batch that is within 2% of the fastest. What scoring and transfers "
        "would take if all workers shared them evenly, and the rest: waiting for the last of a batch:\n\n"
        f"{parts_table(record)}\nOther conditions: policies an hour, and how many times as many as with one worker "
        "under the same ones. \"At once\": a worker begins with a policy as soon as it is proposed, as AMC's "
        f"workers do not; they wait for the whole batch. Longer scores are those of larger networks or more "
        f"images:\n\n{conditions_table(record)}\n"
        "The simulation **against searches that were run** by the wall clock with batches of 4, in turns: computed "
        "from the seconds of proposing, scoring and learning of that same run, as the machine was busy with other "
        f"work:\n\n{checks_table(record)}" + machine(record)
    )  # fmt: skip


def scores_table(record: Record) -> str:
    rows = []
    for kind, seconds in record["scores"].items():
        cuts = statistics.quantiles(seconds, n=20)
        values = (min(seconds), cuts[0], statistics.median(seconds), cuts[-1], max(seconds))
        rows.append([f"{kind} policies", str(len(seconds)), *(milliseconds(value) for value in values)])
    return table(["score", "policies", "least", "5%", "median", "95%", "most"], rows)


def agent_table(record: Record) -> str:
    spans = list(itertools.pairwise(KNOWN))
    rows = []
    for batch, agent in record["agent"].items():
        learn = mean_between(agent["known"], agent["learn"], KNOWN[0], KNOWN[-1])
        means = [mean_between(agent["known"], agent["propose"], *span) for span in spans]
        rows.append([batch, *("" if mean is None else milliseconds(mean) for mean in means), milliseconds(learn or 0)])
    heads = [f"proposing, {first:,} to {last:,} known" for first, last in spans]
    return table(["batch", *heads, "learning"], rows)


def mean_between(known: Sequence[int], means: Sequence[float], first: int, last: int) -> float | None:
    """The mean over the episodes from `first` to `last`; None if one of the parts lies across these."""
    inside = [place for place, begin in enumerate(known) if first <= begin < last]
    if not inside or known[inside[0]] != first or (inside[-1] + 1 < len(known) and known[inside[-1] + 1] != last):
        return None
    ends = [*known[1:], max(last, known[-1] + 1)]
    weights = [ends[place] - known[place] for place in inside]
    return statistics.fmean([means[place] for place in inside], weights)


def pipe_line(record: Record) -> str:
    pipe = record["pipe"]
    return (
        f"A worker's pipe, {record['round_trips']} exchanges of a policy that the worker remembers: "
        f"{1000 * pipe['exchange']:.2f} ms in the median and {1000 * pipe['slow_exchange']:.2f} ms or less in nine of "
        f"ten, of which the driver computes {1000 * pipe['driver']:.2f} ms. A worker's start: {pipe['start']:.1f} s "
        "(wall clock, beside other work).\n"
    )


def speeds_table(record: Record) -> str:
    one = computed(record, 1, 1).seconds
    sizes = measured_batches(record)
    rows = [[f"{w:,}", *(f"{one / computed(record, w, b).seconds:.1f}×" for b in sizes)] for w in FLEETS]
    return table(["workers", *(f"batch {size:,}" for size in sizes)], rows)


def parts_table(record: Record) -> str:
    rows = []
    for workers in FLEETS:
        batch = best_batch(record, workers)
        spent = computed(record, workers, batch)
        parts = (spent.agent, spent.scores, spent.uneven, spent.transfer, spent.start)
        rows.append([
            f"{workers:,}", f"{batch:,}", hourly(spent), duration(spent.seconds),
            *(f"{part / spent.seconds:.0%}" for part in parts), f"{spent.idle:.0%}", spent.bound,
        ])  # fmt: skip
    heads = ["workers", "batch", "policies an hour", "time", "agent", "scores", "uneven", "transfer", "start"]
    return table([*heads, "workers idle", "bound by"], rows)


def conditions_table(record: Record) -> str:
    rows = []
    for name, conditions in OTHERS.items():
        one, cells = computed(record, 1, 1, conditions=conditions), []
        for workers in (16, 64, 1024):
            spent = computed(record, workers, best_batch(record, workers, conditions), conditions=conditions)
            failed = f", {spent.failed} fail" if spent.failed else ""
            cells.append(f"{hourly(spent)} ({one.seconds / spent.seconds:.0f}×{failed})")
        rows.append([name, *cells])
    return table(["", "16 workers", "64 workers", "1,024 workers"], rows)


def checks_table(record: Record) -> str:
    """A row for every round; its searches have the numbers of workers in the same order."""
    checks = record["checks"]
    counts = sorted({check["workers"] for check in checks})
    rows = []
    for number in range(len(checks) // len(counts)):
        found = [[check for check in checks if check["workers"] == count][number] for count in counts]
        again = [repeated(record, check) for check in found]
        taken = [check["seconds"] for check in found]
        cells = [f"{real:.2f} s / {ours:.2f} s" for real, ours in zip(taken, again, strict=True)]
        rows.append([str(number + 1), *cells, f"{taken[0] / taken[-1]:.2f}×", f"{again[0] / again[-1]:.2f}×"])
    heads = [f"{count} worker{'s' * (count > 1)}: run / computed" for count in counts]
    return table(["round", *heads, "as fast, run", "as fast, computed"], rows)


def repeated(record: Record, check: Record) -> float:
    """The seconds that the simulation gives a search that was run."""
    search = Search(check["propose"], check["score"], check["learn"])
    return simulate(search, CHECKED_BATCH, Fleet(check["workers"], transfer=record["pipe"]["exchange"])).seconds


# The time to a quality


Reached = dict[tuple[int, int], float]
"""By policies and batch: the share of the gap that is closed, in the median over toys and seeds."""


def reached(found: Sequence[Record]) -> tuple[Reached, list[Case]]:
    """Of searches that end after each number of policies; and the toys and seeds that all of them have.

    The gap is that between the best of the fewest random policies and the optimum, for all searches the same.
    """
    runs: dict[tuple[int, int, str], dict[Case, Outcome]] = {}
    for record in found:
        for name, outcome in record["runs"].items():
            batch, _, text = name.partition(" | ")
            case = Case.parse(text)
            key = (record["episodes"], int(batch), case.agent)
            runs.setdefault(key, {})[Case(case.toy, case.images, "", case.seed)] = Outcome.parse(outcome)
    fewest = min(episodes for episodes, _, _ in runs)
    random = runs.pop((fewest, 1, REFERENCE))
    searches = {(count, batch): cases for (count, batch, agent), cases in runs.items() if agent != REFERENCE}
    common = sorted(set(random).intersection(*searches.values()), key=str)
    shares = {
        key: statistics.median(
            (cases[case].scores[-1] - random[case].scores[-1])
            / max(cases[case].optimum - random[case].scores[-1], 1e-9)
            for case in common
        )
        for key, cases in sorted(searches.items())
    }
    return shares, common


def quality(measured: Sequence[Record]) -> str:
    """The section about the time to a quality; empty without both kinds of records."""
    found = records(batches.RESULT)
    if not measured or not found:
        return ""
    shares, cases = reached(found)
    sizes = sorted({batch for _, batch in shares})
    rows = [
        [f"{count:,}", *(f"{shares[count, size]:.0%}" if (count, size) in shares else "" for size in sizes)]
        for count in sorted({count for count, _ in shares})
    ]
    toys = len({case.toy for case in cases})
    seeds = max(sum(case.toy == toy for case in cases) for toy in {case.toy for case in cases})
    table_of_shares = table(["policies", *(f"batch {size:,}" for size in sizes)], rows)
    times = "".join(
        f"\n**Computed** for {record['model']}: the shortest time until a search has closed so much of the gap, as on "
        f"the toys, with its policies and its batch:\n\n{times_table(record, shares)}"
        for record in measured
    )
    return (
        "## The time to a quality\n\n"
        f"**Measured** by `python benchmarks/batches.py`, on {toys} toys, each with {seeds} seed{'s' * (seeds > 1)}: "
        f"the share of the gap between the best of {min(count for count, _ in shares)} random policies and the optimum "
        "that a whole search closes, in the median over all of these. A row is the number of policies of the search, "
        f"a column its batch:\n\n{table_of_shares}{times}"
    )


def times_table(record: Record, shares: Reached) -> str:
    rows = []
    for workers in FLEETS:
        times = {
            (count, batch): computed(record, workers, batch, count).seconds
            for count, batch in shares if batch in measured_batches(record)
        }  # fmt: skip
        row = [f"{workers:,}"]
        for target in TARGETS:
            good = [key for key in times if shares[key] >= target]
            best = min(good, key=lambda key: (times[key], key), default=None)
            row.append(f"{duration(times[best])} ({best[0]:,}, {best[1]:,})" if best else "not reached")
        rows.append(row)
    return table(["workers", *(f"{target:.0%}" for target in TARGETS)], rows)


# Words


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"


def hourly(spent: Spent) -> str:
    return f"{3600 * spent.policies / spent.seconds:,.0f}"


def duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"
