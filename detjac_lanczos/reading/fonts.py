"""Fonts of the figures, and what of a text they can draw."""

from functools import cache

_FONTS = (
    "DejaVu Sans",  # comes with matplotlib
    "Noto Sans",
    *(f"Noto Sans CJK {region}" for region in ("SC", "JP", "KR", "TC", "HK")),
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    *(f"Noto Sans {script}" for script in ("Arabic", "Hebrew", "Devanagari", "Bengali", "Tamil", "Telugu", "Thai")),
    *(f"Noto Sans {script}" for script in ("Ethiopic", "Georgian", "Armenian", "Khmer", "Myanmar", "Sinhala")),
    "Noto Emoji",
    "Segoe UI Emoji",
    "Segoe UI Symbol",
    "Noto Sans Symbols",
    "Noto Sans Symbols 2",
    "Noto Sans Symbols2",
    "Symbola",
    "Arial Unicode MS",
    "Unifont",
)
_NO_GLYPH = "▯"


def installed_fonts() -> tuple[str, ...]:
    """Return those of the figures' fonts that this machine has; matplotlib takes each character from the first."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in _FONTS if name in installed)


def drawable(text: str) -> str:
    """Return a text with an empty frame for every character that no font of the figures has."""
    known = _glyphs(installed_fonts())
    return "".join(c if ord(c) in known else _NO_GLYPH for c in text)


@cache
def _glyphs(fonts: tuple[str, ...]) -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset().union(*(get_font(findfont(name)).get_charmap() for name in fonts))
