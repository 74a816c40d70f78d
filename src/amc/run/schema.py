"""The fields of a run's files and their types, on which readers may rely.

Unknown fields pass: an older or newer version may have written them. A known field may be absent unless it is needed.
`json_schemas` says the same in JSON Schema, for programs of other people; docs/schema/ has its files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from amc.run.records import (
    Check,
    DamagedError,
    anything,
    count,
    fields,
    flag,
    many,
    number,
    optional,
    positive,
    scalar,
    shown,
    table,
    text,
    whole,
)

MAX_INPUT = 2**28  # values of one example: 1 GiB

_COSTS = table(optional(number))


_SIZES = many(positive, least=1)


def _bounded(value: Any, place: str) -> None:
    """The shape of one example, bounded because a tensor of this shape will be allocated."""
    _SIZES(value, place)
    if math.prod(value) > MAX_INPUT:
        raise DamagedError(f"has {shown(value)} as {place}, more values than any network takes")


CONFIG = fields(
    {
        **dict.fromkeys(("amc_version", "command", "method", "reward", "score", "minimise", "agent"), text),
        **dict.fromkeys(("recover", "bn_rule", "engine", "count"), text),
        **dict.fromkeys(("model", "weights", "data", "evaluate", "device"), optional(text)),
        **dict.fromkeys(("budget", "part", "ranking", "runtime", "ray"), optional(text)),
        **dict.fromkeys(
            ("device_url", "token_file", "parent", "repeat", "warm_start", "weights_digest", "weights_sha256"),
            optional(text),
        ),
        **dict.fromkeys(("episodes", "latency_threads", "calibration_images", "batch"), positive),
        **dict.fromkeys(("seed", "keep_sets", "finalists"), count),
        **dict.fromkeys(("round_to", "search_images", "image_size", "patience", "workers"), optional(positive)),
        "time_limit": optional(text),
        "bn_images": optional(count),
        **dict.fromkeys(("max_drop", "score_timeout"), optional(number)),
        **dict.fromkeys(("confidence", "max_sparsity", "max_sparsity_linear", "recover_time", "random_share"), number),
        **dict.fromkeys(("reconstruct", "sequential", "bf16", "uniform_first", "approximate"), flag),
        **dict.fromkeys(("test", "pretrained"), optional(flag)),
        **dict.fromkeys(("baselines", "lock", "only", "agent_options"), many(text)),
        "input_shape": Check(_bounded, _SIZES.schema),
        "model_args": table(anything),
        "preprocessing": optional(table(anything)),
        "schedule": optional(many(number, least=1)),
        "tuning": table(scalar),
        "sweep": fields({**dict.fromkeys(("metric", "start", "end"), text), "points": positive}),
        "study": fields(
            {
                **dict.fromkeys(("budgets", "metrics", "methods", "rewards", "max_drops", "runtimes"), text),
                "epochs": count,
                "seeds": positive,
            }
        ),
    }
)

_TRIAL = fields({"episode": count, "drop": number, "upper": number, "confirmed": flag})
_GUARANTEE = fields(
    {
        "max_drop": number, "minimise": text, "confidence": number, "images": optional(count), "confirmed": flag,
        "drop": number, "upper": number, "trials": many(_TRIAL),
    }
)  # fmt: skip
_LATENCY = fields(
    {
        **dict.fromkeys(("runtime", "version", "precision"), text),
        "device": optional(text),
        "threads": positive,
        "machine": table(scalar),
        **dict.fromkeys(("dense_ms", "slim_ms", "predicted_ms", "share", "uncertainty", "seconds"), number),
        "steady": flag,
        "measured": count,
        "scored_again": count,
        "table": table(scalar),
    }
)
_MEASURED: Mapping[str, Check] = {
    "episode": count, "keep": many(positive), "score": number, "score_tuned": optional(number),
    "reward_tuned": optional(number),
}  # fmt: skip
_CANDIDATE = fields({**_MEASURED, "chosen": flag})
_FINALIST: Mapping[str, Check] = {
    "episode": count, "keep": many(positive), "chosen": flag,
    **dict.fromkeys(("score", "score_unseen", "score_recovered"), optional(number)),
}  # fmt: skip
_FINALISTS = fields(
    {
        "images": optional(count), **dict.fromkeys(("dense_search", "dense"), number), "overrated": optional(number),
        "trials": many(fields(_FINALIST)),
    }
)  # fmt: skip
_RECOVERY = fields(
    {
        **dict.fromkeys(("outcome",), text), **dict.fromkeys(("reason", "stopped"), optional(text)),
        **dict.fromkeys(("images", "held_out", "steps"), count), "flips": flag, "seconds": number,
        **dict.fromkeys(("distance_before", "distance_after"), optional(number)),
    }
)  # fmt: skip
_STOP = fields(
    {
        "reason": text, "planned": positive, "limit": optional(number), "stale": optional(positive),
        "expected_gain": optional(number), "words": optional(text),
    },
    needed=("reason", "planned"),
)  # fmt: skip
_BEFORE_AFTER = fields({"dense": table(count), "slim": table(count)}, needed=("dense", "slim"))
_PART = fields(
    {"name": text, "count": text, "calls": positive, "part": _BEFORE_AFTER, "whole": _BEFORE_AFTER},
    needed=("name", "count", "part"),
)
_ROUND = fields({"fraction": number, "run": text, **dict.fromkeys(("macs", "params", "size", "score"), number)})
_POINT = fields(
    {
        **dict.fromkeys(("budget", "run"), text), "dense": _COSTS, "slim": _COSTS,
        "baselines": table(_COSTS), "images": optional(count), "standard_error": optional(number),
    },
    needed=("budget", "run", "slim"),
)  # fmt: skip

SUMMARY = fields(
    {
        **dict.fromkeys(("amc_version", "budget", "method", "reward", "agent", "score", "engine"), optional(text)),
        **dict.fromkeys(("model", "data"), optional(text)),
        **dict.fromkeys(("episodes", "failed_episodes"), optional(count)),
        "ranked": optional(many(count)),
        "seed": optional(whole),
        "seconds": optional(number),
        "dense": _COSTS,
        "slim": _COSTS,
        "baselines": optional(table(_COSTS)),
        "groups": optional(many(fields({"name": text, "size": count, "kept": count, "saves": table(number)}))),
        "locked": optional(many(fields({"name": text, "size": count, "reason": text}))),
        "warnings": optional(many(text)),
        "certificate": optional(
            fields(
                {
                    "keep_sets": count,
                    "worst_error": number,
                    "passed": flag,
                    "locked": many(text),
                    "approximate": table(number),
                },
            )
        ),
        "environment": optional(table(scalar)),
        "guarantee": optional(_GUARANTEE),
        "latency": optional(_LATENCY),
        "candidates": optional(many(_CANDIDATE)),
        "finalists": optional(_FINALISTS),
        "stopped": optional(_STOP),
        "recovery": optional(_RECOVERY),
        "pruned_part": _PART,
        "finetuning": optional(table(anything)),
        "schedule": optional(many(number)),
        "rounds": optional(many(_ROUND)),
        "sweep": optional(table(scalar)),
        "points": optional(many(_POINT)),
        "knee": optional(text),
        "files": table(text),
    }
)

POLICY = fields(
    {
        "method": text,
        "part": optional(text),
        "approximate": flag,
        "groups": many(
            fields({"name": text, "size": positive, "kept": positive, "keep": many(count)}, needed=("name", "size"))
        ),
    },
    needed=("method", "groups"),
)

FINETUNE_STATE = fields(
    {
        "settings": table(scalar),
        "candidates": positive,
        "candidate_epochs": positive,
        "measured": many(fields(_MEASURED, needed=_MEASURED)),
        "places": many(table(scalar)),
    },
    needed=("settings", "candidates", "candidate_epochs", "measured"),
)

PLAN = fields(
    {
        "max_seconds": optional(number),
        "epochs": optional(positive),
        "share": number,
        "steps": optional(count),
        "limited": flag,
    },
    needed=("max_seconds", "epochs", "share", "steps", "limited"),
)
EPISODE = fields(
    {
        "episode": count,
        "keep": many(positive),
        "cost": table(number),
        "score": optional(number),
        "reward": optional(number),
        "error": optional(text),
        "standard_error": optional(number),
        "progress": optional(number),
        "stopped": optional(_STOP),
    }
)
ORIGIN = fields(
    {"environment": table(scalar), "dense_score": number, "data": table(optional(text))},
    needed=("environment", "dense_score", "data"),
)
HEADER = fields(  # a line of a resumed search on another machine has `environment` alone
    {
        "journal": positive, "seed": whole, "agent": text, "decisions": text, "settings": table(anything),
        "floor": optional(number), "origin": ORIGIN, "environment": table(scalar),
    }
)  # fmt: skip
TIMING = fields({"agent": text, "episode": count, "seconds": table(number)})
RECOVERY = fields({"keep": many(positive), "plan": PLAN}, needed=("keep", "plan"))
LOGGED = fields({"key": text, "series": text, "step": count})
EPOCH = fields({"epoch": positive, **dict.fromkeys(("loss", "lr", "seconds"), number), "score": optional(number)})

STATUS = fields(
    {
        **dict.fromkeys(("part", "stage"), text), **dict.fromkeys(("began", "stage_began", "written"), number),
        **dict.fromkeys(("done", "total", "macs"), optional(count)), "epochs": many(EPOCH),
    },
    needed=("part", "stage", "began", "stage_began", "written", "done", "total", "epochs"),
)  # fmt: skip

_ANSWERS = fields({"right": many(count), "mask": text}, needed=("right", "mask"))
_LOST = fields({"image": count, "label": count, "answer": count, "picture": optional(text)})
_BESIDE = fields(
    {"right": many(count), "lost": many(count), "examples": many(_LOST)}, needed=("right", "lost", "examples")
)
ANSWERS = fields(
    {
        "images": positive, "classes": many(count), "names": many(text), "dense": _ANSWERS, "slim": _BESIDE,
        "finetuned": _BESIDE,
    },
    needed=("images", "classes", "names", "dense"),
)  # fmt: skip

OBJECTS: Mapping[str, Check] = {
    "status.json": STATUS,
    "config.json": CONFIG,
    "summary.json": SUMMARY,
    "policy.json": POLICY,
    "answers.json": ANSWERS,
    "finetune-state.json": FINETUNE_STATE,
    "latency.json": fields({"records": table(table(anything))}),
    "export.json": fields({"records": table(table(anything))}),
    "measured.json": fields({"reasons": table(text), "runtimes": table(table(table(anything)))}),
    "earlier.json": fields({"records": many(EPISODE)}),
}
JOURNAL = Check(
    lambda record, place: (EPISODE if "episode" in record else HEADER)(record, place),
    {"if": {"required": ["episode"]}, "then": EPISODE.schema, "else": HEADER.schema},
)
LINES: Mapping[str, Check] = {
    "journal.jsonl": JOURNAL,
    "timings.jsonl": TIMING,
    "finetune.jsonl": EPOCH,
    "recovery.jsonl": RECOVERY,
}


def check_of_lines(name: str) -> Check:
    """The rule for a record of the line file of this name."""
    if name.startswith("journal"):
        return JOURNAL
    return LOGGED if name.startswith("logged-") else LINES.get(name, anything)


def json_schemas() -> dict[str, dict[str, Any]]:
    """By file name, the JSON Schema (2020-12) of the file, or of each of its lines where the name ends in .jsonl."""
    return {name: _document(name, check) for name, check in {**OBJECTS, **LINES}.items()}


def _document(name: str, check: Check) -> dict[str, Any]:
    what = "One line" if name.endswith(".jsonl") else "The content"
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": name,
        "description": f"{what} of a run's {name}. Fields that are not listed here are allowed.",
        **check.schema,
    }
