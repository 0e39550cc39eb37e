"""What tests of HTML pages share."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "line", "path", "circle", "polyline"}


class Page(HTMLParser):
    """A page's tags, its tables' cells and whatever is not closed or is loaded from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.loaded, self.cells = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        self.loaded += [values[k] for k in ("src", "href", "srcset", "data") if k in values]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def check_whole(text):
    """A page that is closed, loads nothing and says what its pictures show."""
    page = Page(text)
    assert not page.open
    assert all(where.startswith(("data:image/png;base64,", "data:audio")) for where in page.loaded)
    assert not re.search(r"https?://|@import|url\(|<script|<link", text)
    for tag, attributes in page.tags:
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "svg":
            assert attributes["aria-label"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    return page
