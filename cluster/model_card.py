"""What everyone has to know about a served model; published in Redis by its replicas."""

from pydantic import BaseModel, ConfigDict


class ModelCard(BaseModel):
    """A model as routers see it: enough to turn text into tokens and to check requests."""

    model_config = ConfigDict(frozen=True)

    name: str
    fingerprint: str
    """Hash over configuration, weights' headers and tokenizer; the root of all block hashes."""
    precision: str = ""
    """How weights, activations and cached keys are kept, where that is not the checkpoint's say."""
    max_model_len: int
    """Tokens of prompt and output together."""
    vocab_size: int
    """Rows of the model's head; token ids are below it."""
    block_size: int
    """Tokens in one KV block."""
    eos_token_ids: tuple[int, ...]
    tokenizer_json: str
    """Text of tokenizer.json."""
    chat_template: str | None = None
    """Jinja source; without one, Chat is refused for this model."""
    special_tokens: dict[str, str] = {}
    """bos_token, eos_token, ... as the chat template refers to them."""
