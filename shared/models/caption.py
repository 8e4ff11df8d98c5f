"""Captions cleaned as LlamaGen's programs clean them before T5 reads them. Knows nothing of T5.

The rules are those of the `clean_caption` that DeepFloyd IF made common, in its order: each is a pattern and
what takes its place. LlamaGen applies them twice, because cleaning one thing may uncover another.
"""

from __future__ import annotations

import html
import importlib
import re
from collections.abc import Iterable
from types import ModuleType
from urllib.parse import unquote_plus

from shared.errors import ModelUnavailable

Rule = tuple[re.Pattern[str], str]

_ENDINGS = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DOMAINS = "com|co|ru|net|org|edu|gov|it"
_DASHES = (
    r"\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    r"\ufe31\ufe32\ufe58\ufe63\uff0d"
)


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), put) for pattern, put in pairs)


def _address(scheme: str) -> str:
    """Addresses with a scheme, and bare ones such as example.com/path; not the domain of a mail."""
    return rf"\b(?:{scheme}:(?:/{{1,3}}|[a-zA-Z0-9%])|[a-zA-Z0-9.\-]+[.](?:{_DOMAINS})[\w/-]*\b/?(?!@))"


_ADDRESSES = _rules(("<person>", "person"), (_address("https?"), ""), (_address("www"), ""))
_SIGNS = _rules(
    (r"@\w+\b", ""),  # nicknames
    (r"[\u31c0-\u9fff]+", ""),  # CJK strokes to ideographs
    (rf"[{_DASHES}]+", "-"),
    (r"[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    (r"[\u2018\u2019]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # the time at the end of an article
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_ENDINGS})", ""),  # file names
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_NOISE = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # article numbers: ab1234
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # ab12cd
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 12ab34
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_ENDINGS})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # a1b2c
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),  # sizes: 640x480
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),  # a space behind a comma
    (r"\s+", " "),
)
_ENDS = _rules(
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),  # quotes around everything
    (r"^['_,\-:;]", ""),
    (r"['_,\-:\-+]$", ""),
    (r"^\.\S+$", ""),
)
_JOINER = re.compile("[-_]")


def clean_twice(caption: str) -> str:
    """What T5 is given for a caption. Raises ModelUnavailable as `clean` does."""
    return clean(clean(caption))


def clean(caption: str) -> str:
    """One round of cleaning. Raises ModelUnavailable where ftfy or beautifulsoup4 is not installed."""
    fix_text, parse = needed("ftfy").fix_text, needed("bs4").BeautifulSoup
    text = _apply(_ADDRESSES, unquote_plus(caption).strip().lower())
    text = _apply(_SIGNS, parse(text, features="html.parser").text)
    if len(_JOINER.findall(text)) > 3:  # words joined like the parts of a file name
        text = _JOINER.sub(" ", text)
    text = html.unescape(html.unescape(fix_text(text))).strip()
    # Blanks at the ends stay until the last rule is through: they keep anchors from matching, as upstream.
    return _apply(_ENDS, _apply(_NOISE, text)).strip()


def needed(package: str) -> ModuleType:
    """A package of the extra `llamagen`. Raises ModelUnavailable that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModelUnavailable(
            f"LlamaGen's captions need the package {package}", str(error), "pip install 'ciar[llamagen]'"
        ) from error


def _apply(rules: Iterable[Rule], text: str) -> str:
    for pattern, put in rules:
        text = pattern.sub(put, text)
    return text
