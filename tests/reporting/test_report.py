"""The report: what its figures draw, that nothing leaves the page, and that a browser shows it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import language_helpers as language
import numpy as np
import pytest
import tiny
import tiny_regression
from evaluate_helpers import ensemble_of, pixels_of, student_of
from scipy.stats import entropy
from tiny import refused, settings
from typer.testing import CliRunner

from ensemble_distill.cli.app import app
from ensemble_distill.evaluation.comparison import Comparison
from ensemble_distill.evaluation.remarks import remarks
from ensemble_distill.evaluation.result import Evaluation
from ensemble_distill.evaluation.tables import tables
from ensemble_distill.reporting.drawing import Picture
from ensemble_distill.reporting.page import page as written
from ensemble_distill.reporting.pictures import ORDER
from ensemble_distill.reporting.verdict import verdict
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What stands in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str]] = []
        self.leads: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = {name: value or "" for name, value in attrs}
        self.leads += [found[name] for name in ("src", "href", "action", "srcset", "data") if name in found]
        if tag == "img":
            self.images.append(found)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation]:
    """Four members, a run, a report of it with shifts, and its figures. Do not write to it."""
    folder = tiny.make_folder(tmp_path_factory.mktemp("report") / "tiny", 4)
    cache_logits(settings(folder))
    train(settings(folder, {"output.name": "hydra-s0"}))
    return folder, evaluate(settings(folder), "hydra-s0", shifts=True, report=folder / "report.html")


@pytest.fixture(scope="module")
def made(judged: tuple[Path, Evaluation]) -> Path:
    return judged[0]


@pytest.fixture(scope="module")
def drawn(made: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return Page((made / "report.html").read_text(encoding="utf-8"))


# --- what is drawn ----------------------------------------------------------------------------------------------


def test_every_figure_of_classes_is_there_once(drawn: dict[str, Any], page: Page) -> None:
    expected = [key for key in ORDER if key != "spread"]
    assert list(drawn["figures"]) == expected
    assert len(page.images) == len(expected)
    for image in page.images:
        assert image["alt"]
        svg = base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,"))
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"


def test_figures_draw_what_rows_say(made: Path, drawn: dict[str, Any]) -> None:
    x, y = pixels_of(made / "data/test.npz"), np.load(made / "data/test.npz")["y"]
    log_p, log_q = ensemble_of(made, x), student_of(made / "runs/hydra-s0", x)
    of = {"ensemble": np.exp(log_p).mean(1), "student": np.exp(log_q).mean(1)}
    for name, mean in of.items():
        confidence, right = mean.max(1), mean.argmax(1) == y
        bins = drawn["figures"]["reliability"]["data"][name]
        at = np.ceil(confidence * 10).astype(int) - 1
        wanted = [(int((at == one).sum()), confidence[at == one].mean(), right[at == one].mean()) for one in set(at)]
        found = [(each["rows"], each["confidence"], each["accuracy"]) for each in bins]
        np.testing.assert_allclose(sorted(found), sorted(wanted), rtol=2e-3, atol=2e-4)

        kept = drawn["figures"]["rejection"]["data"]
        order = np.argsort(entropy(mean, axis=1), kind="stable")
        half = order[: round(len(order) / 2)]
        assert kept[name][kept["rejected"].index(0.5)] == pytest.approx(right[half].mean(), abs=1.1 / len(half))

    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    each = drawn["figures"]["heads"]["data"]
    np.testing.assert_allclose(each["kl"], kl.mean(0), rtol=1e-2, atol=1e-4)
    collapsed = (np.exp(log_p) * (log_p - np.log(of["student"])[:, None])).sum(-1)
    np.testing.assert_allclose(each["collapsed_kl"], collapsed.mean(0), rtol=1e-2, atol=1e-4)
    apart = entropy(of["ensemble"], of["student"], axis=1)
    rows = [each["row"] for each in drawn["figures"]["farthest"]["data"]]
    assert rows[0] == apart.argmax()
    np.testing.assert_allclose(apart[rows], np.sort(apart)[::-1][: len(rows)], rtol=1e-2, atol=1e-5)
    np.testing.assert_allclose(
        drawn["figures"]["farthest"]["data"][0]["heads"], np.exp(log_q)[rows[0]], rtol=1e-3, atol=1e-4
    )


def test_rows_from_elsewhere_stand_beside_those_of_the_split(made: Path, drawn: dict[str, Any]) -> None:
    found = drawn["figures"]["elsewhere"]["data"]
    for model in ("ensemble", "student"):
        shares = found["shares"][model]
        assert list(shares) == ["test", "ood/noise"]
        for name, of in shares.items():
            with np.load(made / f"runs/hydra-s0/evaluations/{name}.npz") as rows:
                values = rows[f"{model}_model_uncertainty"]
            np.testing.assert_allclose(
                of, np.histogram(values, found["edges"])[0] / len(values), atol=1.1 / len(values)
            )


@pytest.mark.parametrize("name", ["ensemble", "$x^{2$ & <b> \x1b[2J", "long " * 40])
def test_a_run_may_have_any_name(made: Path, tmp_path: Path, name: str, drawn: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "tiny"))
    (folder / "runs/hydra-s0").rename(folder / "runs" / name)
    evaluate(settings(folder), name, report=folder / "other.html")
    found = json.loads((folder / "other.json").read_text())["figures"]
    assert found["reliability"]["data"] == drawn["figures"]["reliability"]["data"]
    page = Page((folder / "other.html").read_text(encoding="utf-8"))
    for image in page.images:
        ElementTree.fromstring(base64.b64decode(image["src"].partition(",")[2]))
    assert any("other.json" in words for words in page.words)


def test_of_texts_what_has_no_row_of_its_own_is_left_out(tmp_path: Path) -> None:
    language.make_language(tmp_path / "text")
    asked = language.settings(tmp_path / "text", output__name="hydra")
    cache_logits(asked)
    train(asked)
    evaluate(asked, "hydra", report=tmp_path / "report.html")
    figures = json.loads((tmp_path / "report.json").read_text())["figures"]
    assert set(figures) == {"ladder", "reliability", "agreement", "rejection", "heads"}


def test_a_report_is_the_same_bytes_again(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "tiny"))
    evaluate(settings(folder), "hydra-s0", shifts=True, report=folder / "again.html")

    def untimed(text: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(text)
        return {key: of["data"] for key, of in found["figures"].items() if key != "ladder"}  # it has the latency

    assert untimed((folder / "again.json").read_text()) == untimed((made / "report.json").read_text())


def test_of_numbers_errors_stand_against_what_was_predicted(tmp_path: Path) -> None:
    folder = tiny_regression.make_folder(tmp_path / "tiny")
    cache_logits(settings(folder))
    train(settings(folder, {"output.name": "hydra-s0"}))
    evaluate(settings(folder), "hydra-s0", report=folder / "report.html")
    figures = json.loads((folder / "report.json").read_text())["figures"]
    assert "spread" in figures
    assert {"reliability", "farthest"}.isdisjoint(figures)
    with np.load(folder / "runs/hydra-s0/evaluations/test.npz") as rows:
        variance, squared = rows["student_variance"].ravel(), rows["student_squared_error"].ravel()
    bins = figures["spread"]["data"]["student"]
    assert sum(each["rows"] for each in bins) == len(variance)
    first = np.argsort(variance, kind="stable")[: bins[0]["rows"]]
    assert bins[0]["error"] == pytest.approx(np.sqrt(squared[first].mean()), rel=1e-4)


# --- the page ---------------------------------------------------------------------------------------------------


def test_nothing_leaves_the_page(page: Page, made: Path) -> None:
    assert {"script", "link", "iframe", "object", "form", "base"}.isdisjoint(page.tags)
    assert all(leads.startswith("data:image/svg+xml;base64,") for leads in page.leads)
    style = re.findall(r"<style>(.*?)</style>", (made / "report.html").read_text(), re.DOTALL)
    assert "url(" not in "".join(style)
    for image in page.images:  # nor a picture
        svg = base64.b64decode(image["src"].partition(",")[2]).decode()
        links = re.findall(r'(?:xlink:)?href="([^"]*)"', svg)
        assert all(link.startswith(("#", "data:")) for link in links)


def _luminance(color: str) -> float:
    """Relative, as WCAG 2 defines it."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_on_a_dark_screen_no_figure_is_a_white_block_and_each_color_stands_out(page: Page) -> None:
    for image in page.images:
        root = ElementTree.fromstring(base64.b64decode(image["src"].partition(",")[2]))
        sheet = "".join(style.text or "" for style in root.iter("{http://www.w3.org/2000/svg}style"))
        (rules,) = re.findall(r"@media screen and \(prefers-color-scheme: dark\) \{(.*)\}", sheet, re.DOTALL)
        instead = {
            (of, was): now
            for of, was, same, now in re.findall(
                r'\[style\*="(fill|stroke): (#\w{6})"\] \{ (fill|stroke): (#\w{6}) !important; \}', rules
            )
            if of == same
        }
        paper = instead["fill", "#ffffff"]
        assert _luminance(paper) < 0.02
        styles = [element.get("style", "") for element in root.iter()]
        used = {found for style in styles for found in re.findall(r"(fill|stroke): (#\w{6})", style)}
        assert used >= {("fill", "#ffffff"), ("stroke", "#000000")}
        shown = {instead.get(found, found[1]) for found in used} - {paper}
        shown |= set(re.findall(r"text \{ fill: (#\w{6}); \}", rules))
        for color in shown:  # of WCAG 2, what lines of a chart need
            assert (_luminance(color) + 0.05) / (_luminance(paper) + 0.05) >= 3, color


def test_titles_of_sections_stay_in_sight_as_labels_do(made: Path) -> None:
    text = (made / "report.html").read_text(encoding="utf-8")
    sections = re.findall(r'<th scope="rowgroup" colspan="\d+">(.*?)</th>', text)
    assert sections
    assert all(re.fullmatch("<span>[^<]*</span>", section) for section in sections)  # the cell is as wide as its table
    assert re.search(r"th\[scope=rowgroup\] span \{ position: sticky; left:", text)


def test_the_first_words_are_what_to_do(page: Page, drawn: dict[str, Any]) -> None:
    told = " ".join(page.words)
    assert told.index(drawn["verdict"]["headline"]) < told.index("in fidelity")


def test_names_are_words_whatever_they_hold(tmp_path: Path) -> None:
    evil = ['</title><img src=x onerror="alert(1)">', "$x^{2$ & <b>", "日本 \x1b[2J"]
    folder = tiny.make_folder(tmp_path / "tiny", 4)
    cache_logits(settings(folder))
    train(settings(folder, {"output.name": "plain"}))
    (folder / "runs/plain").rename(folder / "runs/a&b$")
    found = evaluate(settings(folder), "a&b$", report=folder / "report.html")
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert any("a&b$" in words for words in page.words)
    picture = Picture("x", evil[0], evil[1], evil[2], {}, b"<svg/>")
    named = replace(found, run=evil[0])
    text = written(named, verdict(named), tables(Comparison((named,))), evil, [picture], "x.json")
    page = Page(text)
    assert page.tags.count("img") == 1
    assert "\x1b" not in text
    assert any(evil[0] in words for words in page.words)


@pytest.mark.parametrize(
    ("name", "told"),
    [("report.pdf", "report.html"), ("report", ".html"), ("no/r.html", "no"), ("", "report.html"), ("data", "folder")],
)
def test_a_report_that_cannot_be_written_is_refused_first(made: Path, name: str, told: str) -> None:
    with refused(name, told):
        evaluate(settings(made), "hydra-s0", report=made / name)


def test_no_file_of_others_is_written_over(made: Path, tmp_path: Path) -> None:
    (tmp_path / "figures.json").write_text('{"mine": 1}')
    with refused("figures.html", "figures.json", "another name"):
        evaluate(settings(made), "hydra-s0", report=tmp_path / "figures.html")
    assert (tmp_path / "figures.json").read_text() == '{"mine": 1}'


def test_a_report_is_of_one_run(made: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", "-c", str(made / "edistill.toml"), "one", "two", "--report", "r.html"])
    assert done.exit_code == 2
    assert "edistill compare one two" in done.stderr


# --- whether to ship it -----------------------------------------------------------------------------------------


def figures(
    found: Evaluation, worth: tuple[float | None, float | None], latency: float | None, whole: float
) -> Evaluation:
    """The same with another worth in prediction and uncertainty, another cost, and that of all members."""
    student = (found.worth or {})["student"]
    assert student is not None
    cost = None if latency is None else {"latency": latency, "macs": 3.0, "parameters": 5.0}
    other = replace(student, prediction=worth[0], uncertainty=worth[1], uncertainty_control=None, beyond=(), cost=cost)
    costs = {
        "student": {"latency_ms": latency, "macs": 3.0, "parameters": 5.0},
        "ensemble": {"latency_ms": whole, "macs": 4.0, "parameters": 4.0},
    }
    return replace(
        found,
        worth={**(found.worth or {}), "student": other},
        cost={**found.cost, **costs} if latency is not None else dict.fromkeys(found.cost),
        instead=("member-0", "member-1"),
    )


@pytest.mark.parametrize(
    ("worth", "latency", "whole", "ship", "told"),
    [
        ((3.0, 2.5), 2.0, 4.0, True, ["worth having", "3.0 of 4 members in prediction and 2.5 in uncertainty", "2.0"]),
        ((3.0, 1.5), 2.0, 4.0, False, ["If uncertainty is what counts, serve some members", "member-0 + member-1"]),
        ((1.5, 3.0), 2.0, 4.0, False, ["If prediction is what counts, serve some members", "in prediction."]),
        ((1.5, 1.5), 2.0, 4.0, False, ["Serve some members", "in prediction and in uncertainty."]),
        ((1.5, None), 2.0, 4.0, False, ["Serve some members", "in prediction."]),
        ((3.0, None), 2.0, 4.0, True, ["worth having", "3.0 of 4 members in prediction,"]),
        ((None, 3.0), 2.0, 4.0, True, ["worth having", "3.0 of 4 members in uncertainty,"]),
        ((None, None), 2.0, 4.0, None, ["unknown whether", "no labels"]),
        ((3.0, 3.0), None, 4.0, None, ["3.0 of 4 members", "unknown"]),
        ((3.5, 3.5), 3.0, 2.5, False, ["the ensemble itself", "saves arithmetic, not time"]),
        ((1.5, 1.5), 3.0, 2.5, False, ["the ensemble itself", "saves arithmetic, not time"]),
    ],
)
def test_what_to_do_follows_from_worth_and_cost(
    judged: tuple[Path, Evaluation],
    worth: tuple[float | None, float | None],
    latency: float | None,
    whole: float,
    ship: bool | None,
    told: list[str],
) -> None:
    found = figures(judged[1], worth, latency, whole)
    said = verdict(found)
    assert said.ship is ship
    words = " ".join([said.headline, *said.reasons])
    for part in told:
        assert part in words
    advice = " ".join(remarks(found))
    assert ("some members instead" in advice) == ("some members" in said.headline), "both advise the same"
    assert ("serve the ensemble" in advice) == ("the ensemble itself" in said.headline)


def test_members_that_are_worth_fewer_than_the_student_are_not_recommended(judged: tuple[Path, Evaluation]) -> None:
    found = replace(figures(judged[1], (3.0, 1.5), 2.0, 4.0), instead=None)
    assert any(found.subensembles.values()), "some were chosen, so the student was compared with them"
    said, advice = verdict(found), " ".join(remarks(found))
    assert said.ship is None
    assert said.headline.endswith("in uncertainty, but the best members for that time are worth even less.")
    assert "worth fewer in uncertainty, but the best members that take no longer are worth fewer still." in advice


# --- in a browser -----------------------------------------------------------------------------------------------

PROBE = """<!doctype html><iframe id="f" style="border:0;width:{width}px;height:4000px"></iframe><script>
const frame = document.getElementById("f");
frame.onload = () => setTimeout(() => {{
  const page = frame.contentDocument, found = {{wide: page.documentElement.scrollWidth, images: [], labels: []}};
  for (const image of page.images) found.images.push([image.complete, image.naturalWidth, image.clientWidth]);
  for (const box of page.querySelectorAll(".scroll")) {{
    box.scrollLeft = 1000;
    const label = box.querySelector("th[scope=row]");
    found.labels.push(label.getBoundingClientRect().left - box.getBoundingClientRect().left);
  }}
  document.title = JSON.stringify(found);
}}, 300);
frame.srcdoc = {page};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_every_figure_and_label_and_nothing_overflows(made: Path, tmp_path: Path, width: int) -> None:
    text = json.dumps((made / "report.html").read_text(encoding="utf-8")).replace("</", "<\\/")
    (tmp_path / "probe.html").write_text(PROBE.format(width=width, page=text), encoding="utf-8")
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=10000",
        "--dump-dom",
    ]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run([*command, (tmp_path / "probe.html").as_uri()], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(\{.*?\})</title>", shown.stdout)
    assert title, shown.stderr[-2000:]
    found = json.loads(title[1].replace("&quot;", '"'))
    assert found["wide"] <= width
    assert len(found["images"]) == len(ORDER) - 1
    assert found["labels"], "a table for what is scrolled"
    assert all(abs(left) < 1 for left in found["labels"]), "what a row is of stays in sight"
    assert all(complete and natural > 0 and 0 < client <= width for complete, natural, client in found["images"])
