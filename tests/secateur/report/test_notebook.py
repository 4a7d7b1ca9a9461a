import io
import re

import numpy as np
from PIL import Image as Pictures
from rich.table import Table

from secateur.report.notebook import picture_html, png, table_html
from tests.secateur.report.example import NAMES, record


def test_a_table_of_the_terminal_is_one_of_the_page() -> None:
    table = Table("", "dense", title="fashion & <vit>")
    table.columns[1].justify = "right"
    table.add_row("[bold]bytes[/]", "1 < 2")
    html = table_html(table, table)
    assert html.count("<table>") == html.count("</table>") == 2
    assert "<caption>fashion &amp; &lt;vit&gt;</caption>" in html
    assert '<tr><td>bytes</td><td style="text-align: right">1 &lt; 2</td></tr>' in html
    assert '<th style="text-align: right">dense</th>' in html


def test_a_table_without_a_header_has_none() -> None:
    table = Table("", "", show_header=False)
    table.add_row("a", "b")
    html = table_html(table)
    assert "<th" not in html and "<caption" not in html and "<td>a</td><td>b</td>" in html


def test_pictures_stand_alone() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 1] = 200
    assert np.array_equal(np.asarray(Pictures.open(io.BytesIO(png(image)))), image)
    html = picture_html(image, 'a "view" & more')
    assert re.search(r'<img src="data:image/webp;base64,[A-Za-z0-9+/=]+" width="6" height="4" alt="a &quot;view', html)
    assert "http" not in html and "<figcaption>a &quot;view&quot; &amp; more</figcaption>" in html


def test_the_record_of_an_evaluation_shows_a_column_for_each_subject() -> None:
    html = record("<b>")._repr_html_()
    assert html.count("<table>") == 1 and "<b>" not in html
    assert all(f">&lt;b&gt;{name}</th>" in html for name in NAMES)
    assert ">PSNR</td>" in html and ">file size</td>" in html
