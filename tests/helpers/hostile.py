"""Text that formats and browsers must not obey, and a page as a browser reads it."""

from html.parser import HTMLParser

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</pre></table><b>",
    "a|b||c",
    "[link](javascript:alert(1))",
    "![picture](http://x/y.png)",
    "[bold red]markup[/bold red]",
    "[/]",
    ":smile:",
    "*star* **two** _under_ __two__ ~~gone~~ `code`",
    "a_b_c max_iter _x x_ (_y_)",
    "&lt;b&gt; &amp;",
    "trailing\\",
    "\\| \\<b\\>",
    "two\nlines\r\nand\tmore\n\n| a | b |",
    "file\u202egnp.exe",
    "\u2066hidden\u2069\u200b\ufeff",
    "\x1b[31mred\x1b]0;title\x07\x00\x08\x7f\x9b",
    "byte \udcff",
    "\\\\[1pt] \\input{/etc/passwd} $x^2$ 50% #1 ~ {}",
    "*first",
    "[first",
]


class Page(HTMLParser):
    """The tags, attributes and text of a page, as a browser reads them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.data = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.data.append(data)
