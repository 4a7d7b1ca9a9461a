"""A card says what was measured, and nothing that was not."""

from __future__ import annotations

from diffusion.demo.cards import DIGITS, Card, Row


def test_a_card_has_the_numbers_it_was_given() -> None:
    rows = (Row("classes", 20, 1.0, 0.9875, "FD-digits-cnn", 1.234567, 0.5), Row("classes", 10, 2.0, 1.0, "", 2.0, 0.5))
    card = Card("digits-dit", "Draws digits.", (DIGITS,), "[3, 8]", 1233700, 3000, 64, 0.998, 4.6, 400, rows, 7.2e-8)
    text = card.text()
    assert text.startswith("---\nlicense: apache-2.0\nlibrary_name: diffusers\n---\n\n# digits-dit\n")
    assert "1,233,700 parameters" in text and "3,000 steps of 64 samples" in text and "5 minutes" in text
    assert "| classes | 20 | 1 | 98.8% | 1.23 | 0.5 |\n| classes | 10 | 2 | 100.0% | 2 | 0.5 |" in text
    assert "FD-digits-cnn" in text and "7e-08" in text and "demo.digits_dit()" in text
    assert max(map(len, text.splitlines())) <= 120
