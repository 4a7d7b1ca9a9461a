"""A card says what was measured, and nothing that was not."""

from __future__ import annotations

from vit.demo.cards import Card


def test_a_card_has_what_it_was_given() -> None:
    measured = {"top-1 accuracy": "90.12%", "cross-entropy": "0.271"}
    card = Card("a-vit", "It sees.", "Data: some.", "run()", 384970, "Training: short. " * 20, 10000, measured)
    text = card.text()
    assert text.startswith("---\nlicense: apache-2.0\nlibrary_name: transformers\n---\n\n# a-vit\n")
    assert "384,970 parameters" in text and "10,000 images" in text and "```python\nrun()\n```" in text
    assert "| top-1 accuracy | 90.12% |\n| cross-entropy | 0.271 |" in text
    assert max(map(len, text.splitlines())) <= 120
