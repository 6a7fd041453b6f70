from collections import Counter
from pathlib import Path
from typing import Annotated

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import option
from cpmbee_job.cli.shared.options import Format, format_as_option


def reformat(
    source: Annotated[Path, option("--input", "PATH", "A JSON lines file, or a folder of them.")],
    target: Annotated[Path, option("--output", "DIR", "Folder for the results; file names are kept.")],
    format_name: Format = "ccpm",
) -> None:
    """Convert raw records to examples with <ans>.

    Example: cpmbee-job reformat --input raw --output examples --format ccpm
    """
    from cpmbee_job.data.read.reformat import input_files, reformat

    num_bytes = sum(path.stat().st_size for path in input_files(source))
    warnings: Counter[str] = Counter()
    with console.progress("reformat", num_bytes) as advance, format_as_option():
        written = reformat(source, target, format_name, warnings, advance)
    console.warn_of_counts(warnings)
    for path, count in written.items():
        console.say(f"{path}: {'1 example' if count == 1 else f'{count:,} examples'}")
