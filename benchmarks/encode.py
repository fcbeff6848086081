"""How many records a second one core tokenises, by chat template.

    python benchmarks/encode.py [--tokenizers FOLDER]

Short records of one question and answer, without and with a picture of 13 tiles. FOLDER holds
qwen2/, internlm2/ and phi3/; where there is none, only `tiny` is measured.
"""

from __future__ import annotations

import os

# Before the tokenizer is imported: one thread, so that the figure is per core.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.jsonl import write_json
from adapt.models.chat import ChatTemplate, encode_rendered, load_template, render
from adapt.models.presets import load_preset
from adapt.models.tokenizers import load_tokenizer
from adapt.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHARED = Path(__file__).resolve().parents[2] / "shared" / "tokenizers"
RESULT = Path(__file__).parent / "results" / "encode.json"
REAL = {"Hermes-2": "qwen2", "internlm2-chat": "internlm2", "phi3-chat": "phi3"}
PICTURE_TOKENS = 13 * 256


def measure(
    tokenizer: PreTrainedTokenizerFast, template: ChatTemplate, records: int, *, picture: bool
) -> float:
    """Return records a second of CPU time: rendering, tokenising, labels."""
    question = "Is there a plane in the picture? Answer with yes or no."
    answer = Message("gpt", "Yes, there is one plane.")
    turns = [Message("human", f"<image>\n{question}" if picture else question), answer]
    tokens = [PICTURE_TOKENS] if picture else []
    start_s = time.process_time()
    for first in range(0, records, 512):
        batch = [render(template, turns, tokens) for _ in range(first, min(first + 512, records))]
        encode_rendered(tokenizer, batch)
    return records / (time.process_time() - start_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizers", type=Path, default=SHARED if SHARED.is_dir() else None)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULT, help="Result file.")
    options = parser.parse_args()
    folders = {"internvl2_5": load_preset("tiny").tokenizer_folder}
    if options.tokenizers is not None:
        folders |= {template: options.tokenizers / name for template, name in REAL.items()}
    rows = []
    for name, folder in folders.items():
        tokenizer, template = load_tokenizer(folder), load_template(name)
        short, pictured = (
            round(measure(tokenizer, template, options.records, picture=picture))
            for picture in (False, True)
        )
        rows.append(
            {
                "template": name,
                "vocabulary": len(tokenizer),
                "short_records_per_cpu_s": short,
                "records_of_13_tiles_per_cpu_s": pictured,
            }
        )
        print(rows[-1], flush=True)
    report = {
        "benchmark": "encode",
        "records": options.records,
        "aim_short_records_per_s": 5000,
        "device": platform.machine(),
        "python": platform.python_version(),
        "rows": rows,
    }
    write_json(options.out, report)


if __name__ == "__main__":
    main()
