"""Chat templates render as Hugging Face's do, and only what they should."""

from collections.abc import Mapping
from typing import Any, cast

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from cluster.errors import Reason, RequestError
from router.text.chat_template import ChatTemplate
from tests.tokenizers_fixture import CHATML_TEMPLATE, byte_level_tokenizer

LLAMA3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
{% else %}
{{ raise_exception('Only user and assistant roles are supported!') }}
{% endif %}
{% endfor %}
"""

QWEN = """\
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and not message.content.startswith('<tool>') %}
        {%- set ns.last = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if loop.index0 > ns.last and message.role == "assistant" %}{%- continue %}{%- endif %}
    {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {{- message | tojson }}{{ {'<': "'", 'ü': [1, 2.5, true, none]} | tojson(indent=2) }}
{%- endfor %}
{%- if documents %}{{ documents }}{% endif %}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>' }}{% endif %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

TEMPLATES = {"llama3": LLAMA3, "chatml": CHATML_TEMPLATE, "mistral": MISTRAL, "qwen": QWEN}
SPECIAL_TOKENS = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}

message = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool"]),
        "content": st.text(max_size=30)
        | st.sampled_from(["a</think>\n\nb", "{{ 1 + 1 }}", "<|bos|>"]),
    }
)


def hugging_face(source: str, messages: list[dict[str, str]]) -> str:
    tokenizer = cast(Any, PreTrainedTokenizerFast)(
        tokenizer_object=byte_level_tokenizer(), **SPECIAL_TOKENS
    )
    rendered = tokenizer.apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(rendered, str)
    return rendered


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40)
@given(messages=st.lists(message, min_size=1, max_size=5))
def test_rendering_equals_transformers(name: str, messages: list[dict[str, str]]) -> None:
    template = ChatTemplate(TEMPLATES[name], SPECIAL_TOKENS)
    try:
        expected = hugging_face(TEMPLATES[name], messages)
    except jinja2.TemplateError:
        with pytest.raises(RequestError):
            template.render(messages)
    else:
        assert template.render(messages) == expected


def test_the_time_is_that_of_now() -> None:
    source = "{{ strftime_now('%Y') }}"
    messages = [{"role": "user", "content": ""}]
    assert ChatTemplate(source, {}).render(messages) == hugging_face(source, messages)


def refusal(source: str, messages: list[Mapping[str, str]]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        ChatTemplate(source, {}).render(messages)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert caught.value.field == "messages"
    return caught.value


def test_what_a_template_says_against_messages_reaches_the_client() -> None:
    assert "roles must alternate" in refusal(MISTRAL, [{"role": "assistant"}]).message


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''['__class__'].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ '%s'.__format__.__globals__ }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox_nor_change_messages(source: str) -> None:
    refusal(source, [{"role": "user", "content": ""}])


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxx{% endfor %}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ 1000000000 * messages }}",
        "{{ 10 ** 1000000000 }}",
        "{% for a in range(100000000) %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_runaway_template_is_stopped(source: str) -> None:
    refusal(source, [{"role": "user", "content": ""}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[7].content }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].content % messages }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].missing.deeper }}",
        "{{ messages | tojson(indent='a', separators=1) }}",
    ],
)
def test_whatever_a_template_stumbles_over_is_a_refusal_of_the_messages(source: str) -> None:
    refusal(source, [{"role": "user", "content": "%d"}])
