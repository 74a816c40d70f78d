"""What a run's networks answer on the test split, class by class: the text of answers.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amc.report.tables import format_difference, part_of, records_of, within
from amc.search.statistics import PairedDrop

_SHOWN = 10  # classes


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class: the accuracies of the dense network and of the result, and their difference in points."""

    name: str
    images: int
    dense: str
    result: str
    difference: str
    noise: bool  # whether the difference is no larger than its standard error
    ahead: bool


@dataclass(frozen=True, slots=True)
class LostImage:
    """An image that the dense network has right and the result has not."""

    picture: str | None  # a PNG in base64
    label: str
    answer: str


@dataclass(frozen=True, slots=True)
class Answers:
    """The section of the page."""

    network: str  # which is compared: "fine-tuned" or "resulting"
    rows: list[ClassRow]  # the largest loss first
    lost: list[LostImage]
    lost_count: int
    gained_count: int
    images: int

    @property
    def shown(self) -> list[ClassRow]:
        """The classes that lose most; all of them where they are few."""
        return self.rows if len(self.rows) <= 2 * _SHOWN else self.rows[:_SHOWN]


def answers_of(record: Mapping[str, Any], *, finetuned: bool) -> Answers | None:
    """From the content of answers.json; None if it does not tell of the last network, fine-tuned or not."""
    name = "finetuned" if finetuned else "slim"
    if name not in record:
        return None
    found, names = part_of(record, name), record.get("names") or ()
    dense = part_of(record, "dense")["right"]
    columns = zip(record["classes"], dense, found["right"], found["lost"], strict=True)
    rows = [
        (right - before, _row(_named(number, names), images, before, right, lost))
        for number, (images, before, right, lost) in enumerate(columns)
        if images
    ]
    rows.sort(key=lambda row: row[0] / row[1].images)
    lost_count = sum(found["lost"])
    return Answers(
        network="fine-tuned" if finetuned else "resulting",
        rows=[row for _, row in rows],
        lost=[
            LostImage(each.get("picture"), _named(each["label"], names), _named(each["answer"], names))
            for each in records_of(found["examples"])
        ],
        lost_count=lost_count,
        gained_count=lost_count + sum(found["right"]) - sum(dense),
        images=record["images"],
    )


def _row(name: str, images: int, before: int, right: int, lost: int) -> ClassRow:
    error = PairedDrop(images, lost, right - before + lost).standard_error
    first, last = before / images, right / images
    difference = format_difference(first, last, error=error).removesuffix(" points")
    return ClassRow(name, images, f"{first:.2%}", f"{last:.2%}", difference, within(first, last, error), last > first)


def _named(number: int, names: Any) -> str:
    return str(names[number]) if number < len(names) else str(number)
