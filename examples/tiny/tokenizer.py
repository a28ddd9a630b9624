"""A small byte-level tokenizer with a closed list of words, in Qwen's chat format.

Text is cut into words (with the space before them, and the space after them where a digit follows), single digits,
punctuation and single white-space characters. A piece in the word list is one token, anything else falls to its bytes,
so every text survives `decode(encode(text))`. The sentences that every prompt repeats (the answer instruction and the
correction template) are one token each: on a CPU they would otherwise cost more than the problem itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PIECES = Regex(r" ?[A-Za-z]+(?: (?=\d))?|\d| ?[^\sA-Za-z\d]+(?: (?=\d)|\n)?|\s")
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def build_tokenizer(texts: Iterable[str], sentences: Iterable[str]) -> PreTrainedTokenizerFast:
    """A fast tokenizer whose words are those of `texts`; each of `sentences` becomes one token.

    The vocabulary is the 256 bytes, the words in sorted order, the three special tokens, the sentences. No merges: a
    word is looked up whole (`ignore_merges`), and an unknown one is spelled in bytes.
    """
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cut = pre_tokenizers.Sequence([pre_tokenizers.Split(PIECES, behavior="isolated"), to_bytes])
    words = {piece for text in texts for piece, _ in cut.pre_tokenize_str(text)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*alphabet, *sorted(words - set(alphabet))]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, START, END])
    tokenizer.add_tokens([AddedToken(sentence, normalized=False, special=False) for sentence in sentences])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
