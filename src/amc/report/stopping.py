"""Why a search ended before its last episode, in words. Reads dictionaries. Pure: no files."""

from collections.abc import Mapping
from typing import Any

from amc.report.tables import format_points, format_seconds, part_of, scores_are_fractions


def stop_sentence(summary: Mapping[str, Any]) -> str:
    """The sentence for `summary.json`; empty if the search had all its episodes."""
    stop = part_of(summary, "stopped")
    if not stop:
        return ""
    # The reward r_err is the score minus 1: its gains are gains of score.
    points = summary.get("reward") == "r_err" and scores_are_fractions(summary)
    return sentence_of(stop, summary.get("episodes"), points=points)


def sentence_of(stop: Mapping[str, Any], episodes: object, *, points: bool = False) -> str:
    """The sentence for the fields of an `amc.search.Stop`; `points`: whether a gain of 0.01 is a point of accuracy."""
    begin = f"stopped after {episodes} of {stop['planned']} episodes: "
    stale = stop.get("stale")
    if stop.get("words"):
        return f"{begin}{stop['words']}"
    if stale is None:
        return f"{begin}the time limit of {format_seconds(stop.get('limit'))} was used up"
    begin += "the last one was not better" if stale == 1 else f"the last {stale} were not better"
    gain = stop.get("expected_gain")
    if not isinstance(gain, int | float):
        return begin
    more = f"{format_points(100 * gain)} more" if points else f"{gain:.2g} more reward"
    return f"{begin}, and the model expects at most {more}"
