"""The formats of quantized checkpoints, by the quant_method that config.json names."""

from collections.abc import Callable

from workers.models.errors import UnsupportedModelError
from workers.models.formats.awq import awq
from workers.models.formats.compressed_tensors import compressed_tensors
from workers.models.formats.format import QuantizedFormat
from workers.models.formats.gptq import gptq
from workers.models.raw_config import RawConfig
from workers.registry import Registry, UnknownChoiceError

QUANTIZED_FORMATS: Registry[Callable[[RawConfig], QuantizedFormat]] = Registry(
    "quantization_config.quant_method",
    {"awq": awq, "compressed-tensors": compressed_tensors, "gptq": gptq},
)


def parse_quantization(config: RawConfig) -> QuantizedFormat | None:
    """The format that a model's config.json names, or None if weights are stored plainly.

    Raises UnsupportedModelError.
    """
    fields = config.section("quantization_config")
    if fields is None:
        return None
    try:
        parse = QUANTIZED_FORMATS.get(fields.text("quant_method"))
    except UnknownChoiceError as error:
        raise UnsupportedModelError(str(error)) from error
    return parse(fields)
