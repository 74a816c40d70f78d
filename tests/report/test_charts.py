import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from amc.report.charts.drawing import NARROW, WIDE, Frame, lowest_shown, ticks, vertical_scale
from amc.report.charts.learning import LearningCurve, describe, learning_curve, running_best
from amc.report.charts.training import TrainingCurve, describe_training, training_chart


def curve(**changes: object) -> LearningCurve:
    values: dict[str, object] = {
        "scores": [0.60, 0.50, None, 0.70, 0.65],
        "first": 0,
        "planned": 10,
        "warmup": 2,
        "uniform": 0.62,
        "random": [0.55, 0.58],
        "percent": True,
    }
    return LearningCurve(**(values | changes))  # type: ignore[arg-type]


def draw(drawn: LearningCurve, frame: Frame = WIDE) -> ET.Element:
    return ET.fromstring(str(learning_curve(drawn, frame, name="wide")))


def of_class(svg: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in svg.iter() if element.get("class") == name]


def test_running_best_starts_at_the_first_score() -> None:
    assert running_best([None, 0.2, None, 0.1, 0.3]) == [None, 0.2, 0.2, 0.2, 0.3]


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0.5, 10.5, 5, [2, 4, 6, 8, 10]),
        (0.585, 0.715, 5, [0.6, 0.65, 0.7]),
        (-3, 3, 6, [-3, -2, -1, 0, 1, 2, 3]),
        (-0.5, 99.5, 8, [0, 20, 40, 60, 80]),
    ],
)
def test_ticks_are_round(low: float, high: float, count: int, expected: list[float]) -> None:
    assert ticks(low, high, count) == pytest.approx(expected)


def test_an_axis_of_percentages_ends_at_0_and_100() -> None:
    high = vertical_scale([0.97, 1.0], WIDE, percent=True)
    assert (high.high, high.low) == (1.0, pytest.approx(0.9682))
    assert vertical_scale([0.0, 0.1], WIDE, percent=True).low == 0
    assert vertical_scale([0.97, 1.0], WIDE).high > 1


def test_the_worst_quarter_may_lie_below_a_chart_but_not_what_is_needed() -> None:
    values = [0.1, 0.2, *(0.8 + n / 100 for n in range(10))]
    assert 0.2 < lowest_shown(values) <= 0.81
    assert lowest_shown(values, [0.15, None]) == 0.15
    assert lowest_shown(values[:7]) == 0.1  # few values: all of them
    assert lowest_shown([]) == 0


def test_a_bad_start_does_not_flatten_the_curve() -> None:
    drawn = curve(scores=[0.1, 0.12, *(0.8 + n / 100 for n in range(10))], uniform=0.2, random=[0.1, 0.85])
    svg = draw(drawn)
    marks = [*of_class(svg, "c-explore"), *of_class(svg, "c-exploit")]
    triangles = [mark[0].text for mark in marks if mark.tag.endswith("path")]
    assert triangles[:2] == ["episode 0: 10.00%", "episode 1: 12.00%"]
    assert of_class(svg, "c-uniform") == []  # the legend has its score
    assert len(of_class(svg, "c-random")) == 1
    assert f"{len(triangles)} below the drawing are triangles at its foot." in describe(drawn)


def test_lines_that_agree_are_both_seen() -> None:
    kinds = [element.get("class") for element in draw(curve()).iter()]
    assert kinds.index("c-best") < kinds.index("c-uniform") < kinds.index("c-random")  # the broken ones on top


def test_fine_tuning_is_drawn_from_before_its_first_epoch() -> None:
    drawn = TrainingCurve(scores=[0.8, None, 0.86], start=0.7, dense=0.9, percent=True)
    svg = ET.fromstring(str(training_chart(drawn, NARROW, name="t-narrow")))
    dots = of_class(svg, "c-tuned")
    assert [dot[0].text for dot in dots] == ["before the first epoch: 70.00%", "epoch 1: 80.00%", "epoch 3: 86.00%"]
    heights = [float(dot.get("cy", "")) for dot in dots]
    assert heights == sorted(heights, reverse=True)
    assert len(of_class(svg, "c-dense")) == 1
    text = "Before the first epoch: 70.00%. Epoch 3: 86.00%. The dense network scores 90.00%."
    assert describe_training(drawn) == text


def test_every_episode_has_its_mark_and_its_number() -> None:
    svg = draw(curve())
    assert [dot[0].text for dot in of_class(svg, "c-explore")] == ["episode 0: 60.00%", "episode 1: 50.00%"]
    assert [dot[0].text for dot in of_class(svg, "c-exploit")] == ["episode 3: 70.00%", "episode 4: 65.00%"]
    assert [mark[0].text for mark in of_class(svg, "c-failed")] == ["episode 2: failed"]


def test_positions_are_linear_in_episode_and_score() -> None:
    svg = draw(curve(scores=[0.2, 0.4, 0.6, 0.8], warmup=0, uniform=0.4, random=[]))
    dots = of_class(svg, "c-exploit")
    x = [float(dot.get("cx", "")) for dot in dots]
    y = [float(dot.get("cy", "")) for dot in dots]
    assert [b - a for a, b in pairwise(x)] == pytest.approx([(900 - 52 - 12) / 10] * 3, abs=0.11)
    assert [a - b for a, b in pairwise(y)] == pytest.approx([y[0] - y[1]] * 3, abs=0.11)
    assert y[0] > y[3]  # better is higher
    assert float(of_class(svg, "c-uniform")[0].get("y1", "")) == y[1]


def test_best_line_is_a_staircase_through_the_records() -> None:
    svg = draw(curve(scores=[0.6, 0.5, 0.7], warmup=0, random=[], uniform=None))
    marks = [(dot.get("cx"), dot.get("cy")) for dot in of_class(svg, "c-exploit")]
    path = of_class(svg, "c-best")[0].get("d")
    assert path == f"M{marks[0][0]} {marks[0][1]}H{marks[2][0]}V{marks[2][1]}H{marks[2][0]}"
    assert of_class(svg, "c-random") == []
    assert of_class(svg, "c-uniform") == []


def test_warm_up_is_shaded_up_to_its_last_episode() -> None:
    band = of_class(draw(curve()), "warmup")[0]
    assert float(band.get("width", "")) == pytest.approx(2 / 10 * (900 - 52 - 12), abs=0.1)


@pytest.mark.parametrize("frame", [WIDE, NARROW])
@pytest.mark.parametrize(
    "scores", [[], [0.5], [None], [0.5, 0.5], [0.0, 0.0], [-310.5, 12.25], [1e-9, 2e-9], [0.7] * 500]
)
def test_every_number_is_inside_the_drawing(frame: Frame, scores: list[float | None]) -> None:
    svg = draw(curve(scores=scores, planned=len(scores), percent=False, random=[], uniform=None, warmup=0), frame)
    for element in svg.iter():
        for key, limit in (
            ("cx", frame.width),
            ("x1", frame.width),
            ("cy", frame.height),
            ("y1", frame.height),
        ):
            assert 0 <= float(element.get(key, "0")) <= limit


def test_axis_labels_differ_when_scores_lie_close_together() -> None:
    svg = draw(curve(scores=[0.7001, 0.7009], uniform=None, random=[], planned=2))
    labels = [text.text for text in of_class(svg, "tick") if text.text and text.text.endswith("%")]
    assert len(labels) >= 3
    assert len(set(labels)) == len(labels)


def test_words_say_what_the_drawing_shows() -> None:
    text = describe(curve())
    assert text == (
        "5 episodes; the best score, 70.00%, came in episode 3. The first 2 episodes were warm-up. "
        "The uniform policy scores 62.00%. The best of 2 random policies scores 58.00%. 1 episode failed."
    )
    svg = draw(curve())
    assert svg.get("role") == "img"
    assert svg.find("desc").text == text  # type: ignore[union-attr]
    assert describe(curve(scores=[None])) == "No episode has a score yet."


def test_names_are_escaped_and_ids_differ() -> None:
    first = str(learning_curve(curve(), WIDE, name="wide"))
    second = str(learning_curve(curve(), NARROW, name="narrow"))
    assert not set(re.findall(r'id="([^"]+)"', first)) & set(re.findall(r'id="([^"]+)"', second))
