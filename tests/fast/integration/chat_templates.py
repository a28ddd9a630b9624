"""How three families of models render a chat, with tokenizers of a token a byte that know their special tokens.

SmolLM2's template is the published text. Those of Qwen3 and Llama 3 are written anew, for chats of text alone: without
tools, and without a field of its own for reasoning.
"""

import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A thought stays only in answers behind the last question, and an answer there that is the chat's last has one, if an
# empty one.
QWEN3 = r"""
{%- set query = namespace(last=-1) -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}{%- set query.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- set thought, said = '', message.content -%}
    {%- if message.role == 'assistant' and '</think>' in said -%}
        {%- set thought = said.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
        {%- set said = said.split('</think>')[-1].lstrip('\n') -%}
    {%- endif -%}
    {{- '<|im_start|>' + message.role + '\n' -}}
    {%- if message.role == 'assistant' and loop.index0 > query.last and (loop.last or thought) -%}
        {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + said.lstrip('\n') -}}
    {%- else -%}
        {{- said -}}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}
"""
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

CHATML = ("<|im_start|>", "<|im_end|>")
# Template, tokens that are special, tokens that are not, the one that ends a turn, the one that begins a text.
FAMILIES = {
    "smollm2": (SMOLLM2, CHATML, (), "<|im_end|>", None),
    "qwen3": (QWEN3, CHATML, ("<think>", "</think>"), "<|im_end|>", None),
    "llama3": (
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        (),
        "<|eot_id|>",
        "<|begin_of_text|>",
    ),
}


@functools.cache
def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A byte is a token. Where a text begins with a token, `encode` puts it there unless it is told not to."""
    template, special, plain, end, begin = FAMILIES[family]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True) for text in special])
    made.add_tokens([AddedToken(text, special=False) for text in plain])
    if begin is not None:
        first = [(begin, made.token_to_id(begin))]
        made.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=first)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, bos_token=begin)
    fast.chat_template = template
    return fast
