import json
import sys
from collections import Counter
from typing import Annotated

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import option
from cpmbee_job.cli.shared.options import Strict, Vocabulary
from cpmbee_job.errors import DataError


def encode(
    vocab: Vocabulary,
    source: Annotated[str, option("--input", "FILE", "JSON lines, one example each.")],
    strict: Strict = False,
) -> None:
    """Print each example as the model sees it, as JSON lines.

    Example: cpmbee-job data encode --vocab models/cpm-bee-10b/vocab.txt --input examples/train.jsonl
    """
    from cpmbee_job.data.encode.encoder import ARRAYS, encode_example
    from cpmbee_job.data.encode.tokenizer import LITERAL_WARNING, Tokenizer
    from cpmbee_job.data.read.reader import Rejection, read_source

    tokenizer = Tokenizer.from_file(vocab)
    warnings: Counter[str] = Counter()
    for record in read_source(source, None, "bee", warnings, strict=strict):
        try:
            if isinstance(record.content, Rejection):
                raise record.content.error
            encoded = encode_example(tokenizer, record.content, strict=strict)
        except DataError as error:
            raise DataError(f"{record.location}: {error.message}", hint=error.hint) from error
        warnings[LITERAL_WARNING] += encoded.literals
        line = {
            "data": record.content,
            **{name: array.tolist() for name, array in zip(ARRAYS, encoded.arrays, strict=True)},
            "num_segments": encoded.num_segments,
            "ext_table": encoded.ext_table,
        }
        sys.stdout.buffer.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    console.warn_of_counts(+warnings)
