"""Made the recordings in `recordings/` and `recordings.jsonl`: texts of our own, spoken by espeak-ng.

    python sample_data/make_recordings.py

needs the programs espeak-ng and ffmpeg. Each recording is 16 kHz mono, in the format that its name says.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
SAMPLE_RATE = 16_000
SPEECH = ["espeak-ng", "-v", "en-us", "-s", "135", "-p", "40", "-g", "2"]
CODECS = {
    "wav": ["-c:a", "pcm_s16le"],
    "flac": ["-c:a", "flac"],
    "mp3": ["-c:a", "libmp3lame", "-b:a", "32k"],
    "ogg": ["-c:a", "libopus", "-b:a", "24k"],
    "m4a": ["-c:a", "aac", "-b:a", "32k"],
}
TEXTS = {
    "harbour.wav": "The ferry leaves the harbour at nine, and it comes back before dark.",
    "kitchen.mp3": "Boil the potatoes for twenty minutes, then add butter, salt and a little milk.",
    "garden.flac": "Water the tomatoes in the evening, when the sun is low.",
    "weather.ogg": "Tomorrow will be cold and dry, with a light wind from the north.",
    "library.m4a": "The library is open every day except Monday, and the first hour is always quiet.",
    "bridge.wav": "The old bridge was closed after the flood.",
    "meeting.mp3": "We agreed to move the meeting to Thursday, because half of the team is on the road.",
    "museum.flac": "The second room shows maps of the river.",
    "mountain.ogg": "From the top of the mountain you can see three lakes and the railway station.",
    "repair.m4a": "Please turn off the machine before you open the door and change the filter.",
}


def main() -> None:
    """Speak every text and write the list of them."""
    recordings = FOLDER / "recordings"
    recordings.mkdir(exist_ok=True)
    lines = []
    for name, text in TEXTS.items():
        _record(text, recordings / name)
        lines.append(json.dumps({"id": Path(name).stem, "file": f"recordings/{name}", "text": text}))
    (FOLDER / "recordings.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _record(text: str, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spoken = f"{folder}/spoken.wav"
        subprocess.run([*SPEECH, "-w", spoken, text], check=True)  # noqa: S603 - our own texts
        exact = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:a", "+bitexact"]
        convert = ["ffmpeg", "-v", "error", "-y", "-i", spoken, "-ar", str(SAMPLE_RATE), "-ac", "1", *exact]
        subprocess.run([*convert, *CODECS[path.suffix[1:]], str(path)], check=True)  # noqa: S603 - our own files


if __name__ == "__main__":
    main()
