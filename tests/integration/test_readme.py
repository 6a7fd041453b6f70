"""The tutorial and the page of the original's commands, command by command, on records and a model of our own."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import DOCS

PAGES = [DOCS / "tutorials" / "ccpm.md", DOCS / "how-to" / "original-commands.md"]
VERSES = [
    "渔灯灭复明",
    "残灯灭又然",
    "残灯暗复明",
    "残灯灭又明",
    "流星紫入烟",
    "红光生紫烟",
    "红星乱紫烟",
    "客路方经楚",
]
WORDS = "input options question 这段话形容了哪句诗的意境 ？ 。 [ ] 翻译 答案 0 1 2 3".split()
SPECIAL = "<pad> <unk> <mask> <sep> </n> </_> <s> </s> <root> <ans> <option>".split()


def tutorial() -> str:
    return "".join(page.read_text(encoding="utf-8") for page in PAGES)


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", tutorial(), flags=re.MULTILINE | re.DOTALL)
    return ["".join(line[len(indent) :] for line in body.splitlines(keepends=True)) for indent, body in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "raw_data").mkdir()
    draw = random.Random(3)
    for name, count in (("train", 60), ("eval", 12)):
        rows = []
        for _ in range(count):
            options = draw.sample(VERSES, 4)
            answer = draw.randrange(4)
            marked = "".join(f"[{number}]{verse}" for number, verse in enumerate(options))
            rows.append({"target": str(answer), "input": f"[翻译]{options[answer]}。{marked}[答案]"})
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "raw_data" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    vocabulary = list(dict.fromkeys([*SPECIAL, *WORDS, *"".join(VERSES)]))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    sizes = {"dim_model": 32, "num_heads": 2, "dim_head": 16, "dim_ff": 64, "num_layers": 2, "half": False}
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(vocabulary), **sizes}))
    run(folder, "cpmbee-job model init --config config.json --vocab vocab.txt --out models/made")
    run(folder, "cpmbee-job model convert --model models/made --out models/cpm-bee --to bin")
    (folder / "job.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    return folder


def run(folder: Path, script: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_command_of_the_tutorial_works(folder: Path) -> None:
    printed = [run(folder, block) for block in blocks("bash")]
    answers = [line for text in printed for line in text.splitlines() if line.startswith("{")]
    assert len(answers) == 3
    assert all("<ans>" in json.loads(line) for line in answers)
    assert (folder / "results/cpm_bee_finetune-delta-best.pt").is_file()
    assert (folder / "models/cpm-bee-ccpm/config.json").is_file()
    encoded = (folder / "encoded.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(encoded) == 12
    assert "input_ids" in json.loads(encoded[0])
