"""What goes to a worker, which scores with it, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import cloudpickle
import torch

from amc.compression.scoring.engine.network import PiecewiseEngine
from amc.compression.scoring.policy import PolicyScorer
from amc.errors import AmcError, EvaluationError, ResourceError, check_resources, guarded, reason_of
from amc.search.statistics import Measured


def write_scorer(scorer: PolicyScorer, file: Path | IO[bytes], pickling: Any = cloudpickle) -> None:
    """The network, the tables of its layers and the images.

    pickling: `amc.run.mapped.BY_NAME` leaves out the content of images that are mapped from a file of this machine.
    Raises AmcError for what cannot be pickled.
    """
    try:
        torch.save(scorer, file, pickle_module=pickling)
    except Exception as error:  # the user's network or `evaluate` may hold anything
        check_resources(error)
        raise AmcError(
            f"the search cannot be sent to workers ({reason_of(error)}); leave out what cannot be pickled from "
            "evaluate and from the network, or leave out workers"
        ) from error


def answering(scorer_file: Path, memory: int, gpu: int | None) -> Callable[[tuple[int, ...]], dict[str, Any]]:
    """A function that scores a policy on one thread, with a file that this user has written a moment ago.

    The file is mapped into memory, so that all workers of a machine hold it once. memory: bytes that the engine may
    remember; gpu: the index of the GPU, if the networks are on one. An answer is a dict for JSON: the score, or the
    reason why there is none.
    """
    torch.set_num_threads(1)

    def placed(storage: Any, location: str) -> Any:
        return storage.cuda(gpu) if location.startswith("cuda") else storage

    scorer = torch.load(scorer_file, mmap=True, weights_only=False, map_location=placed)
    if isinstance(scorer.engine, PiecewiseEngine):
        scorer.engine.memory.limit = memory

    def answer(policy: tuple[int, ...]) -> dict[str, Any]:
        told = len(scorer.engine.warnings)
        try:
            scored = guarded(lambda: scorer.scored(policy))
        except EvaluationError as error:
            return {"error": str(error)}
        except ResourceError as error:
            return {"resource": str(error)}
        deviation = scored.score.standard_error if isinstance(scored.score, Measured) else None
        timing = scored.timing
        return {
            "score": float(scored.score), "standard_error": deviation,
            "seconds": [timing.build, timing.batch_norm, timing.evaluate], "warnings": scorer.engine.warnings[told:],
        }  # fmt: skip

    return answer
