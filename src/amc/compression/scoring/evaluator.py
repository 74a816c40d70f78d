"""A network -> its score.

`Evaluator` computes top-1 accuracy, or another named score, on a data set in memory. `as_evaluator` makes an
evaluator from a user's function or data. `PairedEvaluator` adds the standard error against the dense network.
`score_of` is the score of one network, with the user's errors named.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from amc.compression.scoring.boxes import boxed
from amc.compression.scoring.engine.base import Engine, TorchEngine
from amc.compression.scoring.metrics import Hits, Tally, tally
from amc.compression.scoring.outputs import classes_of, one_hot
from amc.compression.scoring.sources import BatchSource, Labels, SelectableSource, part_of, picked_from
from amc.errors import (
    AmcError,
    DataError,
    EvaluationError,
    NotFiniteError,
    ResourceError,
    explained,
)
from amc.run.provenance import data_fingerprint
from amc.run.settings.scores import DEFAULT, TOP1, get_score
from amc.search.judging import EVALUATE, number_of
from amc.search.statistics import Measured, PairedDrop, compare
from amc.structure.batches import Reader, laid_out, layout_for, mapped, picked
from amc.structure.modes import evaluating
from amc.structure.outputs import output_of
from amc.structure.trace import Example

T = TypeVar("T")

Evaluate = Callable[[nn.Module], float]  # network -> score, higher is better; a `Measured` with its standard error
Within = Callable[[nn.Module], nn.Module]  # a part of a network -> the whole network with it

BATCH, BATCH_GPU = 64, 512  # images; a processor's cache holds the activations of few, and many keep a GPU busy
KEEP_FLOAT_BYTES = 1 << 30  # largest size of normalised images in memory; a larger set is normalised on each use


class Evaluator:
    """A score of a network on labelled data; by default top-1 accuracy in [0, 1] of logits [B, classes].

    `source`: a `BatchSource`, or an iterable of batches with labels such as a DataLoader, which is read once.
    `batch_size`: see `BATCH` and `BATCH_GPU`.
    `autocast`: compute in bfloat16. Scores then differ from float32 by a few tenths of a percent; it is faster if the
    processor supports bfloat16. `score`: a name of `SCORES`; an error is negated, so that higher is better.
    `example_input`: shows how the network is called. Without it a batch is (inputs, labels), see `structure.batches`.
    The network is evaluated in eval mode on its own device; its mode is then restored. docs/scores.md lists the
    supported shapes of labels and outputs. Raises DataError if the set is empty or a batch does not fit;
    EvaluationError if outputs are NaN or labels do not fit them.
    """

    def __init__(
        self,
        source: BatchSource | Iterable[Any],
        *,
        batch_size: int = BATCH,
        autocast: bool = False,
        score: str = DEFAULT,
        example_input: Any = None,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch size must be at least 1, got {batch_size}")
        self.engine: Engine = TorchEngine(autocast=autocast)
        self.kind = get_score(score)
        tally(self.kind)  # raises now if a package is missing
        named = getattr(source, "classes", None) or getattr(getattr(source, "dataset", None), "classes", None)
        # Their names, as torchvision's data sets have them; of other data the attribute may be anything.
        self.classes = tuple(map(str, named)) if isinstance(named, list | tuple) else ()
        self._layout: torch.memory_format | None = None  # not known before the first network
        self._source: BatchSource | None = None
        self._batch_size = batch_size
        self.on_batch: Callable[[int, int], None] | None = None  # see `heard`
        self.within: Within | None = None  # see `as_evaluator`
        self._kept: list[tuple[Example, Labels]] = []
        self._own = isinstance(source, BatchSource)  # whether the batches are made here
        if not isinstance(source, BatchSource):
            reader = Reader.of(example_input, "a batch to evaluate on")
            if self.kind.of_boxes:
                self._kept = [*boxed(source, reader)]
            else:
                self._kept = [reader.labelled(batch) for batch in reader.batches(source)]
        elif self.kind.of_boxes:
            raise DataError(
                f"score {self.kind.name} needs the boxes of each image, and this data has classes; give batches "
                "(images, targets), or a function module -> float as evaluate"
            )
        else:
            first = next(iter(source.batches(1)), None)
            if first is not None and first[0].nbytes * len(source) > KEEP_FLOAT_BYTES:
                self._source = source
            else:
                self._kept = [(Example.of(images), labels) for images, labels in source.batches(batch_size)]
        if len(self) == 0:
            raise DataError("the set to evaluate on is empty; give it at least one image")

    def __call__(self, module: nn.Module) -> float:
        """The score of the network."""
        value = self._counted(module, tally(self.kind)).value()
        if not math.isfinite(value):
            raise NotFiniteError(
                f"{self.kind.label} is {value} on these {len(self)} images: it is not defined there, or the network's "
                "outputs are too large; give images of more than one class, and check the weights"
            )
        return self.kind.turned(value)

    def correct(self, module: nn.Module) -> Tensor:
        """Mask of the images that the network has right: bool [N] on the CPU, always in the same order."""
        return self.judged(module).right()

    def judged(self, module: nn.Module) -> Hits:
        """Which images the network has right, and what it answers, always in the same order."""
        hits = tally(self.kind)
        if not isinstance(hits, Hits):
            raise EvaluationError(
                f"{self.kind.label} does not call single images right or wrong; choose score top1 or top5"
            )
        self._counted(module, hits)
        return hits

    def inputs(self, places: Sequence[int]) -> list[Example]:
        """The inputs of the images at these places, which ascend: one batch of one image for each."""
        if isinstance(self._source, SelectableSource):
            return [Example.of(image) for image, _ in self._source.chosen(torch.tensor([place]) for place in places)]
        chosen = torch.zeros(len(self), dtype=torch.bool)
        chosen[list(places)] = True
        return [
            picked(inputs, torch.arange(len(labels)) == place)
            for inputs, labels in picked_from(self._batches(), chosen)
            for place in range(len(labels))
        ]

    def chance(self, module: nn.Module) -> float | None:
        """The expected score of random guessing; None if the score has no such value."""
        if self.kind.name == "auroc":
            return 0.5
        if not self.kind.per_image and self.kind.name != "balanced-accuracy":
            return None
        with self._running(module) as run:
            classes = classes_of(run(next(iter(self._batches()))[0]))
        return None if classes is None else (5 if self.kind.name == "top5" else 1) / classes

    @property
    def exclusive(self) -> bool:
        """Whether outputs are logits of classes of which one is right; several labels an example do not compete."""
        if not self.kind.is_share or self.kind.of_boxes:
            return False
        if self.kind.name not in ("macro-f1", "auroc"):
            return True  # the others refuse several labels
        wide = [labels for _, labels in self._kept if isinstance(labels, Tensor) and labels.ndim == 2]
        return all(labels.shape[1] == 1 or one_hot(labels) for labels in wide)

    def using(self, engine: Engine) -> "Evaluator":
        """The same score on the same images, computed by another engine."""
        other = copy.copy(self)
        other.engine = engine
        return other

    def of_parts(self, within: Within | None) -> "Evaluator":
        """The same score on the same images, of parts within their whole network; itself without `within`."""
        if within is None:
            return self
        other = copy.copy(self)
        other.within = within
        return other

    def divided(self, share: float) -> tuple["Evaluator", "Evaluator"]:
        """Two evaluators: one on `share` of the images, in (0, 1), for the search; one on the others, to confirm.

        The parts are random but always the same. Data sets are often sorted, for instance by class: a rule by position
        could put all images of a class into one part. Images in memory are copied. Raises DataError for fewer than
        two images.
        """
        if len(self) < 2:
            raise DataError("one image cannot be divided into a part to search on and one to confirm on; give more")
        count = min(len(self) - 1, math.ceil(len(self) * share))
        first = torch.zeros(len(self), dtype=torch.bool)
        first[torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:count]] = True
        parts = []
        for chosen in (first, ~first):
            part = copy.copy(self)
            if self._source is None:
                part._kept = [(self._in_layout(inputs), labels) for inputs, labels in picked_from(self._kept, chosen)]
            else:
                part._source = part_of(self._source, chosen)
            parts.append(part)
        return parts[0], parts[1]

    def fingerprint(self) -> str | None:
        """A digest of the images in memory and their labels, whatever the size of a batch; None if there are none.

        The user's own batches are as they came; those of a `BatchSource` are taken apart as on a processor.
        """
        if not self._kept:
            return None
        size = BATCH if self._batch_size > BATCH and self._own else len(self)
        parts = (
            (picked(inputs, slice(at, at + size)) if len(labels) > size else inputs, labels[at : at + size])
            for inputs, labels in self._kept
            for at in range(0, len(labels), size)
        )
        return data_fingerprint(list(parts))

    @property
    def held(self) -> Sequence[tuple[Example, Labels]]:
        """The batches in memory; empty if images are read again on each use."""
        return self._kept

    def __len__(self) -> int:
        """The number of images."""
        return sum(len(labels) for _, labels in self._kept) if self._source is None else len(self._source)

    def _counted(self, module: nn.Module, counted: Tally) -> Tally:
        with self._running(module) as run:
            for number, (inputs, labels) in enumerate(self._batches(), start=1):
                outputs = run(inputs)
                counted.add(outputs, labels.to(outputs.device) if isinstance(labels, Tensor) else labels)
                if self.on_batch is not None:
                    self.on_batch(number, self._count)
        return counted

    def fit_layout_(self, module: nn.Module) -> None:
        """Lay the images out as the network can take them; once, as all networks of a search are alike."""
        if self._layout is not None:
            return
        module = module if self.within is None else self.within(module)
        with TorchEngine().running(module) as run:
            self._layout = layout_for(module, run, next(iter(self._batches()))[0])
        self._kept = [(self._in_layout(inputs), labels) for inputs, labels in self._kept]

    def _in_layout(self, inputs: Example) -> Example:
        layout = self._layout or torch.channels_last
        return mapped(lambda tensor: laid_out(tensor, layout), inputs)

    @contextmanager
    def _running(self, module: nn.Module) -> Iterator[Callable[[Example], Any]]:
        """Yields a function from inputs to the outputs that are scored: the network in eval mode."""
        self.fit_layout_(module)
        module = module if self.within is None else self.within(module)
        with self.engine.running(module, held=self._source is None) as run:
            yield run if self.kind.of_boxes else lambda inputs: output_of(run(inputs))

    @property
    def _count(self) -> int:
        """The number of batches, or nearly so for a part of a source."""
        return len(self._kept) if self._source is None else math.ceil(len(self._source) / self._batch_size)

    def _batches(self) -> Iterable[tuple[Example, Labels]]:
        if self._source is None:
            return self._kept
        batches = self._source.batches(self._batch_size)
        return ((self._in_layout(Example.of(images)), labels) for images, labels in batches)


class PairedEvaluator:
    """Accuracy, with the standard error of its difference from the dense network's on the same images."""

    def __init__(self, evaluator: Evaluator, dense: nn.Module) -> None:
        """Evaluates `dense` once. Raises EvaluationError if the score does not call single images right or wrong."""
        self.evaluator = evaluator
        self._dense = evaluator.correct(dense)

    @property
    def dense_score(self) -> float:
        """The dense network's accuracy."""
        return int(self._dense.sum()) / len(self._dense)

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self._dense)

    def __call__(self, module: nn.Module) -> Measured:
        """The network's accuracy, equal to that of `Evaluator`, with the standard error."""
        right = self.evaluator.correct(module)
        return Measured(int(right.sum()) / len(right), compare(self._dense, right).standard_error)

    def compare(self, module: nn.Module) -> PairedDrop:
        """The network's loss against the dense one, in images."""
        return compare(self._dense, self.evaluator.correct(module))

    def between(self, before: nn.Module, after: nn.Module) -> PairedDrop:
        """What the second network loses against the first, in images."""
        return compare(self.evaluator.correct(before), self.evaluator.correct(after))


class BesideDense:
    """A score on images, and the dense network's on the same ones; for scores that do not judge single images."""

    def __init__(self, evaluator: Evaluator, dense: nn.Module) -> None:
        self.evaluator, self.dense_score = evaluator, evaluator(dense)

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.evaluator)

    def __call__(self, module: nn.Module) -> float:
        """The network's score."""
        return self.evaluator(module)


def as_evaluator(
    evaluate: Any,
    *,
    autocast: bool = False,
    score: str = DEFAULT,
    example_input: Any = None,
    device: torch.device | None = None,
    within: Within | None = None,
) -> Evaluate:
    """`evaluate` as a function of a network. Data becomes an `Evaluator`; the scores of a callable are checked.

    A callable must return a number within ±`amc.search.judging.LARGEST`; the checked function raises EvaluationError
    otherwise. Errors that the callable raises pass through. `score` and `example_input` apply to data, see `Evaluator`.
    `device`: of the networks, which decides the size of a batch; None: the CPU. `within`: what is scored are
    parts, each within its whole network.
    """
    batch_size = BATCH if device is None or device.type == "cpu" else BATCH_GPU
    if isinstance(evaluate, PairedEvaluator):
        if within is None:
            return evaluate
        paired = copy.copy(evaluate)
        paired.evaluator = evaluate.evaluator.of_parts(within)
        return paired
    if isinstance(evaluate, Evaluator):
        return evaluate.of_parts(within)
    if isinstance(evaluate, BatchSource):
        source = Evaluator(evaluate, batch_size=batch_size, autocast=autocast, score=score, example_input=example_input)
        return source.of_parts(within)
    if callable(evaluate):
        if get_score(score) is not TOP1:
            raise AmcError(f"evaluate is a function, which is the score itself; leave out score {score!r}")
        return _checked_score(evaluate, within)
    if isinstance(evaluate, Iterable):
        return Evaluator(evaluate, autocast=autocast, score=score, example_input=example_input).of_parts(within)
    wrap = ", such as DataLoader(dataset, batch_size=64)" if hasattr(evaluate, "__getitem__") else ""
    raise EvaluationError(
        f"evaluate is a {type(evaluate).__name__}; give a function module -> float or a loader of (images, labels)"
        f"{wrap}"
    )


def engine_of(evaluate: Evaluate) -> Engine:
    """The engine that the score runs networks with; torch for a user's function."""
    evaluator = evaluate.evaluator if isinstance(evaluate, PairedEvaluator) else evaluate
    return evaluator.engine if isinstance(evaluator, Evaluator) else TorchEngine()


@contextmanager
def heard(evaluate: Any, on_batch: Callable[[int, int], None]) -> Iterator[None]:
    """Inside the block, `on_batch` hears how many batches of how many are scored. A user's function tells nothing."""
    evaluator = evaluate.evaluator if isinstance(evaluate, PairedEvaluator | BesideDense) else evaluate
    if not isinstance(evaluator, Evaluator):
        yield
        return
    before, evaluator.on_batch = evaluator.on_batch, on_batch
    try:
        yield
    finally:
        evaluator.on_batch = before


def score_of(score: Evaluate, model: nn.Module, which: str) -> float:
    """The score in eval mode, with its standard error if that is known; all modes are restored.

    Raises EvaluationError if the user's function fails.
    """
    with evaluating(model):
        value = scored_on(which, lambda: score(model))
        number = number_of(value, EVALUATE)
        return value if isinstance(value, Measured) else number


def final_score(
    score: Evaluate, model: nn.Module, which: str, what: str = "test score"
) -> tuple[float | None, list[str]]:
    """A score for the record only: if it fails, None and a warning with the reason. `what` names the score."""
    try:
        return score_of(score, model, which), []
    except ResourceError:
        raise
    except AmcError as error:
        return None, [f"the {which} network has no {what}: {error}"]


def scored_on(which: str, call: Callable[[], T]) -> T:
    """The result of `call`, which scores the `which` network. Its errors become EvaluationErrors, unless AmcErrors."""
    what, remedy = f"evaluate fails on the {which} network", "it must return a number for any network of this class"
    doing = f" while the {which} network is scored; free some, then start or resume"
    with explained(EvaluationError, what, remedy, doing=doing):
        return call()


def _checked_score(evaluate: Evaluate, within: Within | None) -> Evaluate:
    def score(module: nn.Module) -> float:
        value = evaluate(module if within is None else within(module))
        number = number_of(value, EVALUATE)
        return value if isinstance(value, Measured) else number

    return score
