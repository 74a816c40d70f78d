from xml.etree import ElementTree as ET

import pytest

from amc.report.charts.drawing import NARROW, WIDE, Frame
from amc.report.charts.tradeoff import Point, TradeOff, describe_tradeoff, lowest, tradeoff_chart


def trade(**changes: object) -> TradeOff:
    values: dict[str, object] = {
        "points": [Point(0, 0.9, 0.8, explored=True), Point(1, 0.5, 0.85), Point(2, 0.3, 0.6)],
        "chosen": 1,
        "uniform": [Point(0, 1.0, 0.9), Point(1, 0.4, 0.7)],
        "random": [Point(0, 0.6, 0.65)],
        "dense": 0.9,
        "least": 0.88,
        "cost": "MACs",
        "percent": True,
    }
    return TradeOff(**(values | changes))  # type: ignore[arg-type]


def draw(drawn: TradeOff, frame: Frame = WIDE) -> ET.Element:
    return ET.fromstring(str(tradeoff_chart(drawn, frame, name="trade-wide")))


def of_class(svg: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in svg.iter() if element.get("class") == name]


def test_every_policy_has_its_mark_and_the_chosen_one_a_ring() -> None:
    svg = draw(trade())
    assert [dot[0].text for dot in of_class(svg, "c-explore")] == ["episode 0: 80.00% at 90.0% of the MACs"]
    exploited = of_class(svg, "c-exploit")
    assert [dot[0].text for dot in exploited] == [
        "episode 1: 85.00% at 50.0% of the MACs",
        "episode 2: 60.00% at 30.0% of the MACs",
    ]
    assert [dot[0].text for dot in of_class(svg, "c-random-dot")] == ["random, episode 0: 65.00% at 60.0% of the MACs"]
    ring = of_class(svg, "c-chosen")
    assert [(dot.get("cx"), dot.get("cy")) for dot in ring] == [(exploited[0].get("cx"), exploited[0].get("cy"))]


def test_better_is_higher_and_cheaper_is_further_left() -> None:
    dots = of_class(draw(trade()), "c-exploit")
    assert float(dots[0].get("cy", "")) < float(dots[1].get("cy", ""))
    assert float(dots[0].get("cx", "")) > float(dots[1].get("cx", ""))


def test_the_allowed_loss_is_a_line_below_the_dense_score() -> None:
    svg = draw(trade())
    dense, limit = of_class(svg, "c-dense")[0], of_class(svg, "c-limit")[0]
    assert float(dense.get("y1", "")) < float(limit.get("y1", ""))
    assert of_class(draw(trade(least=None)), "c-limit") == []


def test_uniform_policies_are_joined_in_order_of_cost() -> None:
    svg = draw(trade())
    dots = [(dot.get("cx"), dot.get("cy")) for dot in of_class(svg, "c-uniform-dot")]
    assert of_class(svg, "c-uniform")[0].get("d") == f"M{dots[0][0]} {dots[0][1]}L{dots[1][0]} {dots[1][1]}"
    assert float(dots[0][0] or 0) < float(dots[1][0] or 0)


def test_the_worst_quarter_does_not_flatten_the_rest() -> None:
    points = [Point(n, 0.5, 0.1 if n < 4 else 0.8 + n / 1000) for n in range(20)]
    crowded = trade(points=points, chosen=19, uniform=[], random=[], least=None)
    assert lowest(crowded) > 0.8
    svg = draw(crowded)
    marks = of_class(svg, "c-exploit")
    assert [mark.tag.rpartition("}")[2] for mark in marks[:4]] == ["path"] * 4  # triangles at the foot
    assert marks[19].tag.endswith("circle")
    assert "5 of them score below the drawing; triangles at its foot stand for them." in describe_tradeoff(crowded)


def test_the_chosen_one_is_never_cut_off() -> None:
    points = [Point(n, 0.5, 0.1 if n == 0 else 0.8 + n / 1000) for n in range(20)]
    assert lowest(trade(points=points, chosen=0)) == 0.1


def test_words_say_what_the_drawing_shows() -> None:
    text = describe_tradeoff(trade())
    assert text == (
        "3 policies, from 30.0% to 90.0% of the MACs, score 60.00% to 85.00%. "
        "The chosen one, of episode 1, keeps 50.0% and scores 85.00%."
    )
    assert draw(trade()).find("desc").text == text  # type: ignore[union-attr]
    assert describe_tradeoff(trade(points=[])) == "No episode has a score yet."


@pytest.mark.parametrize("frame", [WIDE, NARROW])
@pytest.mark.parametrize(
    "points",
    [
        [],
        [Point(0, 0.5, 0.5)],
        [Point(n, 0.5, 0.5) for n in range(9)],
        [Point(n, 0.01 * n + 0.1, n) for n in range(90)],
    ],
)
def test_every_mark_is_inside_the_drawing(frame: Frame, points: list[Point]) -> None:
    svg = draw(trade(points=points, uniform=[], random=[], dense=None, least=None, percent=False), frame)
    for element in svg.iter():
        assert frame.left <= float(element.get("cx", frame.left)) <= frame.end
        assert frame.top <= float(element.get("cy", frame.top)) <= frame.floor
