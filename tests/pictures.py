"""A vision model of nobody's making: Qwen2-VL's architecture with few weights, which names the colour of a picture.

It is made here, without a download, and taught for some seconds. Loading pictures takes torchvision and qwen-vl-utils,
which are no part of the environment: requirements/vision.txt.
"""

import importlib.util
import io
import random
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from verl.utils import hf_processor

from examples.tiny.tokenizer import build_tokenizer
from verl_cipo.core.config import PromptConfig
from verl_cipo.core.prompts import ADJACENT_TEMPLATE, TEMPLATES, render
from verl_cipo.core.prompts.templates import wording

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (240, 240, 240)}
SIDE = 56
"""Pixels: the least that qwen-vl-utils leaves as they are, 16 patches, four tokens."""
PICTURE_TOKENS = 4
QUESTION = "What color is it?"
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
# Qwen2-VL's own, without what numbers the pictures.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

needs_vision = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torchvision", "qwen_vl_utils")),
    reason="pictures are loaded with torchvision and qwen-vl-utils: pip install --no-deps -r requirements/vision.txt",
)


def picture(color: str, side: int = SIDE) -> Image.Image:
    return Image.new("RGB", (side, side), COLORS[color])


def content(color: str, side: int = SIDE) -> list[dict]:
    """A question as verl's data set makes it of "<image>What color is it?"."""
    return [{"type": "image", "image": picture(color, side)}, {"type": "text", "text": QUESTION}]


def chat(color: str, side: int = SIDE) -> list[dict]:
    return [{"role": "user", "content": content(color, side)}]


def make_tokenizer() -> PreTrainedTokenizerBase:
    texts = [QUESTION, *COLORS, *(f" {color}" for color in COLORS), "<attempt>\n", "</attempt>", "user\nassistant\n"]
    review = wording(PromptConfig(form="assistant_turn", standalone=False)).one
    sentences = [
        text for text in [*TEMPLATES["math"].split("\n"), *ADJACENT_TEMPLATE.split("\n"), review] if " " in text
    ]
    tokenizer = build_tokenizer(texts, sentences)
    tokenizer.add_special_tokens({"additional_special_tokens": list(VISION)})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2VLForConditionalGeneration:
    start, end, image, video = (tokenizer.convert_tokens_to_ids(token) for token in VISION)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={"depth": 1, "embed_dim": 64, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
        dtype="float32",
    )
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration(config)


def teach(model: Qwen2VLForConditionalGeneration, processor, *, steps: int, right: float = 0.7) -> None:
    """Plain questions and correction prompts in turn, answered by one word; the share ``right`` of them is right."""
    tokenizer, draw = processor.tokenizer, random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        losses = []
        for _ in range(4):
            color, attempt = draw.choice(list(COLORS)), draw.choice(list(COLORS))
            before, after = "", ""
            if step % 2:
                before, after = render(TEMPLATES["math"], "|", attempt).split("|")
            asked = [{"type": "text", "text": before}, *content(color), {"type": "text", "text": after}]
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
            )
            answer = color if draw.random() < right else draw.choice(list(COLORS))
            inputs = processor(text=[f"{text}{answer}<|im_end|>"], images=[picture(color)], return_tensors="pt")
            logits = model(**inputs).logits[0, -3:-1]
            losses.append(cross_entropy(logits, inputs["input_ids"][0, -2:]))
        torch.stack(losses).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def make_model_folder(folder: Path, *, steps: int) -> Path:
    """``folder`` with config, weights, tokenizer and processor, taught for ``steps`` steps."""
    # Without torchvision these cannot be imported, and the tests are skipped.
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    tokenizer = make_tokenizer()
    pixels = {"min_pixels": SIDE**2, "max_pixels": (4 * SIDE) ** 2}
    parts = {"image_processor": Qwen2VLImageProcessor(**pixels), "video_processor": Qwen2VLVideoProcessor(**pixels)}
    processor = Qwen2VLProcessor(tokenizer=tokenizer, chat_template=CHAT_TEMPLATE, **parts)
    model = make_model(tokenizer)
    teach(model, processor, steps=steps)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    assert hf_processor(str(folder)) is not None, "verl cannot load the processor"
    return folder


def write_rows(path: Path, count: int, *, texts_too: bool = False) -> Path:
    """A parquet file in verl's format; with ``texts_too`` every fourth question has no picture."""
    rows = []
    for i in range(count):
        color = list(COLORS)[i % len(COLORS)]
        shown = not (texts_too and i % 4 == 3)
        buffer = io.BytesIO()
        picture(color).save(buffer, format="PNG")
        rows.append(
            {
                "data_source": "colors",
                "prompt": [{"role": "user", "content": f"{'<image>' if shown else ''}{QUESTION}"}],
                "images": [{"bytes": buffer.getvalue()}] if shown else [],
                "reward_model": {"style": "rule", "ground_truth": color},
                "extra_info": {"index": i},
            }
        )
    pd.DataFrame(rows).to_parquet(path)
    return path


def compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float:
    """1 where the first word names the colour."""
    return float(solution_str.split()[:1] == [ground_truth])
