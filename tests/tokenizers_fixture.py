"""Tiny tokenizers of the kinds that real models have, made without any file or network."""

from collections.abc import Mapping
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from cluster.model_card import ModelCard

SAMPLE_TEXT = (
    "The quick brown fox jumps over the lazy dog. It's 12:30, isn't it?\n\n"
    "def add(left: int, right: int) -> int:\n    return left + right\n"
    "Füße im Größenwahn, Ærø, naïve café, Привет мир, こんにちは世界, 你好, 🙂👩‍👩‍👧‍👦🇩🇪\n"
)
"""Words, code, and characters of one to four bytes."""

CHATML_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def byte_level_tokenizer(vocab_size: int = 400) -> Tokenizer:
    """A byte-level BPE as GPT-2, Llama 3 and Qwen have, trained on SAMPLE_TEXT.

    Ids 0 to 3 are `<|bos|>`, `<|eos|>`, `<|im_start|>` and `<|im_end|>`; encoding puts `<|bos|>`
    first; the last id is `<think>`, an added token that is text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SAMPLE_TEXT], trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    tokenizer.post_processor = _put_first("<|bos|>", 0)
    return tokenizer


def sentencepiece_tokenizer() -> Tokenizer:
    """A BPE with byte fallback as Llama 2 and Mistral have.

    Ids 0 to 2 are `<unk>`, `<s>` and `</s>`, 3 to 258 the bytes; then come `▁` and ASCII letters,
    some words and a run of spaces; encoding puts `<s>` first.
    """
    letters = [chr(code) for code in range(0x21, 0x7F)]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "▁"), ("i", "n"), ("in", "g")]
    tokens = [
        *("<unk>", "<s>", "</s>"),
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *("▁", *letters, "é"),
        *(left + right for left, right in merges),
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: token_id for token_id, token in enumerate(tokens)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = _put_first("<s>", 1)
    return tokenizer


def metaspace_tokenizer() -> Tokenizer:
    """The same vocabulary with the Metaspace decoder that other converters write."""
    tokenizer = sentencepiece_tokenizer()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def model_card(tokenizer: Tokenizer, **fields: Any) -> ModelCard:
    """A card of a model with this tokenizer; `fields` replace what it says otherwise."""
    special_tokens: Mapping[str, str] = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    if tokenizer.token_to_id("<s>") is not None:
        special_tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    described: dict[str, Any] = {
        "name": "tiny",
        "fingerprint": "0" * 32,
        "max_model_len": 512,
        "vocab_size": tokenizer.get_vocab_size(),
        "block_size": 16,
        "eos_token_ids": (tokenizer.token_to_id(special_tokens["eos_token"]),),
        "tokenizer_json": tokenizer.to_str(),
        "chat_template": CHATML_TEMPLATE,
        "special_tokens": special_tokens,
    }
    return ModelCard(**(described | fields))


def _put_first(token: str, token_id: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, token_id)]
    )
