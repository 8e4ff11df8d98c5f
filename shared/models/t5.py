"""Caption features of the flan-t5 encoder that LlamaGen was trained with, loaded at the first prompt.

Knows nothing of transformers' other models, nor of ours.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.errors import ModelUnavailable
from shared.models.caption import clean_twice, needed

REPOSITORY = "google/flan-t5-xl"


class T5Captions:
    """Prompt -> features [n, C], fp32: the last hidden state of its n valid tokens, at most `limit` of them.

    Padding is left out: it is masked everywhere, so it changes nothing.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    @torch.no_grad()
    def features(self, prompt: str) -> Tensor:
        """Clean, tokenise (a final </s> counts as a token), encode.

        Raises ModelUnavailable that says which package or folder is missing.
        """
        tokenizer, encoder = self._loaded
        ids_1N = tokenizer(clean_twice(prompt), max_length=self.limit, truncation=True, return_tensors="pt")
        hidden: Tensor = encoder(input_ids=ids_1N["input_ids"]).last_hidden_state
        return hidden[0].float()

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        if not (self.folder / "config.json").is_file():
            raise ModelUnavailable(
                f"there is no text encoder in {self.folder}",
                f"LlamaGen reads captions with the encoder of {REPOSITORY}",
                f"put the files of that Hugging Face repository into {self.folder}",
            )
        transformers = needed("transformers")
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        encoder = transformers.T5EncoderModel.from_pretrained(self.folder, local_files_only=True)
        return tokenizer, encoder.float().eval()
