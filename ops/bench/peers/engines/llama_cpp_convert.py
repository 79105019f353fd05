"""A model of Hugging Face's format as a GGUF file in bf16, without its tokenizer.

After llama.cpp's own convert_hf_to_gguf.py, for the families that the comparison needs.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}


def write_gguf(folder: Path, target: Path) -> None:
    """Write `target`.

    Raises ValueError for another family, stretched rotary positions or weights that are not bf16.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = config["model_type"]
    if family not in _ARCHITECTURES:
        raise ValueError(f"model_type: got {family!r}, expected {' or '.join(_ARCHITECTURES)}")
    if config.get("rope_scaling") is not None:
        raise ValueError(f"rope_scaling: got {config['rope_scaling']}, expected null")
    architecture = _ARCHITECTURES[family]
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[architecture])
    _add_config(writer, config)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    turned = {}
    if family == "llama":
        turned["q_proj"] = config["num_attention_heads"]
        turned["k_proj"] = config["num_key_value_heads"]
    for name, tensor in _tensors(folder):
        heads = turned.get(name.rsplit(".", 2)[-2])
        stored = tensor if heads is None else _interleave(tensor, heads)
        _add_tensor(writer, names.get_name(name, (".weight", ".bias")), stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def _tensors(folder: Path) -> Iterator[tuple[str, "np.ndarray[Any, np.dtype[np.uint16]]"]]:
    """The bits of all bf16 tensors: a safetensors file is a header's length, the header, data."""
    for file in sorted(folder.glob("*.safetensors")):
        data = np.memmap(file, dtype=np.uint8, mode="r")
        begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:begin].tobytes())
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] != "BF16":
                raise ValueError(f"{name}: got dtype {entry['dtype']}, expected BF16")
            first, last = entry["data_offsets"]
            # The header's length may be odd.
            bits = np.frombuffer(data[begin + first : begin + last].tobytes(), dtype=np.uint16)
            yield name, bits.reshape(entry["shape"])


def _interleave(
    tensor: "np.ndarray[Any, np.dtype[np.uint16]]", heads: int
) -> "np.ndarray[Any, np.dtype[np.uint16]]":
    """Rotary halves of each head, in turns: llama.cpp turns neighbours, Hugging Face halves."""
    rows, columns = tensor.shape
    halves = tensor.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, tensor: "np.ndarray[Any, np.dtype[np.uint16]]"
) -> None:
    if tensor.ndim == 1:  # norms and biases are float32 in GGUF
        writer.add_tensor(name, (tensor.astype(np.uint32) << 16).view(np.float32))
        return
    content = np.ascontiguousarray(tensor).view(np.uint8)
    writer.add_tensor(name, content, raw_dtype=gguf.GGMLQuantizationType.BF16)
