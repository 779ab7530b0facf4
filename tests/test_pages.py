"""Pages of HTML: what their parts say, and in a browser, where there is one, what a click does."""

import re
import shutil
import subprocess

import pytest
from test_comparison_results import made, record

from lit_spectral import pages
from lit_spectral.comparison.page import write_page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def test_a_part_of_a_picture_says_what_it_is_where_somebody_points_at_it():
    figure, (axes,) = pages.axes(1, 3, 2)
    pages.tell(axes.scatter([1], [2]), 'LoRA "a" <b>')
    (told,) = re.findall(r"<g><title>(.*?)</title>", pages.drawn(figure))
    assert told in {'LoRA "a" &lt;b&gt;', "LoRA &quot;a&quot; &lt;b&gt;"}


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ({"LoRA": [record(0.8, 0.4)]}, "best accuracy 0.8000, by LoRA"),
        (
            {"LoRA": [record(0.8, 0.4)], "FCLoRA": [record(0.9, 0.5)]},
            "best accuracy 0.9000, by FCLoRA; by text accuracy, FCLoRA loses least, 50% of what LoRA does",
        ),
        (
            {"LoRA": [record(0.8, 0.5)], "FCLoRA": [record(0.8, 0.4)]},
            "best accuracy 0.8000, by LoRA and FCLoRA; by text accuracy, LoRA loses least",
        ),
    ],
)
def test_the_title_of_a_comparison_says_what_was_found(records, found):
    page = write_page(made(**records), None, "mrpc", "")
    assert f"<title>mrpc: {found}</title>" in page.replace("&#x27;", "'")


def test_each_run_of_a_comparison_says_what_it_is():
    page = write_page(made(LoRA=[record(0.8, 0.4), record(0.7, 0.3)]), None, "mrpc", "")
    assert "<title>LoRA, seed 1: accuracy 0.7000, loss of text accuracy 0.3000</title>" in page


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize(
    ("clicks", "order"),
    [
        ([], ["b", "a", "c", "d"]),
        ([1], ["c", "b", "a", "d"]),
        ([1, 1], ["a", "b", "c", "d"]),
        ([0], ["a", "b", "c", "d"]),
        ([0, 0], ["d", "c", "b", "a"]),
    ],
)
def test_a_click_on_a_heading_sorts_by_numbers_or_else_by_text(tmp_path, clicks, order):
    table = pages.table(["name", "parameters"], [["b", "1,000 ± 2"], ["a", "9.5\n-3"], ["c", "20,000"], ["d", "–"]])
    click = "".join(f'document.querySelectorAll("th button")[{column}].click();' for column in clicks)
    file = tmp_path / "page.html"
    file.write_text(pages.document("t", "t", "", table).replace("</body>", f"<script>{click}</script></body>"))
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path}/profile", "--dump-dom", file.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert re.findall(r"<tr><td>(\w)</td>", shown) == order
