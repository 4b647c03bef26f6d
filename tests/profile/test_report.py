"""The HTML report: everything in one file, every head in its place, costs of the plan."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.profile.profiles import make_profile
from vllm_headaware.cli.main import main
from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.profile.format import SCORES
from vllm_headaware.profile.report import html
from vllm_headaware.profile.svg import STOPS, falling_curve, shade


class Balanced(HTMLParser):
    """Fails on tags that close in the wrong order; collects where links and sources lead."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.leads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.leads += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (17, 3), (80, 8)])
def test_the_page_is_whole_and_alone(layers: int, heads: int) -> None:
    page = html(make_profile(layers, heads), KVPolicyConfig("headaware", retrieval_share=0.3))
    reader = Balanced()
    reader.feed(page)
    assert reader.open == []
    assert reader.leads == []
    assert "script" not in page
    assert "http" not in page


def test_the_ablation_is_drawn_where_it_was_measured() -> None:
    profile = make_profile()
    page = html(profile)
    assert "50% of the heads keep it within 0.05" in page
    for share, loss in profile.ablation["curve"]:
        assert f"{share:.0%} of the heads: {loss:.3g}<" in page
    # What is lost beyond the picture's top (8 bounds) stays inside of it.
    assert min(float(y) for y in re.findall(r'cy="([\d.]+)"', page)) == 8
    assert "How many heads" not in html(dataclasses.replace(profile, ablation={}))


def test_every_head_is_shown_with_its_score_and_class() -> None:
    profile = make_profile(5, 2)
    page = html(profile, KVPolicyConfig("headaware", retrieval_share=0.2, induction_share=0.2))
    for y, row in enumerate(profile.scores["gate"]):
        for h, value in enumerate(row):
            shown = page.count(f"layer {y}, KV head {h}: {value:.4g}<")
            assert shown == len(SCORES), "one per score"
    # Scores grow with layer and head.
    assert "layer 4, KV head 1: retrieval<" in page
    assert "layer 0, KV head 0: local<" in page


def test_costs_are_those_of_the_plan() -> None:
    page = html(make_profile(6, 2), KVPolicyConfig("headaware", induction_share=0.0))
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    table = {row[0]: row for row in rows if len(row) == 8}
    assert set(table) == {"retrieval", "local", "all classes", "full cache"}
    for column in (5, 6, 7):
        parts = [float(table[name][column]) for name in ("retrieval", "local")]
        assert float(table["all classes"][column]) == pytest.approx(sum(parts), abs=0.11)
    # 12 heads of 16 numbers, K and V, 2 bytes each.
    assert float(table["full cache"][7]) == pytest.approx(32768 * 12 * 16 * 2 * 2 / 1e6, abs=0.05)


def test_curve_falls_from_the_largest_value() -> None:
    picture = falling_curve([1.0, 4.0, 2.0], [(0.5, "half")], "scores")
    points = re.search(r'polygon points="([^"]*)"', picture)
    assert points is not None
    ys = [float(point.split(",")[1]) for point in points[1].split()[1:-1]]
    assert ys == sorted(ys)
    assert len(set(ys)) == 3
    assert ">4<" in picture
    assert ">half<" in picture


def test_shades_run_from_dark_to_bright() -> None:
    assert shade(0) == shade(-1) == f"rgb{STOPS[0]}".replace(" ", "")
    assert shade(1) == shade(2) == f"rgb{STOPS[-1]}".replace(" ", "")
    assert shade(0.25) == f"rgb{STOPS[1]}".replace(" ", "")


def test_inspect_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, page = tmp_path / "p.json", tmp_path / "p.html"
    make_profile(12, 2).save(path)
    assert main(["inspect", str(path), "--html", str(page)]) == 0
    assert page.read_text() == html(make_profile(12, 2))
    assert main(["inspect", str(path), "--html", str(tmp_path / "no" / "p.html")]) == 2
    assert "cannot write report" in capsys.readouterr().err
