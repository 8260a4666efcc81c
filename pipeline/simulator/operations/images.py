"""Images: a small picture drawn from a digest of the prompt, as base64 or behind a URL of the simulator's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import pybase64

from pipeline.simulator.base import (
    Answer,
    Asked,
    JsonOperation,
    Occasion,
    Place,
    bad_request,
    estimated_tokens,
    missing,
)
from pipeline.simulator.config import SimulatorConfig
from pipeline.simulator.ledger import text_key
from pipeline.simulator.operations._fields import Kinds, Ranges, check_choice, check_fields, check_length
from pipeline.simulator.operations._filters import FILTERED_JSON, PROMPT_SAFE_JSON, SAFE_JSON
from pipeline.simulator.pictures import picture, picture_name

PICTURES = "/_simulator/images/"
"""Where pictures behind URLs are served."""

_SIZE = re.compile(r"([1-9][0-9]{1,3})x([1-9][0-9]{1,3})")
_AREA_OF_QUALITY = {"low": 272, "medium": 1_056, "high": 4_160, "auto": 4_160}  # tokens of 1024 x 1024
_SQUARE = 1_024 * 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """What a family of models takes. `sizes` is empty where the model has a rule of its own."""

    fields: Kinds
    most_characters: int
    most_pictures: int
    sizes: tuple[str, ...]
    choices: Mapping[str, tuple[str, ...]]


_COMMON: Kinds = {"model": str, "n": int, "prompt": str, "quality": str, "size": str, "user": str}
_DALL_E = _Rules(
    fields={**_COMMON, "response_format": str, "style": str},
    most_characters=4_000,
    most_pictures=1,
    sizes=("1024x1024", "1792x1024", "1024x1792"),
    choices={"quality": ("standard", "hd"), "style": ("vivid", "natural"), "response_format": ("url", "b64_json")},
)
_GPT_IMAGE = _Rules(
    fields={
        **_COMMON,
        "background": str,
        "moderation": str,
        "output_compression": int,
        "output_format": str,
        "partial_images": int,
        "stream": bool,
    },
    most_characters=32_000,
    most_pictures=10,
    sizes=("1024x1024", "1024x1536", "1536x1024", "auto"),
    choices={
        "quality": ("low", "medium", "high", "auto"),
        "output_format": ("png", "jpeg"),
        "background": ("transparent", "opaque", "auto"),
        "moderation": ("low", "auto"),
    },
)
_RANGES: Ranges = {"n": (1, 10), "output_compression": (0, 100), "partial_images": (0, 3)}


class Images(JsonOperation):
    """POST …/images/generations. Models that are not called gpt-image-… keep the rules of dall-e-3."""

    name = "images"
    path = "images/generations"
    field = "prompt"
    azure_name = "ImageGenerations_Create"

    def read(self, body: Mapping[str, Any], place: Place) -> Asked:
        """Check the fields by the model's rules; no tokens are charged."""
        rules = _rules(place)
        check_fields(body, rules.fields, _RANGES)
        prompt = body.get("prompt")
        if not prompt:
            raise missing("prompt")
        check_length("prompt", prompt, rules.most_characters)
        if (body.get("n") or 1) > rules.most_pictures:
            raise bad_request(
                f"Invalid 'n': integer above maximum value. Expected a value <= {rules.most_pictures}, but got "
                f"{body['n']} instead.",
                param="n",
                code="integer_above_max_value",
            )
        if body.get("stream"):
            raise bad_request(
                "'stream' is not supported by this simulator.", param="stream", code="unsupported_parameter"
            )
        for name, choices in rules.choices.items():
            check_choice(name, body.get(name), choices)
        _check_size(body.get("size"), rules, place)
        return Asked(body=body, tokens=0, keys=(text_key(prompt),), texts=(prompt,))

    def slow(self, asked: Asked, place: Place) -> bool:
        """Say yes where pictures are drawn: each takes milliseconds."""
        return _rules(place) is _GPT_IMAGE or asked.body.get("response_format") == "b64_json"

    def answer(self, asked: Asked, place: Place, occasion: Occasion) -> Answer:
        """Answer with `n` pictures; a withheld one is missing beside what the filter says."""
        body = asked.body
        rules = _rules(place)
        width, height = _pixels(body.get("size"))
        kind = body.get("output_format") or "png"
        full: dict[str, Any] = {"created": occasion.created_s}
        data = []
        for key in _picture_keys(asked):
            entry: dict[str, Any] = {}
            if rules is _DALL_E:
                entry["revised_prompt"] = f"{body['prompt']} [sha:{asked.keys[0][:8]}]"
            if occasion.filtered:
                pass
            elif rules is _GPT_IMAGE or body.get("response_format") == "b64_json":
                entry["b64_json"] = pybase64.b64encode_as_string(picture(key, width, height, kind))
            else:
                entry["url"] = f"{occasion.origin}{PICTURES}{picture_name(key, width, height, kind)}"
            if place.family.azure:
                entry["prompt_filter_results"] = PROMPT_SAFE_JSON
                entry["content_filter_results"] = FILTERED_JSON if occasion.filtered else SAFE_JSON
            data.append(entry)
        full["data"] = data
        tokens = 0
        if rules is _GPT_IMAGE:
            quality = body.get("quality") or "high"
            tokens = len(data) * round(_AREA_OF_QUALITY[quality] * width * height / _SQUARE)
            full |= {"background": "opaque", "output_format": kind, "size": f"{width}x{height}"}
            full["quality"] = "high" if quality == "auto" else quality
            full["usage"] = _usage(asked, tokens)
        return Answer(body=orjson.dumps(full), output_tokens=tokens)


def make_operation(config: SimulatorConfig) -> Images:  # noqa: ARG001 - every operation's
    """Make the operation."""
    return Images()


def _rules(place: Place) -> _Rules:
    return _GPT_IMAGE if place.model.startswith("gpt-image") else _DALL_E


def _check_size(size: str | None, rules: _Rules, place: Place) -> None:
    """Check by the list, or by the rules of gpt-image-2: any multiple of 16 within bounds. Raises RefusedError."""
    if size is None or size in rules.sizes:
        return
    match = _SIZE.fullmatch(size)
    if place.model.startswith("gpt-image-2") and match is not None:
        width, height = int(match[1]), int(match[2])
        if (
            width % 16 == height % 16 == 0
            and max(width, height) <= min(3_840, 3 * min(width, height))
            and 655_360 <= width * height <= 8_294_400  # noqa: PLR2004 - the model's bounds
        ):
            return
    check_choice("size", size, rules.sizes)


def _pixels(size: str | None) -> tuple[int, int]:
    match = _SIZE.fullmatch(size or "")
    return (int(match[1]), int(match[2])) if match else (1_024, 1_024)


def _picture_keys(asked: Asked) -> Iterator[str]:
    """Name the pictures: the first as its prompt is named, every further one by a key of its own."""
    for number in range(asked.body.get("n") or 1):
        yield asked.keys[0] if number == 0 else text_key(f"{asked.body['prompt']}#{number}")


def _usage(asked: Asked, output_tokens: int) -> dict[str, Any]:
    text_tokens = estimated_tokens(asked.body["prompt"])
    return {
        "input_tokens": text_tokens,
        "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": 0},
        "output_tokens": output_tokens,
        "total_tokens": text_tokens + output_tokens,
    }
