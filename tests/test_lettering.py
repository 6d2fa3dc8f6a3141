"""Text of strangers on pictures: legible, harmless, and no wider than its place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from vsa_rt.render import lettering
from vsa_rt.render.lettering import Lettering, legible, shortened

#: Any text that Python can hold, lone surrogates too.
ANY = st.text(st.characters(), max_size=60)


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("plain.mp4", "plain.mp4"),
        ("a\nb\0c", "a\\nb\\x00c"),
        ("a\udcffb", "a\\xffb"),
        ("a\ud800b", "a\\ud800b"),
        ("gpj.\u202excod", "gpj.\\u202excod"),
        ("a\N{NO-BREAK SPACE}b", "a b"),
    ],
)
def test_what_would_change_other_text_becomes_an_escape(text: str, drawn: str) -> None:
    assert legible(text, 13)[0] == drawn


def test_letters_that_no_font_has_lose_their_accents_or_become_escapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lettering, "_FALLBACKS", ())
    assert legible("Café Łódź", 13)[0] == "Cafe \\u0141odz"
    assert legible("悲しみ", 13)[0] == "\\u60b2\\u3057\\u307f"


def test_letters_that_a_font_of_the_system_has_are_drawn_as_they_are() -> None:
    try:
        ImageFont.truetype("DejaVuSans.ttf", 13)
    except OSError:
        pytest.skip("the font DejaVu Sans is not installed")
    assert legible("радость", 13)[0] == "радость"
    assert legible("Łódź", 13)[0] == "Łódź"
    assert legible("joy", 13)[1] is not legible("радость", 13)[1]


@given(text=ANY, width=st.integers(0, 300))
@settings(deadline=None, max_examples=80)
def test_any_text_fits_into_any_width(text: str, width: int) -> None:
    picture = Image.new("RGB", (320, 60), "white")
    Lettering(picture).write((10, 30), text, 13, "black", width=width)
    ink = np.asarray(picture.convert("L")) < 200
    columns = np.flatnonzero(ink.any(0))
    # An accent or a slanted letter may reach beyond what a font says that it takes.
    assert not len(columns) or columns[-1] < 10 + width + 8


def test_a_shortened_text_keeps_its_beginning_and_its_end() -> None:
    _, font = legible("a", 13)
    text = "videos/" + "x" * 300 + "/holiday.mp4"
    short = shortened(text, font, 200)
    assert short.startswith("vid")
    assert short.endswith("/holiday.mp4")
    assert font.getlength(short) <= 200 < font.getlength(short + "wwww")
    assert shortened("short", font, 200) == "short"
    assert shortened("w", font, 1) == ""


def test_an_endless_text_is_cut_before_it_is_shaped() -> None:
    picture = Image.new("RGB", (200, 30), "white")
    plain, _ = Lettering(picture).fitting("悲" * 10**6, 13, 1e9)
    assert len(plain) < 10_000
