"""The demo's frozen text encoder: a small random Qwen2.5-VL through which words stay visible, and its tokenizer."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

from training.edits import EDITS, sentences

WIDTH = 128
"""Of its hidden states, the `joint_attention_dim` of the transformer."""

# How Qwen's tokenizer splits text before it merges.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def merges(template: str) -> list[str]:
    """The merges of a byte-level tokenizer that has a token for each word of the template and of the prompts."""
    corpus = [template, *(text for edit in EDITS.values() for text in sentences(edit))]
    words = [" ".join(corpus), *corpus, *(word for text in corpus for word in text.split())]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = BpeTrainer(vocab_size=4096, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def encoder(config: Mapping[str, Any], seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights at scales that let a word's own embedding dominate what comes out at its place.

    Embeddings of unit variance outweigh what the layers add. The picture's tokens are one random vector and a little
    of the picture, so that the transformer can tell 1,370 of them from ten words and pass over them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(dict(config)))
        last = model.model.visual.merger.mlp[2]
        torch.nn.init.normal_(model.model.language_model.embed_tokens.weight)
        torch.nn.init.normal_(last.bias)
        torch.nn.init.normal_(last.weight, std=0.02)
    return model
