"""The official SDK asks every operation in all three URL families, and gets the same answers in each."""

from __future__ import annotations

import contextlib
import io
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pybase64
import pytest
from forked import start_simulator

from pipeline.simulator import tones
from pipeline.simulator.ledger import messages_key, text_key
from pipeline.simulator.pictures import picture_key
from pipeline.simulator.serve import SimulatorProcess
from pipeline.simulator.sounds import wave_file

TEXT = "Nobody hears the sea. It is too far away, and the wind is against it."
WORDS = TEXT.split()
PROMPT = "First sentence. Second sentence."
SSE_WORDS = "One two three four five six seven eight nine ten eleven twelve."
CONFIG = {
    "deployments": {
        "chat": {"model": "gpt-4o-mini"},
        "legacy": {"model": "gpt-35-turbo-instruct"},
        "whisper": {"model": "whisper-1"},
        "transcribe": {"model": "gpt-4o-mini-transcribe"},
        "diarize": {"model": "gpt-4o-transcribe-diarize"},
        "voice": {"model": "tts-1"},
        "new-voice": {"model": "gpt-4o-mini-tts"},
        "dalle": {"model": "dall-e-3"},
        "image": {"model": "gpt-image-1"},
        "slow": {"model": "whisper-1", "requests_per_minute": 1},
    },
    "poison": [
        {"contains": "POISON"},
        {"contains": "BROKEN", "status": 200, "code": "server_error", "message": "It broke."},
        {"contains": "LATE", "status": 200},
    ],
    "audio": "tones",
    "vectors": "hash",
}
FAMILIES = ["classic", "v1", "openai"]
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK's word on translations
Client = openai.AzureOpenAI | openai.OpenAI


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with start_simulator(CONFIG) as process:
        yield process


def make_client(simulator: SimulatorProcess, family: str, version: str = "2025-04-01-preview") -> Client:
    if family == "classic":
        return openai.AzureOpenAI(azure_endpoint=simulator.url, api_key="k", api_version=version, max_retries=0)
    path = "/openai/v1" if family == "v1" else "/v1"
    return openai.OpenAI(base_url=simulator.url + path, api_key="k", max_retries=0)


@pytest.fixture(params=FAMILIES)
def client(request: pytest.FixtureRequest, simulator: SimulatorProcess) -> Iterator[Client]:
    with make_client(simulator, request.param) as made:
        yield made


@pytest.fixture
def stable(simulator: SimulatorProcess) -> Iterator[Client]:
    """A client of the classic family with the last version that is no preview."""
    with make_client(simulator, "classic", "2024-10-21") as made:
        yield made


def recording(words: list[str] = WORDS, name: str = "speech.wav") -> io.BytesIO:
    file = io.BytesIO(wave_file(tones.encode(words, 16_000), 16_000))
    file.name = name
    return file


# Responses


def test_a_response_is_the_extract_with_the_inputs_tag(client: Client) -> None:
    answer = client.responses.create(model="chat", input=PROMPT)
    assert answer.output_text == f"First sentence. [sha:{messages_key(PROMPT)[:8]}]"
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_a_responses_stream_tells_the_whole_response(client: Client) -> None:
    given: Any = [{"role": "user", "content": SSE_WORDS}]
    whole = client.responses.create(model="chat", input=given)
    events = list(client.responses.create(model="chat", input=given, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == whole.output_text
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage == whole.usage


def test_the_sdks_own_reader_of_streams_puts_the_response_together(client: Client) -> None:
    with client.responses.stream(model="chat", input=PROMPT) as stream:
        final = stream.get_final_response()
    assert final.output_text.startswith("First sentence. [sha:")


def test_a_response_without_room_is_incomplete(client: Client) -> None:
    answer = client.responses.create(model="chat", input=SSE_WORDS, max_output_tokens=16)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert len(answer.output_text) == 64


def test_a_response_can_fail_with_status_200(client: Client) -> None:
    answer = client.responses.create(model="chat", input="a BROKEN thing")
    assert (answer.status, answer.output) == ("failed", [])
    assert answer.error is not None
    assert (answer.error.code, answer.error.message) == ("server_error", "It broke.")
    last = list(client.responses.create(model="chat", input="a BROKEN thing", stream=True))[-1]
    assert last.type == "response.failed"


def test_a_filtered_response_is_incomplete(client: Client) -> None:
    answer = client.responses.create(model="chat", input="LATE")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "content_filter"


def test_a_response_fits_a_schema_and_calls_functions(client: Client) -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    wanted: Any = {"format": {"type": "json_schema", "name": "answer", "schema": schema}}
    assert client.responses.create(model="chat", input=PROMPT, text=wanted).output_text.startswith('{"title":"First')
    tools: Any = [{"type": "function", "name": "look", "parameters": schema, "strict": False}]
    [call] = client.responses.create(model="chat", input=PROMPT, tools=tools).output
    assert (call.type, getattr(call, "name", None)) == ("function_call", "look")
    events = list(client.responses.create(model="chat", input=PROMPT, tools=tools, stream=True))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == getattr(call, "arguments", None)


def test_responses_and_speech_need_a_preview_in_the_classic_family(stable: Client) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        stable.responses.create(model="chat", input=PROMPT)
    assert caught.value.body == {"code": "404", "message": "Resource not found"}
    with pytest.raises(openai.NotFoundError):
        stable.audio.speech.create(model="voice", input=TEXT, voice="alloy")


# Completions


def test_completions_answer_every_prompt(client: Client) -> None:
    answer = client.completions.create(model="legacy", prompt=["One. Two.", "Three."], n=2, max_tokens=50)
    assert [choice.text for choice in answer.choices] == [
        f"[sha:{text_key('One. Two.')[:8]}] One.",
        f"[sha:{text_key('One. Two.')[:8]} choice:1] One.",
        f"[sha:{text_key('Three.')[:8]}] Three.",
        f"[sha:{text_key('Three.')[:8]} choice:1] Three.",
    ]


def test_a_completions_stream_is_the_same_answer(client: Client) -> None:
    whole = client.completions.create(model="legacy", prompt=SSE_WORDS, max_tokens=100)
    options: Any = {"include_usage": True}
    stream = client.completions.create(
        model="legacy", prompt=SSE_WORDS, max_tokens=100, stream=True, stream_options=options
    )
    events = list(stream)
    assert "".join(choice.text for event in events for choice in event.choices) == whole.choices[0].text
    assert events[-1].usage == whole.usage


def test_sixteen_tokens_are_all_that_completions_write_unasked(client: Client) -> None:
    [choice] = client.completions.create(model="legacy", prompt=SSE_WORDS).choices
    assert (choice.finish_reason, len(choice.text)) == ("length", 64)


# Audio


def test_a_recording_is_heard(client: Client) -> None:
    assert client.audio.transcriptions.create(model="whisper", file=recording()).text == TEXT
    assert client.audio.translations.create(model="whisper", file=recording()).text == TEXT


def test_words_and_sentences_have_their_times(client: Client) -> None:
    answer = client.audio.transcriptions.create(
        model="whisper",
        file=recording(),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        language="en",
        temperature=0,
    )
    assert answer.words is not None
    assert answer.segments is not None
    expected = list(tones.schedule(WORDS))
    assert [word.word for word in answer.words] == WORDS
    for word, spoken in zip(answer.words, expected, strict=True):
        assert (word.start, word.end) == pytest.approx((spoken.start_s, spoken.end_s), abs=0.02)
    assert [segment.text.strip() for segment in answer.segments] == [
        "Nobody hears the sea.",
        "It is too far away, and the wind is against it.",
    ]
    assert (answer.language, answer.duration) == ("english", pytest.approx(expected[-1].end_s + tones.GAP_S, abs=0.01))


def test_words_are_not_timed_by_a_stable_version(stable: Client) -> None:
    answer = stable.audio.transcriptions.create(
        model="whisper", file=recording(), response_format="verbose_json", timestamp_granularities=["word"]
    )
    assert answer.words is None
    assert answer.segments


def test_a_translation_is_english_and_has_no_words(client: Client) -> None:
    answer = client.audio.translations.create(model="whisper", file=recording(), response_format="verbose_json")
    assert (answer.text, answer.language) == (TEXT, "english")


@pytest.mark.parametrize(
    ("kind", "begin"),
    [
        ("text", TEXT + "\n"),
        ("srt", "1\n00:00:00,160 --> 00:00:02,400\nNobody hears the sea.\n\n2\n"),
        ("vtt", "WEBVTT\n\n00:00:00.160 --> 00:00:02.400\nNobody hears the sea.\n\n"),
    ],
)
def test_plain_formats_are_plain_text(client: Client, kind: Any, begin: str) -> None:
    answer = client.audio.transcriptions.with_raw_response.create(
        model="whisper", file=recording(), response_format=kind
    )
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text.startswith(begin)


def test_speakers_take_turns(client: Client) -> None:
    answer: Any = client.audio.transcriptions.create(
        model="diarize", file=recording(), response_format="diarized_json", chunking_strategy="auto"
    )
    assert [(segment.speaker, segment.text) for segment in answer.segments] == [
        ("A", "Nobody hears the sea."),
        ("B", "It is too far away, and the wind is against it."),
    ]


def test_a_transcription_is_streamed_by_the_models_that_can(client: Client) -> None:
    events: list[Any] = list(
        client.audio.transcriptions.create(model="transcribe", file=recording(), response_format="json", stream=True)
    )
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == TEXT
    assert (events[-1].type, events[-1].text) == ("transcript.text.done", TEXT)


@pytest.mark.parametrize(
    ("model", "changes", "param"),
    [
        ("transcribe", {"response_format": "srt"}, "response_format"),
        ("diarize", {"response_format": "verbose_json"}, "response_format"),
        ("whisper", {"response_format": "diarized_json"}, "response_format"),
        ("whisper", {"timestamp_granularities": ["word"]}, "timestamp_granularities"),
        ("whisper", {"temperature": 1.5}, "temperature"),
        ("whisper", {"language": "English"}, "language"),
    ],
)
def test_what_a_model_does_not_take_is_refused(client: Client, model: str, changes: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(model=model, file=recording(), **changes)
    assert caught.value.param == param


def test_a_recording_that_is_too_large_is_a_413(client: Client) -> None:
    file = io.BytesIO(bytes(26_214_400))
    file.name = "large.wav"
    with pytest.raises(openai.APIStatusError) as caught:
        client.audio.transcriptions.create(model="whisper", file=file)
    assert caught.value.status_code == 413
    assert "Maximum content size limit (26214400) exceeded (" in caught.value.message


def test_bytes_that_are_no_recording_are_refused(client: Client) -> None:
    for name, content in (("x.wav", b"not sound"), ("x.exe", b"MZ"), ("x.mp3", b"")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.audio.transcriptions.create(model="whisper", file=(name, content))
        assert caught.value.param == "file"


def test_recordings_are_judged_by_requests(client: Client) -> None:
    with contextlib.suppress(openai.RateLimitError):
        client.audio.transcriptions.create(model="slow", file=recording())
    with pytest.raises(openai.RateLimitError) as caught:
        client.audio.transcriptions.create(model="slow", file=recording())
    assert caught.value.response.headers["retry-after-ms"].isdecimal()


@pytest.mark.parametrize("kind", ["mp3", "opus", "aac", "flac", "wav"])
def test_what_is_spoken_can_be_heard_again(client: Client, kind: Any) -> None:
    sound = client.audio.speech.create(model="voice", input=TEXT, voice="alloy", response_format=kind, speed=1.5)
    heard = client.audio.transcriptions.create(
        model="whisper", file=(f"x.{'ogg' if kind == 'opus' else 'mp4' if kind == 'aac' else kind}", sound.content)
    )
    assert heard.text == TEXT


def test_pcm_is_24_khz_of_16_bits(client: Client) -> None:
    sound = client.audio.speech.create(model="voice", input=TEXT, voice="alloy", response_format="pcm")
    assert [spoken.word for spoken in tones.decode(sound.content, 24_000)] == WORDS


def test_speech_is_mp3_unless_asked_and_says_so(client: Client) -> None:
    raw = client.audio.speech.with_raw_response.create(model="voice", input=TEXT, voice="alloy")
    assert raw.headers["content-type"] == "audio/mpeg"


def test_speech_can_be_streamed(client: Client) -> None:
    whole = client.audio.speech.create(model="new-voice", input=TEXT, voice="coral", response_format="wav").content
    with client.audio.speech.with_streaming_response.create(
        model="new-voice", input=TEXT, voice="coral", response_format="wav"
    ) as streamed:
        assert b"".join(streamed.iter_bytes()) == whole


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": "x" * 4_097}, "input"),
        ({"input": ""}, "input"),
        ({"voice": "nobody"}, "voice"),
        ({"speed": 4.5}, "speed"),
        ({"response_format": "midi"}, "response_format"),
        ({"instructions": "Be kind."}, "instructions"),
        ({"stream_format": "sse"}, "stream_format"),
    ],
)
def test_speech_that_is_out_of_bounds_is_refused(client: Client, changes: Any, param: str) -> None:
    asked = {"model": "voice", "input": TEXT, "voice": "alloy", **changes}
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.speech.create(**asked)
    assert caught.value.param == param


# Images


def test_dall_e_pictures_lie_behind_a_url(client: Client, simulator: SimulatorProcess) -> None:
    answer = client.images.generate(model="dalle", prompt=PROMPT, size="1024x1792", quality="hd", style="natural")
    assert answer.data is not None
    [image] = answer.data
    assert image.url is not None
    assert image.url.startswith(simulator.url)
    assert image.revised_prompt == f"{PROMPT} [sha:{text_key(PROMPT)[:8]}]"
    with urllib.request.urlopen(image.url) as reply:
        content = reply.read()
        assert reply.headers["content-type"] == "image/png"
    assert picture_key(content) == text_key(PROMPT)


def test_dall_e_pictures_come_as_base64_where_asked(client: Client) -> None:
    answer = client.images.generate(model="dalle", prompt=PROMPT, response_format="b64_json")
    assert answer.data is not None
    assert answer.data[0].url is None
    assert picture_key(pybase64.b64decode(answer.data[0].b64_json or "")) == text_key(PROMPT)


@pytest.mark.parametrize(("kind", "signature"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8\xff")])
def test_gpt_image_always_answers_with_base64(client: Client, kind: Any, signature: bytes) -> None:
    answer = client.images.generate(model="image", prompt=PROMPT, n=2, output_format=kind, quality="low")
    assert answer.data is not None
    assert answer.usage is not None
    contents = [pybase64.b64decode(image.b64_json or "") for image in answer.data]
    assert all(content.startswith(signature) for content in contents)
    assert picture_key(contents[0]) == text_key(PROMPT) != picture_key(contents[1])
    assert answer.usage.output_tokens == 2 * 272


@pytest.mark.parametrize(
    ("model", "changes", "param"),
    [
        ("dalle", {"n": 2}, "n"),
        ("dalle", {"size": "256x256"}, "size"),
        ("dalle", {"quality": "high"}, "quality"),
        ("dalle", {"prompt": "x" * 4_001}, "prompt"),
        ("image", {"output_format": "webp"}, "output_format"),
        ("image", {"size": "1792x1024"}, "size"),
        ("image", {"n": 11}, "n"),
    ],
)
def test_a_picture_that_is_out_of_bounds_is_refused(client: Client, model: str, changes: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{"model": model, "prompt": PROMPT, **changes})
    assert caught.value.param == param


def test_gpt_image_takes_no_response_format(client: Client) -> None:
    with pytest.raises(openai.BadRequestError, match="response_format"):
        client.images.generate(model="image", prompt=PROMPT, response_format="b64_json")


def test_a_blocked_picture_says_what_was_found(client: Client) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(model="dalle", prompt="a POISON b")
    assert caught.value.code == "content_policy_violation"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["inner_error"]["content_filter_results"]["violence"]["filtered"] is True


# All of them


def answers(client: Client) -> dict[str, str | bytes | None]:
    """Ask every operation once."""
    messages: list[Any] = [{"role": "user", "content": PROMPT}]
    image = client.images.generate(model="image", prompt=PROMPT)
    return {
        "chat": client.chat.completions.create(model="chat", messages=messages).choices[0].message.content,
        "responses": client.responses.create(model="chat", input=PROMPT).output_text,
        "completions": client.completions.create(model="legacy", prompt=PROMPT).choices[0].text,
        "transcription": client.audio.transcriptions.create(model="whisper", file=recording()).text,
        "translation": client.audio.translations.create(model="whisper", file=recording()).text,
        "speech": client.audio.speech.create(model="voice", input=TEXT, voice="nova", response_format="wav").content,
        "images": image.data[0].b64_json if image.data else None,
    }


def test_a_model_that_serves_another_operation_says_so(client: Client) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model="whisper", prompt=PROMPT)
    azure = "/openai" in str(client.base_url)
    assert (caught.value.status_code, caught.value.code) == ((400, "OperationNotSupported") if azure else (404, None))


def test_every_family_gives_the_same_answers(simulator: SimulatorProcess) -> None:
    given = []
    for family in FAMILIES:
        with make_client(simulator, family) as client:
            given.append(answers(client))
    assert given[0] == given[1] == given[2]
    assert all(given[0].values())
