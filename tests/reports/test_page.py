"""A report's page: one file, nothing from outside, and every word shown as it was given."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vizsla.errors import StorageError
from vizsla.records import PictureCard, Section, Tile
from vizsla.reports.page import embedded_json, is_numeric, numeric_columns, write_page
from vizsla.version import __version__

VOID = {"meta", "link", "br", "img", "wbr"}
HOSTILE = (
    "</script><script>alert(1)</script>",
    "</title></style><img src=x onerror=alert(1)>",
    "\"'><b onclick='x'>&amp;&lt;",
    "{{ 7 * 7 }} {% raw %} <!--",
    "001.Affenpinscher/été & <neige>.jpg",
)
FIGURE = str(go.Figure(go.Bar(x=["a", "b"], y=[1, 2])).to_json())

# What a browser itself changes, carriage returns and control characters, is left out.
texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40) | st.sampled_from(
    HOSTILE
)


@dataclass
class Element:
    """An element as a browser would see it: its attributes, and all text within."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""

    @property
    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()


@dataclass
class Page(HTMLParser):
    """Every element of a page, in order."""

    elements: list[Element] = field(default_factory=list)
    _open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, *tags: str) -> list[Element]:
        return [element for element in self.elements if element.tag in tags]


def _read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    return page


def _written(folder: Path, *sections: Section, title: str = "Study", lead: str = "Lead.") -> Page:
    write_page(folder / "page.html", title, lead, sections)
    return _read(folder / "page.html")


def test_page_says_what_it_was_given(tmp_path: Path) -> None:
    table = Section("Trials", "All of them.", ("trial", "accuracy"), (("a", "0.5"),))
    page = _written(tmp_path, table, Section("Words", "One.\n\nTwo."), title="A study")
    assert [one.text for one in page.all("title", "h1")] == ["A study", "A study"]
    assert [one.text for one in page.all("h2")] == ["Trials", "Words"]
    assert [one.text for one in page.all("p")][:3] == ["Lead.", "All of them.", "One.\n\nTwo."]
    assert __version__ in page.all("footer")[0].text
    assert page.all("html")[0].attributes["lang"] == "en"


def test_contents_lead_to_every_section(tmp_path: Path) -> None:
    page = _written(tmp_path, Section("Alike"), Section("Alike"))
    links = [link.attributes["href"] for link in page.all("a")]
    ids = [section.attributes["id"] for section in page.all("section")]
    assert links == ["#content", *(f"#{name}" for name in ids)]
    assert len(set(ids)) == 2


def test_one_section_needs_no_contents(tmp_path: Path) -> None:
    assert not _written(tmp_path, Section("Alone")).all("nav")


def test_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    section = Section("Figure", "See https://example.org.", figure=FIGURE)
    page = _written(tmp_path, section)
    for element in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = element.attributes.get(name) or ""
            assert value.startswith(("#", "data:")) or not value, f"<{element.tag} {name}={value}>"
    assert [element.text for element in page.all("style")]
    for style in page.all("style"):
        assert not re.search(r"url\(|@import|https?:|//", style.text)


def test_policy_forbids_requests_and_foreign_scripts(tmp_path: Path) -> None:
    def policy(page: Page) -> str:
        metas = [one.attributes for one in page.all("meta")]
        return next(str(one["content"]) for one in metas if "http-equiv" in one)

    drawn = policy(_written(tmp_path, Section("Figure", figure=FIGURE)))
    assert drawn.startswith("default-src 'none'")
    assert drawn.count("'sha256-") == 2
    assert "http" not in drawn
    assert "script-src 'unsafe-inline'" not in drawn
    assert "script-src" not in policy(_written(tmp_path, Section("Words")))


def test_plotly_comes_once_and_only_with_figures(tmp_path: Path) -> None:
    plain = _written(tmp_path, Section("Words", "None drawn."))
    assert not plain.all("script")
    assert (tmp_path / "page.html").stat().st_size < 20_000
    page = _written(tmp_path, Section("One", figure=FIGURE), Section("Two", figure=FIGURE))
    run = [one for one in page.all("script") if one.attributes.get("type") is None]
    assert [len(one.text) > 1_000_000 for one in run] == [True, False]
    assert [one.attributes["aria-label"] for one in page.all("div")] == [
        "Figure: One",
        "Figure: Two",
    ]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(title=texts, text=texts, cells=st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
def test_no_text_becomes_markup(
    tmp_path: Path, title: str, text: str, cells: list[tuple[str, str]]
) -> None:
    section = Section(title, text, (title, text), tuple(cells))
    harmless = Section("x", "x" if text else "", ("x", "x"), (("x", "x"),) * len(cells))
    page = _written(tmp_path, section, title=title, lead=text)
    expected = _written(tmp_path, harmless, lead="x" if text else "")
    # Places to fold a long name are ours.
    found, wanted = (
        [one for one in some.elements if one.tag != "wbr"] for some in (page, expected)
    )
    assert [one.tag for one in found] == [one.tag for one in wanted]
    assert [one.attributes.keys() for one in found] == [one.attributes.keys() for one in wanted]
    assert [one.text for one in page.all("title", "h1", "h2", "caption")] == [title] * 4
    assert [one.text for one in page.all("th", "td")] == [title, text, *sum(cells, ())]
    assert page.all("div")[0].attributes["aria-label"] == f"Table: {title}"


@pytest.mark.parametrize("text", HOSTILE)
def test_figures_carry_any_text_unharmed(tmp_path: Path, text: str) -> None:
    figure = go.Figure(go.Bar(x=[text], y=[1], name=text))
    page = _written(tmp_path, Section("Figure", figure=figure.to_json()))
    assert len(page.all("script")) == 3
    assert json.loads(page.all("script")[0].text) == json.loads(figure.to_json())


@given(st.dictionaries(texts, texts))
def test_embedded_json_means_the_same(facts: dict[str, str]) -> None:
    embedded = embedded_json(json.dumps(facts, ensure_ascii=False))
    assert json.loads(embedded) == facts
    assert not set("<>&") & set(embedded)
    assert html.escape(embedded, quote=False) == embedded


def test_name_that_is_no_text_is_shown_as_an_escape(tmp_path: Path) -> None:
    page = _written(tmp_path, Section("Pictures", rows=(("caf\udce9.jpg",),)))
    assert page.all("th")[0].text == "caf\\udce9.jpg"


def test_columns_of_numbers_stand_to_the_right(tmp_path: Path) -> None:
    rows = (("a", "0.5", "3"), ("b", "-", "three"))
    page = _written(tmp_path, Section("Table", "", ("name", "figure", "mixed"), rows))
    assert [one.text for one in page.all("th", "td") if "number" in one.classes] == [
        "figure", "0.5", "-",
    ]  # fmt: skip


def test_best_cells_stand_out(tmp_path: Path) -> None:
    rows = (("a", "1", "2"), ("b", "3", "4"))
    section = Section("Table", columns=("x", "y", "z"), rows=rows, best_cells=frozenset({(1, 2)}))
    page = _written(tmp_path, section)
    assert [one.text for one in page.all("td") if "best" in one.classes] == ["4"]


def test_long_names_fold_between_their_parts(tmp_path: Path) -> None:
    tiles = (Tile("Model", "vit_base_patch16"),)
    page = _written(tmp_path, Section("Table", rows=(("a/b_<c>", "_"),), tiles=tiles))
    assert [one.text for one in page.all("th", "td")] == ["a/b_<c>", "_"]
    assert len(page.all("wbr")) == 2 + 2


def test_contents_are_grouped_by_the_parts_of_a_report(tmp_path: Path) -> None:
    sections = [Section("A", part="<One>"), Section("B", part="<One>"), Section("C", part="Two")]
    page = _written(tmp_path, *sections)
    assert [one.text for one in page.all("span")] == ["<One>", "Two"]
    links = [(one.text, one.attributes["href"]) for one in page.all("a")[1:]]
    assert links == [("A", "#section-1"), ("B", "#section-2"), ("C", "#section-3")]
    assert len(page.all("ol")) == 3


def test_tiles_mark_and_code_are_shown_as_they_are(tmp_path: Path) -> None:
    tiles = (Tile("<Accuracy>", "91.2 %", "of <test>"), Tile("Model", "a-very-long-model"))
    section = Section("Summary", tiles=tiles, mark="so <far>", code="one --<line>\n\n  two & more")
    page = _written(tmp_path, section)
    assert [one.text for one in page.all("dt")] == ["<Accuracy>", "Model"]
    assert [one.text for one in page.all("dd")] == ["91.2 %", "of <test>", "a-very-long-model"]
    assert [one.text for one in page.all("code")] == ["one --<line>\n\n  two & more"]
    assert [one.text for one in page.all("p") if "mark" in one.classes] == ["so <far>"]


def test_pictures_have_words_and_an_absent_one_has_them_in_its_place(tmp_path: Path) -> None:
    cards = (
        PictureCard("data:image/jpeg;base64,AA==", '"A <dog>"', "a dog", "x/<y>/z.jpg"),
        PictureCard(None, "It is gone.", "no dog"),
    )
    page = _written(tmp_path, Section("Pictures", pictures=cards))
    (image,) = page.all("img")
    assert image.attributes == {"src": "data:image/jpeg;base64,AA==", "alt": '"A <dog>"'}
    words = [one.text for one in page.all("p")][1:-1]
    assert words == ["a dog", "x/<y>/z.jpg", "It is gone.", "no dog"]


@pytest.mark.parametrize("section", [Section("S", sortable=True), Section("S", code="ls")])
def test_sorting_and_copying_need_no_plotly(tmp_path: Path, section: Section) -> None:
    page = _written(tmp_path, section)
    assert [len(one.text) < 10_000 for one in page.all("script")] == [True]
    policy = next(str(one.attributes["content"]) for one in page.all("meta")
                  if "http-equiv" in one.attributes)  # fmt: skip
    assert policy.count("'sha256-") == 1
    assert "unsafe-eval" not in policy


def test_headings_of_rows_and_columns_say_so(tmp_path: Path) -> None:
    page = _written(tmp_path, Section("Table", "", ("name", "n"), (("a", "1"), ("b", "2"))))
    assert [one.attributes["scope"] for one in page.all("th")] == ["col", "col", "row", "row"]


def test_quiet_rows_are_marked(tmp_path: Path) -> None:
    rows = (("a",), ("b",), ("c",))
    page = _written(tmp_path, Section("Table", rows=rows, quiet_rows=frozenset({1})))
    assert [one.text.strip() for one in page.all("tr") if "quiet" in one.classes] == ["b"]


def test_rows_may_differ_in_length(tmp_path: Path) -> None:
    section = Section("Table", columns=("a",), rows=(("1",), ("x", "2"), ()))
    assert numeric_columns(section) == {1}
    assert len(_written(tmp_path, section).all("tr")) == 4


@pytest.mark.parametrize(
    "cell",
    "0 0.81 -3 +0.5 −1.2 1,024 1e-05 3.2E+4 .5 82.1% nan inf".split()
    + ["82.1 %", "0.81 ± 0.02", "3.4 ms", "12 MB", "2 KiB/s", " 7 ", "~3", "< 0.01", "-inf"],
)
def test_numbers_are_recognised(cell: str) -> None:
    assert is_numeric(cell)


@pytest.mark.parametrize(
    "cell",
    [
        "",
        "-",
        "—",
        "001.Akita",
        "12 Pugs",
        "2 of 3",
        "1.2.3",
        "2026-01-31",
        "1e",
        "ms",
        "nano",
        "a 1",
    ],
)
def test_words_are_no_numbers(cell: str) -> None:
    assert not is_numeric(cell)


def test_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="could not be written"):
        write_page(tmp_path / "missing" / "page.html", "Study", "", [])
