"""Legacy completions: each prompt is answered with its tag and its first sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.simulator.base import Answer, Asked, JsonOperation, Occasion, Place, bad_request, estimated_tokens
from pipeline.simulator.config import SimulatorConfig
from pipeline.simulator.cost import Rounding
from pipeline.simulator.ledger import text_key
from pipeline.simulator.operations._fields import Kinds, Ranges, check_fields, check_stops
from pipeline.simulator.operations._filters import FILTERED_JSON, PROMPT_SAFE_JSON, SAFE_JSON
from pipeline.simulator.operations._text import Lengths, cut_to, data_event, first_sentence, pieces, stop_at

_TOKENS_WHERE_NONE_ARE_ASKED = 16
_MOST_PROMPTS = 2_048
_FIELDS: Kinds = {
    "best_of": int,
    "echo": bool,
    "frequency_penalty": (int, float),
    "logit_bias": dict,
    "logprobs": int,
    "max_tokens": int,
    "model": str,
    "n": int,
    "presence_penalty": (int, float),
    "prompt": (str, list),
    "seed": int,
    "stop": (str, list),
    "stream": bool,
    "stream_options": dict,
    "suffix": str,
    "temperature": (int, float),
    "top_p": (int, float),
    "user": str,
}
_RANGES: Ranges = {
    "best_of": (1, 20),
    "frequency_penalty": (-2, 2),
    "logprobs": (0, 5),
    "max_tokens": (0, None),
    "n": (1, 128),
    "presence_penalty": (-2, 2),
    "temperature": (0, 2),
    "top_p": (0, 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """One answer to one prompt; `echo` is the prompt where it is to be repeated."""

    text: str
    echo: str
    finish_reason: str

    @property
    def tokens(self) -> int:
        """How many tokens the model wrote."""
        return estimated_tokens(self.text)


class Completions(JsonOperation):
    """POST …/completions."""

    name = "completions"
    path = "completions"
    field = "prompt"
    azure_name = "Completions_Create"

    def __init__(self, *, lengths: Lengths | None = None) -> None:
        self._lengths = lengths or Lengths()

    def read(self, body: Mapping[str, Any], place: Place) -> Asked:
        """Check the fields; charge the prompts, and what may be answered to each."""
        check_fields(body, _FIELDS, _RANGES)
        check_stops(body.get("stop"))
        count, best_of = body.get("n") or 1, body.get("best_of") or body.get("n") or 1
        if best_of < count:
            raise bad_request(
                "You requested that the server return more choices than it will generate (HINT: You must set 'n' "
                f"(currently {count}) to be at most 'best_of' (currently {best_of})).",
                param="best_of",
            )
        if body.get("stream") and best_of > count:
            raise bad_request("Only one of 'stream' and 'best_of' can be used at once.", param="best_of")
        prompts = _prompts(body.get("prompt"))
        most = _TOKENS_WHERE_NONE_ARE_ASKED if body.get("max_tokens") is None else body["max_tokens"]
        for prompt in prompts:
            tokens = estimated_tokens(prompt)
            if tokens + most > place.facts.context_tokens:
                raise bad_request(
                    f"This model's maximum context length is {place.facts.context_tokens} tokens, however you "
                    f"requested {tokens + most} tokens ({tokens} in your prompt; {most} for the completion). Please "
                    "reduce your prompt; or completion length.",
                    code="context_length_exceeded",
                )
        charge = place.cost.charge(
            texts=prompts,
            rounding=Rounding.EACH,
            most=body.get("max_tokens"),
            choices=best_of * len(prompts),
        )
        return Asked(
            body=body,
            tokens=charge.tokens,
            answer_tokens=charge.answer,
            keys=tuple(map(text_key, prompts)),
            texts=prompts,
        )

    def answer(self, asked: Asked, place: Place, occasion: Occasion) -> Answer:
        """Answer every prompt `n` times; streamed where asked."""
        choices = list(_choices(asked, self._lengths, filtered=occasion.filtered))
        key = text_key("".join(asked.keys))
        head = {
            "id": f"cmpl-{key}",
            "object": "text_completion",
            "created": occasion.created_s,
            "model": place.model,
            "system_fingerprint": f"fp_{key[:10]}",
        }
        prompt_tokens = sum(map(estimated_tokens, asked.texts))
        output_tokens = sum(choice.tokens for choice in choices)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": prompt_tokens + output_tokens,
        }
        if asked.body.get("stream"):
            events = tuple(_events(asked, place, head, choices, usage))
            return Answer(events=events, output_tokens=output_tokens)
        full = [
            _part(asked, place, index, choice.echo + choice.text, choice.finish_reason)
            for index, choice in enumerate(choices)
        ]
        body: dict[str, Any] = {**head, "choices": full, "usage": usage}
        if place.family.azure:
            body["prompt_filter_results"] = _prompt_results(asked)
        return Answer(body=orjson.dumps(body), output_tokens=output_tokens)


def make_operation(config: SimulatorConfig) -> Completions:
    """Make the operation with answers as long as the configuration wants."""
    return Completions(lengths=Lengths.of(config))


def _prompts(given: Any) -> tuple[str, ...]:
    """Read a string, strings, a list of tokens, or lists of tokens. Raises RefusedError."""
    if isinstance(given, str) or _is_tokens(given):
        given = [given]
    if not isinstance(given, list) or not given or len(given) > _MOST_PROMPTS:
        raise _invalid_prompt()
    prompts = []
    for prompt in given:
        if not (isinstance(prompt, str) or _is_tokens(prompt)):
            raise _invalid_prompt()
        prompts.append(prompt if isinstance(prompt, str) else orjson.dumps(prompt).decode())
    return tuple(prompts)


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(number) is int for number in value)


def _invalid_prompt() -> Exception:
    return bad_request(
        "'$.prompt' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference.",
        param="prompt",
    )


def _choices(asked: Asked, lengths: Lengths, *, filtered: bool) -> Iterator[_Choice]:
    body = asked.body
    most = _TOKENS_WHERE_NONE_ARE_ASKED if body.get("max_tokens") is None else body["max_tokens"]
    for prompt, key in zip(asked.texts, asked.keys, strict=True):
        echo = prompt if body.get("echo") else ""
        for number in range(body.get("n") or 1):
            if filtered:
                yield _Choice(text="", echo=echo, finish_reason="content_filter")
                continue
            tag = f"[sha:{key[:8]}]" if number == 0 else f"[sha:{key[:8]} choice:{number}]"
            text = lengths.lengthen(f"{tag} {first_sentence(prompt)}".rstrip(), f"{key}#{number}")
            text, is_cut = cut_to(stop_at(text, body.get("stop")), most)
            yield _Choice(text=text, echo=echo, finish_reason="length" if is_cut else "stop")


def _part(asked: Asked, place: Place, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    part: dict[str, Any] = {"text": text, "index": index, "finish_reason": finish_reason, "logprobs": None}
    if asked.body.get("logprobs") is not None:
        part["logprobs"] = _logprobs(text)
    if place.family.azure:
        part["content_filter_results"] = FILTERED_JSON if finish_reason == "content_filter" else SAFE_JSON
    return part


def _logprobs(text: str) -> dict[str, Any]:
    tokens = [text[start : start + 4] for start in range(0, len(text), 4)]
    return {
        "tokens": tokens,
        "token_logprobs": [-0.01] * len(tokens),
        "top_logprobs": [{token: -0.01} for token in tokens],
        "text_offset": list(range(0, len(text), 4)),
    }


def _prompt_results(asked: Asked) -> list[dict[str, Any]]:
    return [{"prompt_index": index, "content_filter_results": PROMPT_SAFE_JSON} for index in range(len(asked.texts))]


def _events(
    asked: Asked, place: Place, head: Mapping[str, Any], choices: Sequence[_Choice], usage: Mapping[str, Any]
) -> Iterator[bytes]:
    with_usage = (asked.body.get("stream_options") or {}).get("include_usage") is True
    empty_usage = {"usage": None} if with_usage else {}
    if place.family.azure:
        first = {"id": "", "object": "", "created": 0, "model": "", "prompt_filter_results": _prompt_results(asked)}
        yield data_event({**first, "choices": [], **empty_usage})
    for index, choice in enumerate(choices):
        for piece in pieces(choice.echo + choice.text):
            yield data_event({**head, "choices": [_part(asked, place, index, piece, None)], **empty_usage})
        last = _part(asked, place, index, "", choice.finish_reason)
        yield data_event({**head, "choices": [last], **empty_usage})
    if with_usage:
        yield data_event({**head, "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"
