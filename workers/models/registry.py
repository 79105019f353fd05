"""The architectures that can be served, by the name that config.json gives them."""

from collections.abc import Callable

from workers.models.architecture import Architecture
from workers.models.llama import llama
from workers.models.mistral import mistral
from workers.models.mixtral import mixtral
from workers.models.qwen2 import qwen2
from workers.models.qwen2_moe import qwen2_moe
from workers.models.qwen3 import qwen3
from workers.models.qwen3_moe import qwen3_moe
from workers.models.raw_config import RawConfig
from workers.registry import Registry

ARCHITECTURES: Registry[Callable[[RawConfig], Architecture]] = Registry(
    "architecture",
    {
        "LlamaForCausalLM": llama,
        "MistralForCausalLM": mistral,
        "MixtralForCausalLM": mixtral,
        "Qwen2ForCausalLM": qwen2,
        "Qwen2MoeForCausalLM": qwen2_moe,
        "Qwen3ForCausalLM": qwen3,
        "Qwen3MoeForCausalLM": qwen3_moe,
    },
)
