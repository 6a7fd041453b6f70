import subprocess
import sys

import pytest

from cpmbee_job.errors import SpecError
from cpmbee_job.launch.lifecycle.submit import require_submittable
from cpmbee_job.spec import parse_spec


def job(folder, *overrides):
    text = "name: a\nmodel: s3://m/\ndata: {train: train.jsonl}\noutput: s3://o/\nimage: example/train:1\n"
    return parse_spec(text, source="job.yaml", overrides=overrides, base=folder)


def test_local_paths_are_uploaded(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}\n")
    assert list(require_submittable(job(tmp_path))) == ["data.train"]


@pytest.mark.parametrize(
    ("override", "key"),
    [("output=runs/", "output"), ("output=file:///runs/", "output"), ("image=null", "image"), ("model=m/", "model")],
)
def test_a_spec_that_cannot_run_on_a_cluster_is_rejected_with_the_key(tmp_path, override, key):
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(SpecError, match=f"^{key}: "):
        require_submittable(job(tmp_path, override))


def test_the_launcher_imports_no_optional_dependency():
    program = (
        "import sys\nfrom cpmbee_job.launch.lifecycle import submit, resume, cancel, fetch\n"
        "print(*sys.modules, sep='\\n')"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pyarrow", "numpy", "zstandard", "safetensors", "kubernetes"} & set(loaded)
