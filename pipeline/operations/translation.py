"""Translation: a recording in any language in, English text out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.operations import OperationEntry
from pipeline.operations._audio import AudioOperation, create_audio, starter_recordings
from pipeline.operations._transcript import FORMATS

if TYPE_CHECKING:
    from pipeline.job.spec import Job


def create(job: Job) -> AudioOperation:
    """Compile the job's request. Raises JobFileError for what no row could be asked with."""
    formats = FORMATS - {"diarized_json"}
    return create_audio(job, name="translation", endpoint="audio/translations", formats=formats)


_STARTER = """\
# Translate one recording a row into English. Try it without an account:   pipeline run --simulate THIS_FILE
operation: translation

input:
  path: rows.jsonl                          # one JSON object a line; Parquet works too
  id: id                                    # the column that names a row (optional)
  media_root: recordings                    # the only folder from which a row may name a file

request:                                    # the API's own fields; {{ column }} reads the row
  file: "{{ file }}"                        # flac, m4a, mp3, mp4, mpeg, mpga, ogg, wav or webm
  response_format: verbose_json             # with times; or json, text, srt, vtt
  cut_after: 20m                            # longer recordings are cut at silences and joined again

deployments:
  - endpoint: ${AZURE_OPENAI_ENDPOINT}      # https://NAME.openai.azure.com
    deployment: whisper                     # your deployment's name
    model: whisper-1                        # what stands behind it
    api: azure
    api_version: "2024-10-21"
    requests_per_minute: 60                 # your quota; leave out to learn it from the replies

output:
  path: out/translation                     # a folder that the run owns; run again to continue

run:
  workers: 4                                # requests in flight at most
  timeout: 600s                             # long recordings take their time
"""

_STARTER_ROWS = """\
{"id": "a", "file": "a.wav"}
{"id": "b", "file": "b.wav"}
{"id": "c", "file": "c.wav"}
"""

OPERATION = OperationEntry(
    name="translation",
    factory=create,
    description="Translation: a recording in any language in; English text and segments out.",
    starter=_STARTER,
    starter_rows=_STARTER_ROWS,
    starter_files=starter_recordings,
)
