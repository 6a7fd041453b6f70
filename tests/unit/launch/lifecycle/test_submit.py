import subprocess
import sys

import pytest

from cpmbee_job.errors import SpecError
from cpmbee_job.launch.lifecycle.submit import require_submittable
from cpmbee_job.spec import parse_spec


def job(folder, *overrides):
    text = "name: a\nmodel: s3://m/\ndata: {train: train.jsonl}\noutput: s3://o/\nimage: example/train:1\n"
    return parse_spec(text, source="job.yaml", overrides=overrides, base=folder)


def test_paths_of_this_machine_are_what_has_to_be_uploaded(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}\n")
    assert list(require_submittable(job(tmp_path)).inputs) == ["data.train"]


@pytest.mark.parametrize(
    ("override", "key"),
    [("output=runs/", "output"), ("output=file:///runs/", "output"), ("image=null", "image"), ("model=m/", "model")],
)
def test_what_no_cluster_could_run_is_named_with_its_key(tmp_path, override, key):
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(SpecError, match=f"^{key}: "):
        require_submittable(job(tmp_path, override))


def test_the_launcher_needs_nothing_of_the_extras():
    program = (
        "import sys\nfrom cpmbee_job.launch.lifecycle import submit, resume, cancel, fetch\n"
        "print(*sys.modules, sep='\\n')"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pyarrow", "numpy", "zstandard", "safetensors", "kubernetes"} & set(loaded)
